"""The contract of every ``Source``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from nodeworker.planning.cluster.apiserver.source import Kubernetes
from nodeworker.planning.cluster.manifests import Manifests
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.resolve.annotation import NETWORKS
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, PodObject
from tests.support.kube.manifests import nad
from tests.support.kube.server import NADS, PODS, KubeServer
from tests.support.kube.source_harness import running, unique, worker
from tests.support.waiting import until

NODE = "contract-node"


class Folder:
    """A cluster that a test changes, and a source of it: here from manifests."""

    def __init__(self, folder: Path, source: Manifests) -> None:
        self._folder = folder
        self.source: Source = source

    def apply(self, manifest: dict[str, Any]) -> None:
        self._path(manifest).write_text(yaml.safe_dump(manifest))

    def delete(self, manifest: dict[str, Any]) -> None:
        self._path(manifest).unlink()

    def _path(self, manifest: dict[str, Any]) -> Path:
        return self._folder / f"{manifest['kind']}-{manifest['metadata']['name']}.yaml"


class Server:
    """The same on a real API server."""

    def __init__(self, kube: KubeServer, source: Kubernetes) -> None:
        self._kube = kube
        self.source: Source = source

    def apply(self, manifest: dict[str, Any]) -> None:
        self._kube.ask("POST", self._path(manifest), manifest)

    def delete(self, manifest: dict[str, Any]) -> None:
        self._kube.ask("DELETE", f"{self._path(manifest)}/{manifest['metadata']['name']}?gracePeriodSeconds=0")

    def _path(self, manifest: dict[str, Any]) -> str:
        return (PODS if manifest["kind"] == "Pod" else NADS).format("default")


Cluster: TypeAlias = Folder | Server


@pytest.fixture(params=["manifests", "kubernetes"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    if request.param == "manifests":
        source = Manifests(tmp_path)
        yield Folder(tmp_path, source)
        source.close()
        return
    kube: KubeServer = request.getfixturevalue("kube")
    async with running(worker(kube, tmp_path), NODE, tmp_path, pod_wait=0.1) as source:
        yield Server(kube, source)


def pod(name: str, annotations: dict[str, str]) -> dict[str, Any]:
    spec = {"nodeName": NODE, "containers": [{"name": "main", "image": "none"}]}
    metadata = {"namespace": "default", "name": name, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def found(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first result of *ask* that is not None."""

    async def is_there() -> bool:
        return await ask() is not None

    await until(is_there)
    return await ask()


async def test_pod_is_found_with_its_annotations(cluster: Cluster) -> None:
    name = unique("pod")
    cluster.apply(pod(name, {NETWORKS: "macvlan-conf"}))
    seen: PodObject = await found(lambda: cluster.source.pod("default", name))
    assert (seen.namespace, seen.name, seen.annotations, seen.static) == (
        "default",
        name,
        {NETWORKS: "macvlan-conf"},
        False,
    )


@pytest.mark.parametrize(("origin", "static"), [("file", True), ("http", True), ("api", False)])
async def test_static_pod_is_known_by_its_config_source(cluster: Cluster, origin: str, static: bool) -> None:
    name = unique("pod")
    cluster.apply(pod(name, {"kubernetes.io/config.source": origin}))
    seen: PodObject = await found(lambda: cluster.source.pod("default", name))
    assert seen.static is static


async def test_nad_is_found_with_configuration_and_resource(cluster: Cluster) -> None:
    name = unique("nad")
    cluster.apply(nad("default", name, '{"type": "macvlan"}', {RESOURCE_NAME: "vendor/device"}))
    seen = await found(lambda: cluster.source.nad("default", name))
    assert seen == Nad("default", name, '{"type": "macvlan"}', {RESOURCE_NAME: "vendor/device"})


async def test_nad_may_be_without_configuration(cluster: Cluster) -> None:
    name = unique("nad")
    cluster.apply(nad("default", name, None))
    assert await found(lambda: cluster.source.nad("default", name)) == Nad("default", name)


async def test_object_is_found_by_kind_namespace_and_name(cluster: Cluster) -> None:
    name = unique("pod")
    cluster.apply(pod(name, {}))
    await found(lambda: cluster.source.pod("default", name))
    assert await cluster.source.nad("default", name) is None
    assert await cluster.source.pod("kube-system", name) is None
    assert await cluster.source.pod("default", "another") is None


async def test_object_that_was_deleted_is_none(cluster: Cluster) -> None:
    name = unique("gone")
    manifests = [pod(name, {}), nad("default", name, "{}")]
    for manifest in manifests:
        cluster.apply(manifest)
    await found(lambda: cluster.source.pod("default", name))
    await found(lambda: cluster.source.nad("default", name))
    for manifest in manifests:
        cluster.delete(manifest)

    async def gone() -> bool:
        return await cluster.source.pod("default", name) is None and await cluster.source.nad("default", name) is None

    await until(gone)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A b"])
async def test_impossible_name_is_none(cluster: Cluster, name: str) -> None:
    assert await cluster.source.pod("default", name) is None
    assert await cluster.source.nad("default", name) is None
    assert await cluster.source.nad(name, "a") is None
