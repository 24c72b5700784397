"""The assignment of devices to attachments, from the pod's devices to the plugins' configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events.schema import AttachPlanned, AttachRequested, ErrorClass, Failure, IfName, PlannedAttachment, Pod, RequestId
from nodeworker.errors import RequestFailedError
from nodeworker.planning.devices.source import Devices, DevicesUnknownError, find_devices
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS
from nodeworker.planning.resolve.device_assignment import MAX_ID, info_path, is_device_id
from nodeworker.planning.resolve.netconf import NodeDefaults, RuntimeNetConf, parse_netconf
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, NetworkRef, PodObject
from nodeworker.planning.resolve.plan import make_plan
from nodeworker.settings import DeviceSettings

SRIOV, RDMA = "vendor.example/sriov", "vendor.example/rdma"
POD = Pod("shop", "web", "uid-1")
CAPABLE = {"deviceID": True, "CNIDeviceInfoFile": True}


def nad(name: str, resource: str = SRIOV, *plugins: dict[str, Any], namespace: str = "shop") -> Nad:
    config = {"cniVersion": "1.0.0", "plugins": plugins or [{"type": "sriov", "capabilities": CAPABLE}]}
    return Nad(namespace, name, json.dumps(config), {RESOURCE_NAME: resource} if resource else {})


class Given:
    """A pod, its networks, and the configurations of node and runtime."""

    def __init__(
        self, networks: Any, *nads: Nad, default: str = "", cluster: str = "", runtime: dict[str, str] | None = None
    ) -> None:
        text = networks if isinstance(networks, str) else json.dumps(networks)
        annotations = {NETWORKS: text, DEFAULT_NETWORK: default}
        self.pod = PodObject("shop", "web", "uid-1", annotations)
        self.networks = {NetworkRef(nad.namespace, nad.name): nad for nad in nads}
        self.networks |= {NetworkRef(nad.namespace, nad.name, on_disk=True): nad for nad in nads}
        bridge = {"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}
        network = {"clusterNetwork": cluster} if cluster else {"delegates": [bridge]}
        self.config = json.dumps({"cniVersion": "1.0.0", "name": "p", "runtimeConfig": runtime or {}, **network})

    @property
    def conf(self) -> RuntimeNetConf:
        return parse_netconf(self.config, NodeDefaults())

    def planned(self, devices: Devices, **options: Any) -> AttachPlanned:
        request = AttachRequested(
            request=RequestId("r"), ifname=IfName("eth0"), netns="/n", config=self.config, path="/p", pod=POD
        )
        return make_plan(request, "c1", self.conf, self.pod, self.networks, devices, **options)

    def refused(self, devices: Devices) -> Failure:
        with pytest.raises(RequestFailedError) as caught:
            self.planned(devices)
        return caught.value.failure


def devices_of(planned: AttachPlanned) -> list[tuple[str, str]]:
    return [(attachment.resource, attachment.device) for attachment in planned.attachments]


def confs(attachment: PlannedAttachment) -> list[dict[str, Any]]:
    return [json.loads(plugin) for plugin in attachment.plugins]


def test_each_use_gets_the_next_device() -> None:
    given = Given("a,b,plain,a,c", nad("a"), nad("b", RDMA), nad("c"), nad("plain", "", {"type": "macvlan"}))
    planned = given.planned({SRIOV: ("v9", "v0", "v5"), RDMA: ("r0",)})
    assert devices_of(planned) == [("", ""), (SRIOV, "v9"), (RDMA, "r0"), ("", ""), (SRIOV, "v0"), (SRIOV, "v5")]


def test_default_network_override_uses_the_same_devices() -> None:
    given = Given("a", nad("a"), nad("fast", namespace="kube-system"), default="fast")
    assert devices_of(given.planned({SRIOV: ("v0", "v1")})) == [(SRIOV, "v0"), (SRIOV, "v1")]


def test_node_networks_use_devices_too() -> None:
    given = Given("a", nad("a"), nad("pods", namespace="kube-system"), cluster="pods")
    assert devices_of(given.planned({SRIOV: ("v0", "v1")})) == [(SRIOV, "v0"), (SRIOV, "v1")]


def test_too_few_devices_error_names_network_and_counts() -> None:
    given = Given("a,a,a", nad("a"))
    failure = given.refused({SRIOV: ("v0", "v1")})
    assert (failure.error_class, failure.code, failure.network) == (ErrorClass.DEVICE_UNAVAILABLE, 11, "shop/a")
    assert failure.message == (
        f"network shop/a needs a device of resource {SRIOV}, of which the pod has 2 while its networks "
        f"use 3; request 3 of {SRIOV} in the pod's containers or select fewer such networks"
    )
    assert given.refused({RDMA: ("r0",)}).message == (
        f"network shop/a needs a device of resource {SRIOV}, of which the pod has 0 while its networks "
        f"use 3; request 3 of {SRIOV} in the pod's containers or select fewer such networks; if they do request it, no "
        f"device plugin serves it: correct the annotation {RESOURCE_NAME}"
    )


def test_resource_that_no_device_plugin_serves_is_ignored() -> None:
    """KubeVirt's bridge-marker: the resource is for the scheduler, and the kubelet lists other devices only."""
    chain = {"type": "bridge", "bridge": "br1"}, {"type": "tuning"}
    given = Given("a,a", nad("a", "bridge.network.kubevirt.io/br1", *chain))
    planned = given.planned({"devices.kubevirt.io/kvm": ("kvm1",), "devices.kubevirt.io/tun": ("tun1",)})
    marked = ("bridge.network.kubevirt.io/br1", "")
    assert devices_of(planned) == [("", ""), marked, marked]
    assert all("deviceID" not in conf and "pciBusID" not in conf for a in planned.attachments for conf in confs(a))
    assert [attachment.device_info for attachment in planned.attachments] == [""] * 3


