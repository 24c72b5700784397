"""Pods whose networks draw devices: from the kubelet's own protocol to the plugins' input and network-status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from events.schema import (
    AttachCompleted,
    AttachPlanned,
    AttachWarning,
    DriftKind,
    DriftRepaired,
    ErrorClass,
    InterfaceAttached,
    WarningKind,
)
from reconciler.status.text import pod_status
from tests.support.kube.kubelet import kubelet, pod
from tests.support.node.node import BRIDGE, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PLUGINS, PodSandbox
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually

SRIOV = "vendor.example/sriov"
CAPABLE = {"deviceID": True, "CNIDeviceInfoFile": True}


class DeviceNode:
    """A node with a kubelet that gives devices, and a plugin that stores its configuration."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.info = folder / "devinfo"
        self.stdin = folder / "stdin"
        self.stdin.mkdir()
        (self.info / "dp").mkdir(parents=True)
        node.plugin(
            "recording-macvlan",
            f"f={self.stdin}/$CNI_COMMAND-$CNI_IFNAME; cat > $f; exec {PLUGINS / 'macvlan'} < $f",
        )

    def device(self, device: str) -> dict[str, Any]:
        """Write the device plugin's file about *device*, and return its content."""
        written = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": device}}
        path = self.info / "dp" / f"vendor.example-sriov-{device}-device.json"
        path.write_text(json.dumps(written))
        return written

    def network(self, name: str, *chain: Mapping[str, Any], resource: str = SRIOV) -> None:
        """Define a network that draws from *resource*, with *chain* after the plugin that stores its configuration."""
        first = {**self.node.macvlan(), "type": "recording-macvlan", "capabilities": CAPABLE}
        del first["cniVersion"]
        self.node.nad(name, {"cniVersion": "1.0.0", "plugins": [first, *chain]}, resource)

    def stored_config(self, command: str, ifname: str) -> dict[str, Any]:
        """Return the configuration that the plugin was given."""
        return json.loads((self.stdin / f"{command}-{ifname}").read_text())

    def files(self) -> list[str]:
        """Return the names of the files that plugins were handed."""
        return sorted(path.name for path in (self.info / "cni").glob("*"))


@pytest.fixture
def devices(make_node: Any, tmp_path: Path) -> DeviceNode:
    node = make_node(
        devices={
            "podResources": str(tmp_path / "kubelet.sock"),
            "checkpoint": str(tmp_path / "checkpoint"),
            "infoFolder": str(tmp_path / "devinfo"),
        }
    )
    node.start()
    return DeviceNode(node, tmp_path)


