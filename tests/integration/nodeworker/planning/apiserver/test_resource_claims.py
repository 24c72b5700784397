"""The devices of a pod from its resource claims.

The API ``resource.k8s.io/v1`` is that of Kubernetes 1.34. If the available kube-apiserver is older, a fake server
answers instead, except for requests that the older one supports.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from events.schema import Pod
from nodeworker.planning.cluster.apiserver.api import Api
from nodeworker.planning.cluster.apiserver.credentials import from_kubeconfig
from nodeworker.planning.cluster.apiserver.resource_claims import DEVICE_ID, RESOURCE, Claims
from nodeworker.planning.devices.source import Devices, DevicesUnknownError
from tests.support.kube.fake_api import FakeApi, Reply, Request, fake_api, missing
from tests.support.kube.manifests import write_kubeconfig
from tests.support.kube.server import WORKER, KubeServer

POD = Pod("shop", "web", "uid-1")
SRIOV, RDMA = "vendor.example/sriov", "vendor.example/rdma"
DRIVER = "nic.vendor.example"


class Cluster:
    """The objects of the API server by path; lists by field selector."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.slices: list[dict[str, Any]] = []

    def pod(self, *claims: dict[str, str], uid: str = "uid-1", **status: Any) -> None:
        annotations = status.pop("annotations", {})
        self.objects["/api/v1/namespaces/shop/pods/web"] = {
            "metadata": {"name": "web", "namespace": "shop", "uid": uid, "annotations": annotations},
            "spec": {"containers": [{"name": "c"}], **({"resourceClaims": list(claims)} if claims else {})},
            "status": {"phase": "Pending", **status},
        }

    def claim(self, name: str, *devices: str, **keys: str) -> None:
        """A claim that has *devices*, each ``pool/device``."""
        results = [
            {"request": "nics", "driver": DRIVER, "pool": pool, "device": device, "shareID": None, **keys}
            for pool, device in (each.split("/") for each in devices)
        ]
        self.claim_of(name, results)

    def claim_of(self, name: str, results: list[dict[str, Any]]) -> None:
        status = {"reservedFor": [{"resource": "pods"}], "allocation": {"devices": {"results": results}}}
        self.objects[f"/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/{name}"] = {"status": status}

    def slice(
        self, pool: str, *devices: dict[str, Any], driver: str = DRIVER, node: str = "n1", generation: int = 1
    ) -> None:
        about = {"name": pool, "generation": generation, "resourceSliceCount": 1}
        self.slices.append({"spec": {"driver": driver, "nodeName": node, "pool": about, "devices": list(devices)}})

    async def serve(self, request: Request, reply: Reply) -> None:
        if request.path in self.objects:
            await reply.json(self.objects[request.path])
        elif request.path == "/apis/resource.k8s.io/v1/resourceslices":
            wanted = dict(each.split("=") for each in request.query["fieldSelector"].split(","))
            assert list(wanted) == ["spec.nodeName", "spec.driver"]
            chosen = [s for s in self.slices if [s["spec"]["nodeName"], s["spec"]["driver"]] == list(wanted.values())]
            await reply.json({"kind": "ResourceSliceList", "metadata": {}, "items": chosen})
        else:
            await missing(request, reply)


def device(name: str, device_id: str = "", resource: str = SRIOV) -> dict[str, Any]:
    known = {DEVICE_ID: device_id, RESOURCE: resource}
    attributes = {"vendor.example/numa": {"int": 1}, **{key: {"string": text} for key, text in known.items() if text}}
    return {"name": name, "attributes": attributes}


@asynccontextmanager
async def served(cluster: Cluster, folder: Path) -> AsyncGenerator[tuple[Claims, FakeApi], None]:
    async with fake_api(on_get=cluster.serve, on_get_pod=cluster.serve) as fake:
        api = Api(from_kubeconfig(write_kubeconfig(folder / "kubeconfig", {"server": fake.url}, {})), "test")
        try:
            yield Claims(api, "n1"), fake
        finally:
            api.close()


async def found(cluster: Cluster, folder: Path, pod: Pod = POD) -> Devices:
    async with served(cluster, folder) as (claims, _):
        return await claims.devices(pod)


async def refused(cluster: Cluster, folder: Path) -> str:
    with pytest.raises(DevicesUnknownError) as caught:
        await found(cluster, folder)
    return str(caught.value)


