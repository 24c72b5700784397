"""The Kubernetes source with a real API server: cached, awaited and requested objects."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeworker.planning.cluster.apiserver.credentials import from_kubeconfig
from nodeworker.planning.cluster.apiserver.source import Kubernetes
from nodeworker.planning.cluster.apiserver.watch import WatchTimings
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, PodObject
from tests.support.kube.manifests import nad
from tests.support.kube.server import NOBODY, KubeServer
from tests.support.kube.source_harness import BRISK, running, selecting, unique, worker
from tests.support.waiting import until


async def test_only_needed_fields_of_this_nodes_pods_are_cached(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    annotations = {NETWORKS: "a", DEFAULT_NETWORK: "b"}
    uid = kube.create_pod("default", f"{node}-mine", node, {**annotations, "example.org/other": "x" * 10_000})
    kube.create_pod("default", f"{node}-theirs", "elsewhere", annotations)
    async with running(worker(kube, tmp_path), node, tmp_path) as source:
        pods, _ = source.watches
        assert len(pods) == 1
        found = await source.pod("default", f"{node}-mine")
        assert found == PodObject("default", f"{node}-mine", uid, annotations)
        assert await source.pod("default", f"{node}-mine") is found


async def test_nads_of_all_namespaces_are_cached(kube: KubeServer, tmp_path: Path) -> None:
    name = unique("nad")
    kube.create_namespace(name)
    kube.create_nad(name, name, '{"type": "macvlan"}', {RESOURCE_NAME: "vendor/device", "example.org/other": "x"})
    async with running(worker(kube, tmp_path), "any", tmp_path) as source:
        found = await source.nad(name, name)
        assert found == Nad(name, name, '{"type": "macvlan"}', {RESOURCE_NAME: "vendor/device"})
        assert await source.nad(name, name) is found


async def test_changes_reach_the_cache(kube: KubeServer, tmp_path: Path) -> None:
    node, name = unique("node"), unique("nad")
    async with running(worker(kube, tmp_path), node, tmp_path) as source:
        pods, nads = source.watches
        before = len(nads)
        kube.create_pod("default", node, node, selecting("a"))
        kube.create_nad("default", name, "{}")
        await until(lambda: len(pods) == 1 and len(nads) == before + 1)
        kube.annotate_pod("default", node, selecting("b"))
        kube.change_nad("default", name, '{"type": "bridge"}')

        async def changed() -> bool:
            pod, network = await source.pod("default", node), await source.nad("default", name)
            assert pod
            assert network
            return pod.annotations == selecting("b") and network.config == '{"type": "bridge"}'

        await until(changed)
        kube.delete_pod("default", node)
        kube.delete_nad("default", name)
        await until(lambda: len(pods) == 0 and len(nads) == before)
        assert (pods.relists, pods.errors, nads.relists, nads.errors) == (0, 0, 0, 0)


async def test_late_pod_is_awaited(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    # So long that the pod can't have been found by the request to the API server, which comes after the wait.
    async with running(worker(kube, tmp_path), node, tmp_path, pod_wait=60.0) as source:
        asked = [asyncio.create_task(source.pod("default", node)) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in asked)
        uid = await asyncio.to_thread(kube.create_pod, "default", node, node, selecting("a"))
        async with asyncio.timeout(40):
            assert {pod.uid for pod in await asyncio.gather(*asked) if pod} == {uid}


async def test_late_incarnation_of_a_pod_is_awaited(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    old = kube.create_pod("default", node, node, selecting("old"))
    async with running(worker(kube, tmp_path), node, tmp_path, pod_wait=60.0) as source:
        kube.delete_pod("default", node)
        new = kube.create_pod("default", node, node, selecting("new"))
        async with asyncio.timeout(40):
            found = await source.pod("default", node, new)
        assert found == PodObject("default", node, new, selecting("new"))
        assert old != new


async def test_static_pod_is_found_under_any_uid(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    kube.create_pod("default", node, node, {"kubernetes.io/config.source": "file"})
    async with running(worker(kube, tmp_path), node, tmp_path, pod_wait=60.0) as source:
        async with asyncio.timeout(40):
            found = await source.pod("default", node, "the-hash-that-the-runtime-knows")
        assert found
        assert found.static


async def test_missing_object_is_requested_and_none(kube: KubeServer, tmp_path: Path) -> None:
    async with running(worker(kube, tmp_path), "any", tmp_path, pod_wait=0.2) as source:
        began = time.monotonic()
        assert await source.pod("default", "absent") is None
        assert time.monotonic() - began >= 0.2
        assert await source.nad("default", "absent") is None
        assert await source.nad("absent", "absent") is None


async def test_uncached_object_is_requested(kube: KubeServer, tmp_path: Path) -> None:
    node, name = unique("node"), unique("nad")
    uid = kube.create_pod("default", node, node, selecting("a"))
    kube.create_nad("default", name, "{}")
    source = Kubernetes(worker(kube, tmp_path), node, tmp_path, pod_wait=60.0)
    async with asyncio.timeout(40):
        assert await source.pod("default", node) == PodObject("default", node, uid, selecting("a"))
        assert await source.nad("default", name) == Nad("default", name, "{}")
    assert not source.synced
    source.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a?watch=1", "a" * 254, "ä"])
async def test_impossible_name_is_none_without_a_request(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text('{"current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a"}}], '
                    '"clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}]}')  # fmt: skip
    source = Kubernetes(from_kubeconfig(path), "any", tmp_path)
    assert await source.pod("default", name) is None
    assert await source.nad("default", name) is None
    assert await source.nad(name, "a") is None


async def test_list_of_several_pages_is_complete(kube: KubeServer, tmp_path: Path) -> None:
    namespace = unique("pages")
    kube.create_namespace(namespace)
    for index in range(10):
        kube.create_nad(namespace, f"n{index}", f"{index}")
    timings = WatchTimings(page=3, first=BRISK.first)
    async with running(worker(kube, tmp_path), "any", tmp_path, timings=timings) as source:
        for index in range(10):
            assert await source.nad(namespace, f"n{index}") == Nad(namespace, f"n{index}", f"{index}")


async def test_ten_thousand_nads_are_watched(kube: KubeServer, tmp_path: Path) -> None:
    namespace = unique("many")
    config = '{"type": "macvlan", "master": "eth0", "ipam": {"type": "host-local"}}'
    kube.etcd.store_nads(nad(namespace, f"n{index}", config) for index in range(10_000))
    try:
        async with running(worker(kube, tmp_path), "any", tmp_path) as source:
            _, nads = source.watches
            before = len(nads)
            assert before >= 10_000
            assert await source.nad(namespace, "n9999") == Nad(namespace, "n9999", config)
            kube.create_nad("default", namespace, config)
            await until(lambda: len(nads) == before + 1)
            assert (nads.relists, nads.errors) == (0, 0)
    finally:
        kube.etcd.forget_nads(namespace)


async def test_nad_of_one_mebibyte_is_listed_and_watched(kube: KubeServer, tmp_path: Path) -> None:
    first, second = unique("large"), unique("large")
    config = "x" * 1024 * 1024
    kube.create_nad("default", first, config)
    try:
        async with running(worker(kube, tmp_path), "any", tmp_path) as source:
            _, nads = source.watches
            before = len(nads)
            kube.create_nad("default", second, config)
            await until(lambda: len(nads) == before + 1)
            for name in (first, second):
                found = await source.nad("default", name)
                assert found
                assert found.config == config
            assert nads.errors == 0
    finally:
        kube.delete_nad("default", first)
        kube.delete_nad("default", second)


async def test_ended_watch_continues_at_its_version(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    timings = WatchTimings(first=0.05, most=0.05, watch=1.0)
    async with running(worker(kube, tmp_path), node, tmp_path, timings=timings) as source:
        pods, _ = source.watches
        await until(lambda: not pods.connected)
        await until(lambda: pods.connected)
        kube.create_pod("default", node, node)
        await until(lambda: len(pods) == 1)
        assert (pods.relists, pods.errors) == (0, 0)


async def test_denied_access_names_the_missing_permission(kube: KubeServer, tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(worker(kube, tmp_path, token=NOBODY), "any", tmp_path, synced=False) as source:
            with pytest.raises(
                SourceUnavailableError, match=r"does not let the worker get pods .*nobody.* grant it get"
            ):
                await source.pod("default", "a")
            with pytest.raises(SourceUnavailableError, match="get network-attachment-definitions"):
                await source.nad("default", "a")
            await until(lambda: all(watch.errors >= 3 for watch in source.watches))
            assert not source.synced
    failures = [log for log in logs if log["event"] == "cluster_watch_failed" and log["log_level"] == "warning"]
    assert sorted(log["resource"] for log in failures) == ["network-attachment-definitions", "pods"]
    assert all("grant it get, list and watch" in log["error"] for log in failures)
