"""The API server stops, restarts, loses its history, refuses a token: what the source serves meanwhile."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeworker.planning.cluster.apiserver import source as apiserver_source
from nodeworker.planning.cluster.apiserver.credentials import Credentials, from_kubeconfig
from nodeworker.planning.cluster.apiserver.decode import PODS
from nodeworker.planning.cluster.apiserver.disk_cache import DiskCache
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.objects import Nad, PodObject
from tests.support.kube.manifests import nad, write_kubeconfig
from tests.support.kube.server import NOBODY, TOKENS, WORKER, KubeServer
from tests.support.kube.source_harness import running, selecting, unique, worker
from tests.support.waiting import until

EXPIRING = "expiring-token"


def nowhere(folder: Path) -> Credentials:
    """Return credentials for an address without a server."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    return from_kubeconfig(
        write_kubeconfig(folder / "nowhere", {"server": f"https://127.0.0.1:{port}"}, {"token": "a"})
    )


async def test_source_without_api_server_is_unavailable(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(nowhere(tmp_path), "any", tmp_path, synced=False) as source:
            assert not await source.ready(0.1)
            assert not source.connected
            async with asyncio.timeout(1):  # there is no watch to wait for
                with pytest.raises(
                    SourceUnavailableError, match=r"https://127\.0\.0\.1:\d+ can't be reached: connecting"
                ):
                    await source.pod("default", "a")
            with pytest.raises(SourceUnavailableError):
                await source.nad("default", "a")
            await until(lambda: all(watch.errors >= 3 for watch in source.watches))
    warned = [
        log["resource"] for log in logs if log["event"] == "cluster_watch_failed" and log["log_level"] == "warning"
    ]
    assert sorted(warned) == ["network-attachment-definitions", "pods"]


async def test_restarted_worker_serves_from_the_disk_copy(kube: KubeServer, tmp_path: Path) -> None:
    node, name = unique("node"), unique("nad")
    uid = kube.create_pod("default", node, node, selecting("a"))
    kube.create_nad("default", name, '{"type": "macvlan"}')
    async with running(worker(kube, tmp_path), node, tmp_path):
        pass
    async with running(nowhere(tmp_path), node, tmp_path, synced=False) as source:
        assert await source.pod("default", node, uid) == PodObject("default", node, uid, selecting("a"))
        assert await source.nad("default", name) == Nad("default", name, '{"type": "macvlan"}')
        with pytest.raises(SourceUnavailableError):
            await source.pod("default", node, "another-incarnation")
        assert not source.synced


async def test_disk_copy_is_updated_when_the_api_server_is_back(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    kube.create_pod("default", node, node)
    async with running(worker(kube, tmp_path), node, tmp_path):
        pass
    kube.delete_pod("default", node)
    async with running(worker(kube, tmp_path), node, tmp_path, pod_wait=0.1) as source:
        assert await source.pod("default", node) is None


async def test_cache_survives_an_api_server_outage_and_catches_up(kube: KubeServer, tmp_path: Path) -> None:
    node, old, new = unique("node"), unique("nad"), unique("missed")
    kube.create_namespace(old)
    kube.create_nad(old, old, "{}")
    uid = kube.create_pod("default", node, node, selecting("a"))
    with capture_logs() as logs:
        async with running(worker(kube, tmp_path), node, tmp_path, pod_wait=60.0) as source:
            pods, nads = source.watches
            waiting = asyncio.create_task(source.pod("default", "on-its-way"))
            await asyncio.sleep(0)
            kube.kill_api()
            # The watch is gone, so the wait for that pod has ended.
            async with asyncio.timeout(40):
                with pytest.raises(SourceUnavailableError, match="can't be reached"):
                    await waiting
            await until(lambda: not pods.connected and not nads.connected)
            assert await source.pod("default", node) == PodObject("default", node, uid, selecting("a"))
            assert await source.nad(old, old) == Nad(old, old, "{}")
            with pytest.raises(SourceUnavailableError, match="can't be reached"):
                await source.pod("default", "unknown")
            # Changes meanwhile are not in the cache of the restarted API server: it answers 410.
            kube.etcd.forget_nads(old)
            kube.etcd.store_nads([nad("default", new, '{"type": "bridge"}')])
            kube.start_api()
            await asyncio.to_thread(kube.await_api)
            await until(lambda: source.connected and nads.relists > 0)
            assert await source.nad("default", new) == Nad("default", new, '{"type": "bridge"}')
            assert await source.nad(old, old) is None
            kube.create_pod("default", f"{node}-later", node)
            await until(lambda: len(pods) == 2)
    events = [log["event"] for log in logs]
    assert "cluster_watch_expired" in events
    assert "cluster_watch_recovered" in events


async def test_copy_is_written_while_the_worker_runs(
    kube: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver_source, "_COPY_EVERY", 0.01)
    node = unique("node")
    async with running(worker(kube, tmp_path), node, tmp_path):
        kube.create_pod("default", node, node)
        copy = DiskCache(tmp_path / "pods.json", PODS, f"pods of node {node}")
        await until(lambda: [pod.name for pod in copy.load()] == [node])


async def test_failed_copy_is_logged_once_and_stops_nothing(
    kube: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver_source, "_COPY_EVERY", 0.01)
    node = unique("node")
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        async with running(worker(kube, tmp_path), node, tmp_path / "file") as source:
            for count in range(1, 4):
                kube.create_pod("default", f"{node}-{count}", node)
                await until(lambda count=count: len(source.watches[0]) == count)
            await until(lambda: any(log["event"] == "cluster_copy_failed" for log in logs))
    failures = [log["resource"] for log in logs if log["event"] == "cluster_copy_failed"]
    assert len(failures) == len(set(failures)) >= 1


async def test_expired_token_is_reported_and_its_renewal_used(kube: KubeServer, tmp_path: Path) -> None:
    node = unique("node")
    kube.kill_api()
    kube.start_api({**TOKENS, EXPIRING: ("worker", "")})
    kube.await_api()
    kube.create_pod("default", node, node)
    token = tmp_path / "token"
    token.write_text(EXPIRING)
    with capture_logs() as logs:
        async with running(worker(kube, tmp_path, tokenFile=str(token)), node, tmp_path) as source:
            kube.kill_api()
            kube.start_api()
            await asyncio.to_thread(kube.await_api)
            await until(lambda: any("401 Unauthorized" in log.get("error", "") for log in logs))
            with pytest.raises(SourceUnavailableError, match=rf"credentials of {token} .*renew them"):
                await source.nad("default", "unknown")
            assert await source.pod("default", node) is not None
            # As the kubelet does it: rename another file to the path.
            renewed = tmp_path / "renewed"
            renewed.write_text(WORKER)
            renewed.replace(token)
            assert await source.nad("default", "unknown") is None
            await until(lambda: source.connected)


async def test_token_of_another_identity_is_reported(kube: KubeServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(NOBODY)
    credentials = worker(kube, tmp_path, tokenFile=str(token))
    async with running(credentials, "any", tmp_path, synced=False) as source:
        with pytest.raises(SourceUnavailableError, match="403 Forbidden"):
            await source.nad("default", "unknown")
        token.write_text(WORKER)
        assert await source.ready(10)


async def test_crd_that_is_installed_later_is_watched(kube: KubeServer, tmp_path: Path) -> None:
    name = unique("nad")
    kube.uninstall_crd()
    try:
        with capture_logs() as logs:
            async with running(worker(kube, tmp_path), "any", tmp_path, synced=False) as source:
                _, nads = source.watches
                await until(lambda: nads.errors > 0)
                assert await source.nad("default", name) is None
                assert any("CustomResourceDefinition is not installed" in log.get("error", "") for log in logs)
                kube.install_crd()
                kube.create_nad("default", name, "{}")
                await until(lambda: nads.connected)
                assert await source.nad("default", name) == Nad("default", name, "{}")
    finally:
        if not kube.has_crd():
            kube.install_crd()