def test_devices_reach_plugins_status_and_ledger_and_are_removed(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    written = {device: devices.device(device) for device in ("0000:03:02.1", "0000:03:02.0")}
    devices.network("fast", {"type": "tuning"})
    sandbox = node.pod("drawing", "fast,fast")
    with kubelet(tmp_path, pod("drawing", [(SRIOV, ["0000:03:02.1"])], [(SRIOV, ["0000:03:02.0"])])):
        answer = sandbox.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(sandbox)
    drawn = {"net1": "0000:03:02.1", "net2": "0000:03:02.0"}  # by container, not by name
    prefix = f"{devices.info}/cni/default-fast-{sandbox.container_id}_"
    for ifname, device in drawn.items():
        conf = devices.stored_config("ADD", ifname)
        assert (conf["deviceID"], conf["pciBusID"]) == (device, device)
        assert conf["runtimeConfig"] == {"deviceID": device, "CNIDeviceInfoFile": prefix + ifname}
        assert json.loads(Path(prefix + ifname).read_text()) == written[device]
    recorded = [e.data for e in node.events_of(sandbox) if isinstance(e.data, InterfaceAttached)]
    assert [json.loads(data.device_info or "{}") for data in recorded] == [{}, *(written[d] for d in drawn.values())]
    (planned,) = (e.data for e in node.events_of(sandbox) if isinstance(e.data, AttachPlanned))
    assert [(a.resource, a.device) for a in planned.attachments[1:]] == [(SRIOV, device) for device in drawn.values()]
    assert all('"deviceID":"0000:03:02.' in plugin for a in planned.attachments[1:] for plugin in a.plugins)
    status = pod_status([node.state().sandboxes[sandbox.key]])
    assert status is not None
    assert [element.get("device-info") for element in json.loads(status.text)[1:]] == [
        written[d] for d in drawn.values()
    ]
    assert sandbox.delete() == (0, "", "")
    node.assert_detached(sandbox)
    assert devices.files() == []
    assert devices.stored_config("DEL", "net2")["deviceID"] == "0000:03:02.0"


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{}")], ids=["removed", "edited"])
def test_damaged_device_information_is_restored(
    devices: DeviceNode, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    devices.device("0000:03:02.1")
    devices.network("fast", {"type": "tuning"})
    sandbox = devices.node.pod("drawing", "fast")
    with kubelet(tmp_path, pod("drawing", [(SRIOV, ["0000:03:02.1"])])), reconciler(devices.node):
        assert sandbox.add().exit_code == 0
        (file,) = (devices.info / "cni").iterdir()
        before = file.read_text()
        damage(file)
        assert sandbox.check().exit_code == 0
        plumbline(devices.node.config, "verify", "--json")
        told = eventually(
            lambda: [e.data for e in devices.node.events_of(sandbox) if isinstance(e.data, DriftRepaired)],
            "it is repaired",
        )
        assert [drift.kind for drift in told[0].drifts] == [DriftKind.DEVICE_INFO_CHANGED]
        assert file.read_text() == before
        assert sandbox.delete().exit_code == 0
    assert devices.files() == []


def test_device_of_a_claim_reaches_the_plugin(devices: DeviceNode, tmp_path: Path) -> None:
    devices.network("claimed", resource="my-claim")
    sandbox = devices.node.pod("claiming", "claimed")
    with kubelet(tmp_path, pod("claiming", [], claims={"my-claim": ["vendor.example/nic=eth1"]})):
        answer = sandbox.add()
    assert answer.exit_code == 0, answer
    conf = devices.stored_config("ADD", "net1")
    assert (conf["deviceID"], conf["pciBusID"], conf["runtimeConfig"]["deviceID"]) == ("eth1", "eth1", "eth1")


def warnings(node: Node, sandbox: PodSandbox) -> tuple[AttachWarning, ...]:
    (outcome,) = (event.data for event in node.events_of(sandbox) if isinstance(event.data, AttachCompleted))
    return outcome.warnings


def test_resource_that_no_device_plugin_serves_is_ignored(devices: DeviceNode, tmp_path: Path) -> None:
    """KubeVirt's bridge-marker: the resource is for the scheduler, and the kubelet lists other devices only."""
    chain = {"type": "bridge", "bridge": BRIDGE}, {"type": "tuning"}
    devices.node.nad("marked", {"cniVersion": "1.0.0", "plugins": chain}, "bridge.network.kubevirt.io/br1")
    sandbox = devices.node.pod("machine", "marked")
    own = [("devices.kubevirt.io/kvm", ["kvm1"]), ("devices.kubevirt.io/tun", ["tun1"])]
    with kubelet(tmp_path, pod("machine", own)):
        answer = sandbox.add()
    assert answer.exit_code == 0, answer
    devices.node.assert_attached(sandbox)
    assert warnings(devices.node, sandbox) == ()
    (planned,) = (e.data for e in devices.node.events_of(sandbox) if isinstance(e.data, AttachPlanned))
    assert not any("deviceID" in plugin for plugin in planned.attachments[1].plugins)


def test_plugin_that_uses_devices_is_attached_without_one_and_warned_about(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    devices.network("fast")
    sandbox = node.pod("plain", "fast")
    with kubelet(tmp_path, pod("plain", [("devices.kubevirt.io/tun", ["tun1"])])):
        answer = sandbox.add()
    assert answer.exit_code == 0, answer
    assert "deviceID" not in devices.stored_config("ADD", "net1")
    (warning,) = warnings(node, sandbox)
    assert (warning.kind, warning.network, warning.ifname) == (WarningKind.DEVICE_MISSING, "default/fast", "net1")
    assert warning.message == (
        "pod default/plain: network default/fast (net1) was attached without a device: neither the kubelet nor a "
        f"resource claim lists one of {SRIOV} for the pod; if its plugins need one, request {SRIOV} in the pod's "
        "containers"
    )
    (line,) = (line for line in node.log.read_text().splitlines() if "attached_with_warning" in line)
    assert "default/plain" in line


def test_pod_with_too_few_devices_fails_and_leaves_nothing(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    devices.network("fast")
    sandbox = node.pod("poor", "fast,fast")
    with kubelet(tmp_path, pod("poor", [(SRIOV, ["0000:03:02.1"])])):
        answer = sandbox.add()
    assert answer.code == 11
    assert answer.msg == (
        f"pod default/poor: network default/fast needs a device of resource {SRIOV}, of which the pod has 1 while its "
        f"networks use 2; request 2 of {SRIOV} in the pod's containers or select fewer such networks"
    )
    assert [failure.error_class for failure in node.failures(sandbox)] == [ErrorClass.DEVICE_UNAVAILABLE]
    assert not sandbox.links()
    node.assert_detached(sandbox)
    assert devices.files() == []


def test_devices_fail_until_kubelet_or_its_checkpoint_is_available(devices: DeviceNode, tmp_path: Path) -> None:
    devices.network("fast")
    sandbox = devices.node.pod("early", "fast")
    answer = sandbox.add(CNI_ARGS=sandbox.env["CNI_ARGS"] + ";K8S_POD_UID=uid-1")
    assert answer.code == 11
    assert f"its file {tmp_path / 'checkpoint'} can't be read either: No such file or directory" in answer.msg
    entry = {"PodUID": "uid-1", "ContainerName": "c", "ResourceName": SRIOV, "DeviceIDs": {"0": ["0000:03:02.1"]}}
    (tmp_path / "checkpoint").write_text(json.dumps({"Data": {"PodDeviceEntries": [entry]}, "Checksum": 0}))
    again = devices.node.pod("early", "fast")
    answer = again.add(CNI_ARGS=again.env["CNI_ARGS"] + ";K8S_POD_UID=uid-1")
    assert answer.exit_code == 0, answer
    assert devices.stored_config("ADD", "net1")["deviceID"] == "0000:03:02.1"


def test_failed_attach_removes_the_device_file(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    devices.device("0000:03:02.1")
    node.plugin("failing", '[ $CNI_COMMAND = ADD ] || exit 0; echo \'{"code": 100, "msg": "no luck"}\'; exit 1')
    devices.network("fast", {"type": "failing"})
    sandbox = node.pod("unlucky", "fast")
    with kubelet(tmp_path, pod("unlucky", [(SRIOV, ["0000:03:02.1"])])):
        assert "no luck" in sandbox.add().msg
    assert (
        Path(devices.stored_config("ADD", "net1")["runtimeConfig"]["CNIDeviceInfoFile"]).parent == devices.info / "cni"
    )
    assert devices.files() == []
    node.assert_detached(sandbox)


def test_pod_is_detached_though_its_device_folder_is_gone(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    devices.device("0000:03:02.1")
    devices.network("fast")
    sandbox = node.pod("last", "fast")
    with kubelet(tmp_path, pod("last", [(SRIOV, ["0000:03:02.1"])])):
        assert sandbox.add().exit_code == 0
    for path in sorted(devices.info.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    devices.info.rmdir()
    assert sandbox.delete() == (0, "", "")
    node.assert_detached(sandbox)


def test_interrupted_attach_continues_with_the_recorded_device(devices: DeviceNode, tmp_path: Path) -> None:
    node = devices.node
    written = devices.device("0000:03:02.1")
    gate = node.gate("tuning")
    devices.network("fast", {"type": gate.type})
    sandbox = node.pod("cut", "fast")
    with kubelet(tmp_path, pod("cut", [(SRIOV, ["0000:03:02.1"])])):
        call = sandbox.call("ADD")
        gate.reached()
    (file,) = devices.files()
    node.kill()
    gate.open()
    node.start()  # without the kubelet: the ledger has the device
    answer = call.answer()
    assert answer.exit_code == 0, answer
    eventually(lambda: devices.files() == [file], "the file is there again")
    recorded = [e.data for e in node.events_of(sandbox) if isinstance(e.data, InterfaceAttached)]
    assert json.loads(recorded[-1].device_info) == written
    assert sandbox.delete().exit_code == 0
    assert devices.files() == []
