"""Foreign edits of a network-status: recorded, restored by one write, and with backoff against another controller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from events.ledger.memory import MemoryLedger
from events.schema import DriftKind, DriftObserved, Event, InterfaceAttached, NetworkName, Pod, StatusPublished
from nodeworker.host.adopt.plan import Adoption, FoundNamespace, judge
from nodeworker.host.adopt.read import read_state
from reconciler.status import folder_sink
from reconciler.status.folder_sink import FolderSink
from reconciler.status.guard import guard
from reconciler.status.kubernetes.annotation_sink import AnnotationSink
from reconciler.status.kubernetes.annotation_watch import AnnotationWatch
from reconciler.status.kubernetes.pod_events import PodEvent
from reconciler.status.text import ANNOTATION
from tests.support.host.multus_pods import POD
from tests.support.host.multus_state import MultusNode
from tests.support.kube.publishing import WITH_PUBLISHER, create, metadata
from tests.support.kube.server import KubeServer
from tests.support.reconciler.running import Running, running
from tests.support.stories.node import Node
from tests.support.stories.values import ETH0, NETWORKS, result
from tests.support.waiting import BOUND

BOX, OTHER = "a" * 64, "b" * 64
FORGED = '[{"name": "forged"}]'


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SETTLE_TIME", 0.05)
    monkeypatch.setattr(folder_sink, "POLL_INTERVAL", 0.02)


async def attach(ledger: MemoryLedger, pod: Pod, box: str = BOX) -> None:
    for event in Node().attach(box, pod):
        await ledger.append(event)


async def said(run: Running, ledger: MemoryLedger, *types: str) -> list[Event]:
    """Wait until the reconciler has appended exactly *types*, in this order."""
    found: list[Event] = []
    async with asyncio.timeout(BOUND):
        while len(found) < len(types):
            await asyncio.wait({run.task}, timeout=0.02)
            assert not run.task.done() or run.task.result()
            found = [stored.event async for stored in ledger.read("plumbline.ev.-.>")]
    assert [event.type for event in found] == list(types)
    return found


def text_of(cluster: KubeServer, pod: Pod) -> str | None:
    return metadata(cluster, pod).get("annotations", {}).get(ANNOTATION)


def forge(cluster: KubeServer, pod: Pod, text: Any) -> None:
    cluster.annotate_pod(pod.namespace, pod.name, {ANNOTATION: text})


@pytest.mark.parametrize("text", [FORGED, None, ""])
async def test_a_foreign_change_is_recorded_and_restored_by_one_write(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path, text: Any
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await attach(ledger, pod)
        (published,) = await said(run, ledger, "StatusPublished")
        right = text_of(cluster, pod)
        forge(cluster, pod, text)
        *_, observed, again = await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")
        assert isinstance(observed.data, DriftObserved)
        (drift,) = observed.data.drifts
        assert (drift.kind, drift.expected, drift.found) == (DriftKind.STATUS_CHANGED, right, text or "")
        assert (observed.data.node, observed.node, observed.sandbox) == ("node-1", "", BOX)
        assert text_of(cluster, pod) == right
        await asyncio.sleep(0.5)
        assert run.value("status_restored_total") == 1
    assert isinstance(again.data, StatusPublished)
    assert isinstance(published.data, StatusPublished)
    assert again.data.text == published.data.text == right
    assert cluster.etcd.writes("pods", namespace, "web") == 4  # created, published, forged, restored


async def test_a_change_during_downtime_is_restored(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        await run.at(await ledger.last_sequence())
    forge(cluster, pod, None)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")
    assert text_of(cluster, pod)


async def test_other_changes_of_the_pod_are_ignored(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        cluster.annotate_pod(namespace, "web", {"other": "words"})
        create(cluster, namespace, "stranger", {ANNOTATION: FORGED})
        await asyncio.sleep(0.5)
        await said(run, ledger, "StatusPublished")


async def test_with_policy_observe_a_change_is_recorded_once_only(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="observe") as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        forge(cluster, pod, FORGED)
        await said(run, ledger, "StatusPublished", "DriftObserved")
        cluster.annotate_pod(namespace, "web", {"other": "words"})
        await asyncio.sleep(0.5)
        await said(run, ledger, "StatusPublished", "DriftObserved")
    assert text_of(cluster, pod) == FORGED


POLICIES: dict[str, str] = dict(zip(NETWORKS, ("repair", "observe", "off"), strict=True))


def read_status(path: Path) -> list[dict[str, Any]]:
    """Return the elements of the status in the file."""
    return json.loads(json.loads(path.read_text())["annotations"][ANNOTATION])


def write_status(path: Path, elements: list[dict[str, Any]]) -> None:
    """Write *elements* to the file in its own format."""
    status = json.loads(path.read_text())
    status["annotations"][ANNOTATION] = json.dumps(elements)
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode(status) + b"\n")
    draft.rename(path)


@pytest.mark.parametrize(
    ("edited", "then"),
    [
        (NETWORKS[:1], ("DriftObserved", "StatusPublished")),
        (NETWORKS[1:2], ("DriftObserved",)),
        (NETWORKS[2:], ()),
        (NETWORKS[1:], ("DriftObserved",)),
        (NETWORKS, ("DriftObserved", "StatusPublished")),
    ],
)
async def test_the_changed_networks_decide_on_the_policy(
    ledger: MemoryLedger, tmp_path: Path, edited: Sequence[str], then: Sequence[str]
) -> None:
    pod, path = Pod("shop", "web", "u"), tmp_path / "status/shop/web.json"
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path), keep=POLICIES.__getitem__) as run:
        for event in Node().attach(BOX, pod, NETWORKS):
            await ledger.append(event)
        await said(run, ledger, "StatusPublished")
        right = read_status(path)
        assert [element["name"] for element in right] == list(NETWORKS)
        wrong = [element | {"ips": ["203.0.113.1"]} if element["name"] in edited else element for element in right]
        write_status(path, wrong)
        await said(run, ledger, "StatusPublished", *then)
        await asyncio.sleep(0.5)
        await said(run, ledger, "StatusPublished", *then)
        assert read_status(path) == (right if "StatusPublished" in then else wrong)


async def test_another_controller_causes_backoff_and_a_pod_event(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod, warned = create(cluster, namespace), list[PodEvent]()
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair", warn=warned.append) as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 6.0:
            if text_of(cluster, pod) != FORGED:
                forge(cluster, pod, FORGED)
            await asyncio.sleep(0.05)
        restored = run.value("status_restored_total")
        assert run.value("status_contested") == 1
    assert restored is not None
    assert 3 <= restored <= 4  # at once, then after 1, 2 and 4 seconds
    (warning,) = warned
    assert (warning.pod, warning.reason) == (pod, "NetworkStatusContested")
    assert f"{namespace}/web" in warning.message


async def test_a_recreated_pod_is_another_pod(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        cluster.delete_pod(namespace, "web")
        successor = create(cluster, namespace)
        await asyncio.sleep(0.5)
        await said(run, ledger, "StatusPublished")
    assert text_of(cluster, successor) is None


async def test_the_watch_continues_after_an_api_server_restart(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation, keep="repair") as run:
        await attach(ledger, pod)
        await said(run, ledger, "StatusPublished")
        cluster.kill_api()
        cluster.start_api(WITH_PUBLISHER)
        cluster.await_api()
        forge(cluster, pod, FORGED)
        await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")
    assert text_of(cluster, pod) != FORGED


async def test_the_watch_of_a_node_omits_pods_on_other_nodes(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    create(cluster, namespace, "here")
    names = [found.pod.name async for found, _ in AnnotationWatch(annotation.api, "node-9").read_all() if found]
    assert names == []
    names = [found.pod.name async for found, _ in AnnotationWatch(annotation.api, "node-1").read_all() if found]
    assert "here" in names


async def test_a_list_of_many_pages_is_complete(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.status.kubernetes import annotation_watch  # noqa: PLC0415

    monkeypatch.setattr(annotation_watch, "_PAGE", 3)
    for number in range(10):
        create(cluster, namespace, f"web-{number}")
    seen = [found.pod.name async for found in annotation.read_all() if found.pod.namespace == namespace]
    assert seen == [f"web-{number}" for number in range(10)]


@pytest.mark.parametrize("content", ["{", '{"annotations": {}}', None])
async def test_a_changed_or_removed_status_file_is_restored(
    ledger: MemoryLedger, tmp_path: Path, content: str | None
) -> None:
    pod, path, node = Pod("shop", "web", "u"), tmp_path / "status/shop/web.json", Node()
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path), keep="repair") as run:
        for event in node.attach(BOX, pod):
            await ledger.append(event)
        await said(run, ledger, "StatusPublished")
        right = path.read_text()
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")
        assert path.read_text() == right
        for event in node.detach(BOX, pod):
            await ledger.append(event)
        await run.until(lambda: not path.exists())
        await asyncio.sleep(0.3)
        await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")


@pytest.mark.parametrize("content", ['{"annotations": {}}', None])
async def test_status_of_a_pod_that_was_adopted_is_restored(
    ledger: MemoryLedger, tmp_path: Path, content: str | None
) -> None:
    multus = MultusNode(tmp_path / "multus")
    multus.write(replace(POD, networks=POD.networks[:2]))
    (files,) = read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir).sandboxes
    adoption = judge(files, FoundNamespace(netns="/run/netns/x", links=frozenset({"eth0", "net1"})))
    assert isinstance(adoption, Adoption)
    path = tmp_path / "status/default/web.json"
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path), keep="repair") as run:
        await ledger.append(Node().event(adoption.data, adoption.container_id))
        await said(run, ledger, "StatusPublished")
        right = path.read_text()
        assert [each["interface"] for each in json.loads(json.loads(right)["annotations"][ANNOTATION])] == [
            "eth0",
            "net1",
        ]
        path.unlink() if content is None else path.write_text(content)
        await said(run, ledger, "StatusPublished", "DriftObserved", "StatusPublished")
        assert path.read_text() == right


async def test_a_reattached_interface_with_a_new_result_is_published(ledger: MemoryLedger, tmp_path: Path) -> None:
    pod, path, node = Pod("shop", "web", "u"), tmp_path / "status/shop/web.json", Node()
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path)) as run:
        attached = list(node.attach(BOX, pod))
        for event in attached:
            await ledger.append(event)
        await said(run, ledger, "StatusPublished")
        changed = result("eth0", BOX, 0).replace("02:00:00:00:00:02", "02:00:00:00:00:99")
        data = InterfaceAttached(network=NetworkName(NETWORKS[0]), ifname=ETH0, result=changed, seconds=0.1)
        same = replace(data, result=result("eth0", BOX, 0))
        await ledger.append(node.event(data, BOX, attached[0].id))
        await said(run, ledger, "StatusPublished", "StatusPublished")
    assert "02:00:00:00:00:99" in json.loads(path.read_text())["annotations"][ANNOTATION]
    await ledger.append(node.event(same, BOX, attached[0].id))  # while no reconciler runs
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path)) as run:
        await said(run, ledger, "StatusPublished", "StatusPublished", "StatusPublished")
    assert "02:00:00:00:00:99" not in path.read_text()
