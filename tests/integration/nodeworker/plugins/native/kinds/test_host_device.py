"""A card of the node moves into the pod and returns unchanged, despite interruptions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import host_device
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node, view
from tests.support.plugins.native_harness import (
    BOTH,
    answer,
    call,
    card,
    cut_everywhere,
    encoded,
    ip,
    is_refused,
    late,
    names,
    outcome,
    reference_outcome,
    shown,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "host-device").exists(), reason="the reference plugins are not installed"
)

MAC = "02:00:5e:10:00:11"
DEVICE: dict[str, Any] = {"type": "host-device", "device": "nic0"}
BY_MAC: dict[str, Any] = {"type": "host-device", "hwaddr": MAC.upper()}
STATIC: dict[str, Any] = {"addresses": [{"address": "10.77.0.5/24", "gateway": "10.77.0.1"}]}
DUAL: dict[str, Any] = {
    "addresses": [*STATIC["addresses"], {"address": "fd77::5/64"}],
    "routes": [{"dst": "10.88.0.0/16"}, {"dst": "0.0.0.0/0"}],
}


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish()
        yield path


def furnish(_: str = "") -> None:
    """Give the node a card with an address, and a macvlan that could be one."""
    card("nic0")
    ip(f"link set nic0 address {MAC}")
    ip("addr add 192.0.2.5/24 dev nic0")
    ip("link add mac0 link wnic0 type macvlan mode bridge")


def without_alias(views: list[Any]) -> list[Any]:
    """Return *views* without the alias, which the installed reference plugin does not delete."""
    for each in views[1]["node"]["links"]:
        each.pop("ifalias", None)
    return views


@needs_reference
@pytest.mark.parametrize(
    "config",
    [DEVICE, BY_MAC, DEVICE | {"device": "mac0", "dns": {"domain": "example.com"}}],
    ids=["by name", "by MAC address", "a macvlan"],
)
@pytest.mark.parametrize("ipam", [{}, STATIC, DUAL], ids=["no addresses", "IPv4", "both"])
def test_a_native_card_is_like_the_reference_plugins(config: dict[str, Any], ipam: dict[str, Any]) -> None:
    mine = outcome(host_device, config, ipam, furnish)
    theirs = without_alias(reference_outcome(config, ipam, furnish))
    assert differences(mine, theirs) == []


@needs_reference
def test_each_plugin_returns_the_card_of_the_other(netns: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "net"} | DEVICE
    execute("host-device", "ADD", config, netns, "net1")
    host_device.delete(call(DEVICE, netns))
    assert "nic0" in names()
    host_device.add(call(DEVICE, netns), None)
    execute("host-device", "DEL", config, netns, "net1")
    assert "nic0" in names()
    assert names(netns) == {"lo"}


@pytest.mark.parametrize("config", [DEVICE, BY_MAC], ids=["by name", "by MAC address"])
@pytest.mark.parametrize("ipam", [BOTH, None], ids=["addresses", "no addresses"])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(config: dict[str, Any], ipam: Any) -> None:
    cut_everywhere(host_device, config, ipam, furnish)


@pytest.mark.parametrize("config", [DEVICE, BY_MAC], ids=["by name", "by MAC address"])
def test_a_del_succeeds_on_anything_that_is_gone(config: dict[str, Any]) -> None:
    late(host_device, config, BOTH, furnish)


@needs_reference
def test_a_card_has_other_names_too(netns: str) -> None:
    ip("link property add dev nic0 altname enp7s0")
    config = DEVICE | {"device": "enp7s0"}
    host_device.add(call(config, netns), BOTH)
    host_device.add(call(config, netns), BOTH)
    assert "nic0" not in names()
    host_device.delete(call(config, netns))
    assert "nic0" in names()
    execute("host-device", "ADD", {"cniVersion": "1.0.0", "name": "net"} | config, netns, "net1")
    assert "nic0" not in names()
    host_device.delete(call(config, netns))
    assert "nic0" in names()


def test_equal_names_on_node_and_in_container_do_not_conflict(netns: str) -> None:
    ip("link add nic0 type veth peer name other", netns)
    ip("link add net1 type bridge")
    host_device.add(call(DEVICE, netns), BOTH)
    assert names(netns) == {"lo", "nic0", "other", "net1"}
    host_device.delete(call(DEVICE, netns))
    assert names(netns) == {"lo", "nic0", "other"}
    assert shown("link show nic0")[0]["address"] == MAC


def test_the_name_in_the_container_may_be_that_on_the_node(netns: str) -> None:
    asked = call(DEVICE, netns, ifname="nic0")
    host_device.add(asked, BOTH)
    assert ("nic0" in names(netns), "nic0" in names()) == (True, False)
    host_device.delete(asked)
    assert ("nic0" in names(netns), "nic0" in names()) == (False, True)


@pytest.mark.parametrize("name", ["net1", "dev7"])
@pytest.mark.parametrize("gone", ["no path", "a path without a namespace"])
def test_a_card_returned_by_the_kernel_is_renamed(netns: str, name: str, gone: str) -> None:
    """With the namespace a real card comes back by itself: down, and named as in the container or ``dev<index>``."""
    ip("link set nic0 down")
    ip(f"link set nic0 name {name}")
    ip(f"link set {name} alias nic0")
    for config in (DEVICE, BY_MAC):
        host_device.delete(call(config, "" if gone == "no path" else "/run/netns/plumbline-test-none"))
        assert "nic0" in names()
        assert "ifalias" not in shown("link show nic0")[0]


@pytest.mark.usefixtures("netns")
def test_a_taken_card_name_does_not_fail_the_del() -> None:
    ip("link set nic0 down")
    ip("link set nic0 name net1")
    ip("link set net1 alias nic0")
    ip("link add nic0 type bridge")
    host_device.delete(call(DEVICE, ""))
    assert shown("link show net1")[0]["ifalias"] == "nic0"


@pytest.mark.parametrize(
    "words", ["link set nic0 alias nic1", "link set mac0 alias nic0", "link set wnic0 alias nic0"], ids=["a", "b", "c"]
)
def test_nothing_else_on_the_node_is_renamed(netns: str, words: str) -> None:
    ip(words)
    before = names()
    host_device.delete(call(DEVICE, ""))
    assert names() == before


def test_a_card_whose_node_name_is_taken_stays_in_the_container(netns: str) -> None:
    host_device.add(call(DEVICE, netns), None)
    ip("link add nic0 type bridge")
    with pytest.raises(NativeError, match="net1 can't return to the node as nic0"):
        host_device.delete(call(DEVICE, netns))
    ip("link del nic0")
    host_device.delete(call(DEVICE, netns))
    assert shown("link show nic0")[0]["address"] == MAC


def test_a_foreign_interface_is_left_unchanged(netns: str) -> None:
    ip("link add net1 type veth peer name other", netns)
    before = view(netns)
    with pytest.raises(NativeError, match="has another interface net1 already"):
        host_device.add(call(DEVICE, netns), BOTH)
    host_device.delete(call(DEVICE, netns))
    assert differences(view(netns), before) == []


def test_a_card_is_in_one_container_at_a_time(netns: str) -> None:
    host_device.add(call(DEVICE, netns), None)
    with container() as other:
        is_refused(host_device, call(DEVICE, other), None, "device nic0 is not on this node: it may be in another")
    assert "net1" in names(netns)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"device": "eth9"}, "device eth9 is not on this node"),
    ({"device": "lo"}, "can't move lo into the container as net1: "),
    (
        {"device": "", "hwaddr": "02:00:5e:10:00:99"},
        "the device with MAC address 02:00:5e:10:00:99 is not on this node",
    ),
    ({"device": "", "kernelpath": "/sys/devices/../class/net/nic0/device"}, "is not below /sys/devices"),
    ({"device": "", "kernelpath": "/sys/devices/none"}, "the device at /sys/devices/none is not on this node"),
    ({"device": "", "pciBusID": "../../../etc"}, "'../../../etc' is not a device address on the PCI or auxiliary bus"),
    ({"device": "", "pciBusID": "ffff:ff:1f.7"}, "device ffff:ff:1f.7 has no driver on this node"),
    ({"device": "", "runtimeConfig": {"deviceID": 7}}, "7 is not a device address on the PCI or auxiliary bus"),
    ({"device": ""}, "names no device: set device, hwaddr, kernelpath or pciBusID"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_an_impossible_add_is_refused_with_a_reason(netns: str, options: dict[str, Any], words: str) -> None:
    before = view(netns)
    with pytest.raises(NativeError, match=words) as caught:
        host_device.add(call(DEVICE | options, netns), BOTH)
    assert caught.value.code == 999
    host_device.delete(call(DEVICE | options, netns))
    host_device.delete(call(DEVICE | options, ""))
    assert differences(view(netns), before) == []


NO_CARDS = [
    ("nic0", 'hwaddr of net1: "nic0" is not a hardware address', 7),
    ("01:00:5e:00:00:01", "hwaddr of net1: .* is a multicast address", 7),
    (
        "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1",
        "the device with MAC address 80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1 is not on this node",
        999,
    ),
]


@pytest.mark.parametrize(("hwaddr", "words", "code"), NO_CARDS)
def test_a_card_is_looked_up_by_any_address_that_one_can_have(netns: str, hwaddr: str, words: str, code: int) -> None:
    config = DEVICE | {"device": "", "hwaddr": hwaddr}
    assert host_device.unsupported(config) == ""
    with pytest.raises(NativeError, match=words) as caught:
        host_device.add(call(config, netns), None)
    assert caught.value.code == code


DAMAGE = [
    ("link set net1 address 02:00:00:00:00:99", "has MAC address 02:00:00:00:00:99"),
    ("addr del 10.77.0.5/24 dev net1", "lost its address"),
    ("route del 10.88.0.0/16", "route to 10.88.0.0/16"),
    ("link del net1", "interface net1 is gone"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[damage for damage, _ in DAMAGE])
def test_check_reports_differences_from_the_record(netns: str, damage: str, words: str) -> None:
    asked = call(DEVICE, netns, prev_result=host_device.add(call(DEVICE, netns), BOTH))
    host_device.check(asked)
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        host_device.check(asked)


class Buses:
    """A tree like sysfs', of devices that this machine has not."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def device(self, bus: str, address: str, driver: str, net: str, ifname: str = "") -> None:
        folder = self.root / bus / address
        folder.mkdir(parents=True)
        (self.root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(self.root / "drivers" / driver)
        if ifname:
            (folder / net / ifname).mkdir(parents=True)


@pytest.fixture
def buses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Buses:
    monkeypatch.setattr(host_device, "_PCI", tmp_path / "pci")
    monkeypatch.setattr(host_device, "_AUXILIARY", tmp_path / "auxiliary")
    monkeypatch.setattr(host_device, "_KERNEL", tmp_path)
    return Buses(tmp_path)


@pytest.mark.parametrize(
    ("bus", "address", "net"),
    [
        ("pci", "0000:00:1f.6", "net"),
        ("pci", "0000:00:03.0", "virtio2/net"),
        ("auxiliary", "mlx5_core.sf.2", "net"),
    ],
)
def test_a_card_is_found_by_its_place_on_a_bus(netns: str, buses: Buses, bus: str, address: str, net: str) -> None:
    buses.device(bus, address, "driver", net, "nic0")
    config = {"type": "host-device", "runtimeConfig": {"deviceID": address}, "pciBusID": "0000:00:00.0"}
    result = host_device.add(call(config, netns), BOTH)
    assert result.interfaces[0].mac == MAC
    assert encoded(host_device.add(call(config, netns), BOTH)) == encoded(result)
    host_device.check(call(config, netns, prev_result=result))
    host_device.delete(call(config, netns))
    assert "nic0" in names()


def test_a_card_is_found_by_its_path_in_sysfs(netns: str, buses: Buses) -> None:
    buses.device("devices", "0000:00:1f.6", "driver", "net", "nic0")
    config = {"type": "host-device", "kernelpath": str(buses.root / "devices/0000:00:1f.6")}
    assert host_device.add(call(config, netns), None).interfaces[0].mac == MAC
    host_device.delete(call(config, netns))
    assert "nic0" in names()


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic", "igb_uio"])
def test_a_card_of_a_userspace_driver_has_addresses_and_no_interface(netns: str, buses: Buses, driver: str) -> None:
    buses.device("pci", "0000:00:1f.6", driver, "net")
    config = {"type": "host-device", "pciBusID": "0000:00:1f.6", "dns": {"domain": "example.com"}}
    before = view(netns)
    result = host_device.add(call(config, netns), answer("10.77.0.5/24"))
    assert encoded(result) == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.77.0.5/24"}],
        "dns": {"domain": "example.com"},
    }
    assert host_device.add(call(config, netns), None) == Result(cni_version="1.0.0")
    host_device.check(call(config, netns, prev_result=result))
    host_device.delete(call(config, netns))
    assert differences(view(netns), before) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"device": "", "pciBusID": "0000:00:1f.6", "runtimeConfig": {"deviceID": "0000:00:1f.7"}}, ""),
        ({"hwaddr": MAC}, "several keys name the device"),
        ({"runtimeConfig": {"deviceID": "0000:00:1f.7"}}, "several keys name the device"),
        ({"useInterfaceNetwork": True}, "useInterfaceNetwork"),
    ],
)
def test_options_of_the_reference_plugin_only_are_not_native(options: dict[str, Any], reason: str) -> None:
    said = host_device.unsupported({"cniVersion": "1.0.0", "name": "net"} | DEVICE | options)
    assert (reason in said, bool(said)) == (True, bool(reason))