def test_device_reaches_plugins_by_key_and_capability() -> None:
    chain = (
        {"type": "sriov", "capabilities": {"deviceID": True}},
        {"type": "tuning"},
        {"type": "x", "capabilities": CAPABLE},
    )
    (_, attachment) = Given("a", nad("a", SRIOV, *chain)).planned({SRIOV: ("0000:03:02.1",)}).attachments
    path = "/var/run/k8s.cni.cncf.io/devinfo/cni/shop-a-c1_net1"
    assert attachment.device_info == path
    sriov, tuning, last = confs(attachment)
    for conf in (sriov, tuning, last):
        assert (conf["deviceID"], conf["pciBusID"]) == ("0000:03:02.1", "0000:03:02.1")
    assert sriov["runtimeConfig"] == {"deviceID": "0000:03:02.1"}
    assert "runtimeConfig" not in tuning
    assert last["runtimeConfig"] == {"deviceID": "0000:03:02.1", "CNIDeviceInfoFile": path}


def test_device_info_path_reaches_plugins_that_declare_it() -> None:
    given = Given("a,b", nad("a", "", {"type": "user", "capabilities": CAPABLE}), nad("b", "", {"type": "macvlan"}))
    (_, user, plain) = given.planned({}, info_folder="/devinfo").attachments
    assert user.device_info == "/devinfo/cni/shop-a-c1_net1"
    assert confs(user)[0]["runtimeConfig"] == {"CNIDeviceInfoFile": "/devinfo/cni/shop-a-c1_net1"}
    assert (plain.device, plain.device_info) == ("", "")


def test_annotation_device_is_used_without_allocation() -> None:
    given = Given([{"name": "a", "deviceID": "mine"}], nad("a"))
    (_, attachment) = given.planned({}).attachments
    (conf,) = confs(attachment)
    assert (attachment.resource, attachment.device) == (SRIOV, "mine")
    assert conf["runtimeConfig"] == {"deviceID": "mine", "CNIDeviceInfoFile": attachment.device_info}
    assert "deviceID" not in conf  # the administrator's key is for allocated devices
    assert "pciBusID" not in conf


def test_allocated_device_wins() -> None:
    given = Given([{"name": "a", "deviceID": "mine"}], nad("a"))
    (_, attachment) = given.planned({SRIOV: ("v0",)}).attachments
    assert attachment.device == "v0"
    assert confs(attachment)[0]["runtimeConfig"]["deviceID"] == "v0"
    runtime = {"deviceID": "other", "CNIDeviceInfoFile": "/etc/shadow"}
    given = Given("", nad("pods", namespace="kube-system"), cluster="pods", runtime=runtime)
    (first,) = given.planned({SRIOV: ("v0",)}).attachments
    assert confs(first)[0]["runtimeConfig"] == {"deviceID": "v0", "CNIDeviceInfoFile": first.device_info}


def test_device_id_with_a_path_is_refused() -> None:
    failure = Given([{"name": "a", "deviceID": "../../x"}], nad("a")).refused({})
    assert failure.error_class is ErrorClass.INVALID_ANNOTATION
    assert '"../../x"' in failure.message


@pytest.mark.parametrize("claim", ["sf", "web.claim-1", "c" * 253])
def test_resource_may_be_the_name_of_a_claim(claim: str) -> None:
    assert devices_of(Given("a", nad("a", claim)).planned({claim: ("eth1",)}))[1] == (claim, "eth1")


