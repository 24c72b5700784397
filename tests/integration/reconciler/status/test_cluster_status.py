"""From the ledger to the pod's annotation at a real API server: one write per attach, despite outages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.ledger.memory import MemoryLedger
from events.schema import Event, Pod, StatusPublished, StatusPublishFailed
from reconciler.status.kubernetes.annotation_sink import AnnotationSink
from reconciler.status.text import ANNOTATION
from tests.support.kube.publishing import WITH_PUBLISHER, connected, create, metadata
from tests.support.kube.server import NOBODY, KubeServer
from tests.support.reconciler.running import Running, running
from tests.support.stories.node import Node
from tests.support.waiting import BOUND

BOX, OTHER = "a" * 64, "b" * 64
MIRROR = {"kubernetes.io/config.source": "file", "kubernetes.io/config.mirror": "0123456789abcdef"}


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


async def attach(ledger: MemoryLedger, pod: Pod, box: str = BOX, node: Node | None = None) -> None:
    for event in (node or Node()).attach(box, pod):
        await ledger.append(event)


async def until_said(run: Running, ledger: MemoryLedger, enough: Callable[[list[Event]], bool]) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(BOUND):
        while not enough(found):
            await asyncio.wait({run.task}, timeout=0.01)
            found = [stored.event async for stored in ledger.read("plumbline.ev.-.>")]
    return found


def published(events: list[Event]) -> bool:
    return any(isinstance(event.data, StatusPublished) for event in events)


async def test_an_attach_costs_one_write_and_a_restart_none(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation) as run:
        await attach(ledger, pod)
        (event,) = await until_said(run, ledger, published)
        await run.at(await ledger.last_sequence())
    found = metadata(cluster, pod)
    assert isinstance(event.data, StatusPublished)
    assert found["annotations"][ANNOTATION] == event.data.text
    async with running(ledger, tmp_path / "y.db", annotation) as run:  # also with a new database
        await run.at(await ledger.last_sequence())
        other = create(cluster, namespace, "other")
        await attach(ledger, other, OTHER, Node("node-2"))
        await until_said(run, ledger, lambda events: len(events) == 2)
    assert metadata(cluster, pod)["resourceVersion"] == found["resourceVersion"]
    assert cluster.etcd.writes("pods", namespace, "web") == 2  # created and published


async def test_a_static_pod_gets_the_status_at_its_mirror_pod(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    """The runtime's UID of a static pod is unknown to the API server; the plan has its mirror pod's UID."""
    mirror = create(cluster, namespace, annotations=MIRROR)
    asked = replace(mirror, uid="0123456789abcdef")
    async with running(ledger, tmp_path / "x.db", annotation) as run:
        requested, planned, *rest = Node().attach(BOX, asked)
        for event in (requested, replace(planned, data=replace(planned.data, pod=mirror)), *rest):
            await ledger.append(event)
        await until_said(run, ledger, published)
    assert ANNOTATION in metadata(cluster, mirror)["annotations"]


async def test_a_pod_deleted_during_attach_gets_one_failure_record(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with running(ledger, tmp_path / "x.db", annotation) as run:
        *begun, completed = Node().attach(BOX, pod)
        for event in begun:
            await ledger.append(event)
        cluster.delete_pod(namespace, "web")
        await ledger.append(completed)
        (failed,) = await until_said(run, ledger, bool)
    assert isinstance(failed.data, StatusPublishFailed)
    assert failed.data.final


async def test_a_missed_status_is_written_once_after_an_outage(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    cluster.kill_api()
    async with running(ledger, tmp_path / "x.db", annotation) as run:
        try:
            await attach(ledger, pod)
            (failed,) = await until_said(run, ledger, bool)
            assert isinstance(failed.data, StatusPublishFailed)
            assert not failed.data.final
        finally:
            cluster.start_api(WITH_PUBLISHER)
            cluster.await_api()
        events = await until_said(run, ledger, published)
    assert [event.type for event in events] == ["StatusPublishFailed", "StatusPublished"]
    assert cluster.etcd.writes("pods", namespace, "web") == 2
    assert ANNOTATION in metadata(cluster, pod)["annotations"]


async def test_a_right_granted_later_is_used(
    cluster: KubeServer, namespace: str, ledger: MemoryLedger, tmp_path: Path
) -> None:
    pod = create(cluster, namespace)
    async with (
        connected(cluster, tmp_path, NOBODY) as annotation,
        running(ledger, tmp_path / "x.db", annotation) as run,
    ):
        await attach(ledger, pod)
        await until_said(run, ledger, bool)
        cluster.ask(
            "POST",
            f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
            {
                "metadata": {"name": "late"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "publisher"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}],
            },
        )
        events = await until_said(run, ledger, published)
    assert [event.type for event in events] == ["StatusPublishFailed", "StatusPublished"]