async def test_a_pod_without_claims_has_no_devices_and_costs_one_request(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod()
    async with served(cluster, tmp_path) as (claims, fake):
        assert await claims.devices(POD) == {}
        assert [request.path for request in fake.requests] == ["/api/v1/namespaces/shop/pods/web"]


async def test_devices_are_ordered_by_claim_and_allocation(tmp_path: Path) -> None:
    cluster = Cluster()
    made = [{"name": "templated", "resourceClaimName": "web-templated-x7"}, {"name": "none", "resourceClaimName": None}]
    cluster.pod(
        {"name": "templated", "resourceClaimTemplateName": "t"},
        {"name": "none", "resourceClaimTemplateName": "t"},
        {"name": "direct", "resourceClaimName": "shared"},
        resourceClaimStatuses=made,
    )
    cluster.claim("web-templated-x7", "p1/b", "p2/a")
    cluster.claim("shared", "p1/a", "p1/r")
    cluster.slice("p1", device("a", "0000:01:00.1"), device("b", "0000:01:00.2"))
    cluster.slice("p1", device("r", "roce0", RDMA))
    cluster.slice("p2", device("a", "0000:02:00.1"))
    async with served(cluster, tmp_path) as (claims, fake):
        assert await claims.devices(POD) == {SRIOV: ("0000:01:00.2", "0000:02:00.1", "0000:01:00.1"), RDMA: ("roce0",)}
        assert len(fake.asked("get")) == 3  # two claims, and one list for the one driver


async def test_devices_without_attributes_are_skipped(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod({"name": "c", "resourceClaimName": "c"})
    gpu = {"request": "gpus", "driver": "gpu.example", "pool": "p1", "device": "gpu0"}
    names = ("no-slice", "no-id", "no-resource", "no-attributes", "good")
    nics = [{"request": "nics", "driver": DRIVER, "pool": "p1", "device": name} for name in names]
    cluster.claim_of("c", [gpu, *nics])
    cluster.slice("p1", {"name": "gpu0"}, driver="gpu.example")
    cluster.slice("p1", device("no-id"), device("no-resource", "x", ""), {"name": "no-attributes"}, device("good", "y"))
    assert await found(cluster, tmp_path) == {SRIOV: ("y",)}


async def test_other_nodes_and_old_slices_are_ignored(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod({"name": "c", "resourceClaimName": "c"})
    cluster.claim("c", "p1/a", "p2/a")
    cluster.slice("p1", device("a", "new"), generation=12)
    cluster.slice("p1", device("a", "old"), generation=9)
    cluster.slice("p2", device("a", "elsewhere"), node="n2")
    assert await found(cluster, tmp_path) == {SRIOV: ("new",)}


def extended(cluster: Cluster, *mappings: tuple[str, str]) -> None:
    """Create a claim for extended resources, as the scheduler does."""
    requests = [{"containerName": "c", "resourceName": res, "requestName": name} for res, name in mappings]
    cluster.pod(extendedResourceClaimStatus={"resourceClaimName": "ext", "requestMappings": requests})


async def test_extended_resources_are_mapped_to_devices(tmp_path: Path) -> None:
    cluster = Cluster()
    extended(cluster, (RDMA, "container-0-request-1"), (SRIOV, "container-0-request-0"))
    results = [("container-0-request-0", "a"), ("container-0-request-0", "b"), ("container-0-request-1", "r")]
    cluster.claim_of("ext", [{"request": req, "driver": DRIVER, "pool": "p1", "device": dev} for req, dev in results])
    cluster.slice("p1", device("a", "v0"), device("b", "v1"), device("r", "r0", RDMA))
    assert await found(cluster, tmp_path) == {SRIOV: ("v0", "v1"), RDMA: ("r0",)}


async def test_mapping_that_contradicts_the_driver_is_an_error(tmp_path: Path) -> None:
    cluster = Cluster()
    extended(cluster, (RDMA, "nics"))
    cluster.claim("ext", "p1/a")
    cluster.slice("p1", device("a", "v0"))
    text = await refused(cluster, tmp_path)
    assert text.startswith(f"resource claim ext has device a for resource {RDMA}, but its attribute {RESOURCE} is")


async def test_mapping_without_device_is_an_error(tmp_path: Path) -> None:
    cluster = Cluster()
    extended(cluster, (SRIOV, "other"))
    cluster.claim("ext", "p1/a")
    assert await refused(cluster, tmp_path) == "resource claim ext has no device for the request other"


async def test_unallocated_claim_is_an_error(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod({"name": "c", "resourceClaimName": "c"})
    cluster.objects["/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/c"] = {"status": {}}
    assert await refused(cluster, tmp_path) == "resource claim shop/c has not been allocated"


async def test_missing_claim_is_an_error(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod({"name": "c", "resourceClaimName": "c"})
    text = await refused(cluster, tmp_path)
    assert "has no such resourceclaims" in text
    assert text.endswith("(/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/c)")


async def test_replaced_pod_gets_no_devices_of_its_successor(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod(uid="uid-2")
    assert await refused(cluster, tmp_path) == "the API server has pod shop/web under UID uid-2 instead of uid-1"


async def test_a_static_pod_has_no_claims(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.pod(uid="of-the-mirror", annotations={"kubernetes.io/config.source": "file"})
    assert await found(cluster, tmp_path) == {}


@pytest.mark.parametrize("body", [[], {}, {"metadata": {"uid": 3}, "spec": {}}])
async def test_unreadable_answer_is_an_error(tmp_path: Path, body: object) -> None:
    cluster = Cluster()
    cluster.objects["/api/v1/namespaces/shop/pods/web"] = body
    assert "pods/web can't be read" in await refused(cluster, tmp_path)


async def test_pod_without_claims_on_a_real_api_server_has_no_devices(kube: KubeServer, tmp_path: Path) -> None:
    kube.create_namespace("devices")
    uid = kube.create_pod("devices", "plain", "n1", {"example.org/any": "thing"})
    api = Api(from_kubeconfig(kube.kubeconfig(tmp_path / "kubeconfig", token=WORKER)), "test")
    try:
        assert await Claims(api, "n1").devices(Pod("devices", "plain", uid)) == {}
        with pytest.raises(DevicesUnknownError, match="has no such pods"):
            await Claims(api, "n1").devices(Pod("devices", "missing", uid))
    finally:
        api.close()