@pytest.mark.parametrize("resource", ["a/b/c", "../x", "vendor.example/", "/x", "Vendor/x", "a b", "X" * 64])
def test_invalid_resource_name_is_an_error_of_the_network(resource: str) -> None:
    failure = Given("a", nad("a", resource)).refused({})
    assert (failure.error_class, failure.network) == (ErrorClass.INVALID_CONFIG, "shop/a")


def test_a_blank_resource_is_none() -> None:
    assert devices_of(Given("a", nad("a", " ")).planned({})) == [("", ""), ("", "")]


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("0000:03:02.1", True),
        ("mlx5_core.sf.4", True),
        ("GPU-1::0", True),
        ("x" * MAX_ID, True),
        ("", False),
        ("x" * (MAX_ID + 1), False),
        ("a/b", False),
        ("..", False),
        ("a b", False),
        ("a\n", False),
        ("a\0", False),
        ("é", False),
    ],
)
def test_a_device_id_can_be_part_of_a_files_name(text: str, usable: bool) -> None:
    assert is_device_id(text) is usable


def test_the_name_of_a_file_never_leaves_its_folder_nor_grows_too_long() -> None:
    assert info_path("/d", "../../etc", "c", "a/b") == "/d/cni/..-..-etc-c_a-b"
    longest = info_path("/d", "n" * 63 + "/" + "m" * 253, "c" * 64, "i" * 15).removeprefix("/d/cni/")
    assert len(longest) == 255
    assert longest.endswith("-" + "c" * 64 + "_" + "i" * 15)


class Known:
    """A source with the devices of one pod."""

    def __init__(self, devices: Devices | None = None) -> None:
        self.asked: list[Pod] = []
        self._devices = devices

    async def devices(self, pod: Pod) -> Devices:
        self.asked.append(pod)
        if self._devices is None:
            raise DevicesUnknownError("the kubelet sleeps")
        return self._devices


async def found(given: Given, *sources: Known, asked: Pod = POD) -> Devices:
    return await find_devices(given.conf, asked, given.pod, given.networks, sources)


async def test_no_source_is_asked_without_resources() -> None:
    kubelet = Known({SRIOV: ("v0",)})
    assert await found(Given("plain", nad("plain", "")), kubelet) == {}
    assert not kubelet.asked


async def test_second_source_is_asked_only_if_needed() -> None:
    kubelet, claims = Known({SRIOV: ("v0", "v1"), RDMA: ("a strange/ID",)}), Known({})
    assert await found(Given("a,a", nad("a")), kubelet, claims) == {SRIOV: ("v0", "v1")}
    assert (kubelet.asked, claims.asked) == ([POD], [])


async def test_second_source_supplies_the_rest() -> None:
    given = Given("a,a,b", nad("a"), nad("b", RDMA))
    kubelet, claims = Known({SRIOV: ("v1", "v1")}), Known({SRIOV: ("v0", "v1"), RDMA: ("r0",)})
    assert await found(given, kubelet, claims) == {SRIOV: ("v1", "v0"), RDMA: ("r0",)}


async def test_sources_get_the_runtimes_uid() -> None:
    kubelet = Known({SRIOV: ("v0",)})
    given = Given("a", nad("a"))
    given.pod = PodObject("shop", "web", "of-the-mirror", given.pod.annotations, static=True)
    await found(given, kubelet, asked=Pod("shop", "web", "of-the-file"))
    await found(given, kubelet, asked=Pod("shop", "web"))
    assert [pod.uid for pod in kubelet.asked] == ["of-the-file", "of-the-mirror"]


async def test_failed_source_fails_the_request() -> None:
    with pytest.raises(RequestFailedError) as caught:
        await found(Given("a,b", nad("a"), nad("b", RDMA)), Known())
    failure = caught.value.failure
    assert (failure.error_class, failure.code) == (ErrorClass.DEVICE_UNAVAILABLE, 11)
    assert failure.message == (
        f"its networks use devices of {SRIOV}, {RDMA}, but the pod's devices are unknown: the "
        f"kubelet sleeps; the runtime will retry"
    )


@pytest.mark.parametrize("device", ["../../etc/passwd", "", "a\nb", "x" * 1000])
async def test_invalid_device_id_is_refused(device: str) -> None:
    with pytest.raises(RequestFailedError, match="is not a usable device ID"):
        await found(Given("a", nad("a")), Known({SRIOV: (device,)}))


def test_info_folder_must_be_absolute() -> None:
    with pytest.raises(ValueError, match="infoFolder is 'devinfo', not an absolute path"):
        DeviceSettings(info_folder="devinfo")
