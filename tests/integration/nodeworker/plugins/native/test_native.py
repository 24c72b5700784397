"""What native plugins refuse, what they leave to the reference's, what CHECK sees and what neighbours hear."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kinds import loopback, macvlan, ptp
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec import results
from tests.support.plugins.kernel_view import container, node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

PLUGINS: dict[str, Any] = {"bridge": bridge, "loopback": loopback, "macvlan": macvlan, "ptp": ptp}
BRIDGE = {"type": "bridge", "bridge": "br0"}
MACVLAN = {"type": "macvlan", "master": "par0"}
PTP = {"type": "ptp"}


def answer(*ips: dict[str, str], routes: list[dict[str, str]] | None = None) -> results.Result:
    return results.decode(json.dumps({"cniVersion": "1.0.0", "ips": ips, "routes": routes or []}), "1.0.0")


IPAM = answer(
    {"address": "10.77.0.5/24", "gateway": "10.77.0.1"},
    {"address": "fd77::5/64", "gateway": "fd77::1"},
    routes=[{"dst": "10.88.0.0/16"}],
)


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        ip("link add par0 mtu 1450 type veth peer name par1")
        ip("link set par0 up")
        ip("link set par1 up")
        yield path


def ip(words: str, netns: str = "") -> None:
    subprocess.run(["ip", *(["-n", netns.rpartition("/")[2]] if netns else []), *words.split()], check=True)


def call(config: dict[str, Any], netns: str, **more: Any) -> Call:
    config = {"cniVersion": "1.0.0", "name": "net"} | config
    return Call(container_id="sandbox", netns=netns, ifname="net1", config=config, **more)


def add(config: dict[str, Any], netns: str, ipam: results.Result | None = IPAM, **more: Any) -> results.Result:
    return PLUGINS[config["type"]].add(call(config, netns, **more), ipam)


REFUSALS = [
    (MACVLAN | {"master": "eth9"}, IPAM, "the master interface eth9 is missing on this node"),
    ({"type": "macvlan"}, IPAM, "there is no default route on this node"),
    (MACVLAN | {"mtu": 1451}, IPAM, "mtu 1451 is not between 0 and the 1450 of par0"),
    (MACVLAN | {"mode": "source"}, IPAM, "macvlan has no mode 'source'"),
    (MACVLAN | {"master": "lo"}, IPAM, "can't create net1 as a macvlan: "),
    (MACVLAN, answer(), "the IPAM plugin assigned no address to net1"),
    (MACVLAN, answer({"address": "10.7.0.5/24"}, {"address": "10.7.0.5/24"}), "assigned 10.7.0.5/24 to net1 twice"),
    (BRIDGE, answer({"address": "fd77::5/64"}, {"address": "fd77::5/48"}), "assigned fd77::5/48 to net1 twice"),
    (MACVLAN, answer({"address": "10.7.0.5/24"}, routes=[{"dst": "10.8.0.0/16", "gw": "10.9.0.1"}]), "10.8.0.0/16 by"),
    (BRIDGE | {"bridge": "par0"}, IPAM, "interface par0 of the node is not a bridge"),
    (BRIDGE | {"bridge": "br0/../br1"}, IPAM, "can't "),
    (BRIDGE | {"hairpinMode": True, "promiscMode": True}, IPAM, "exclude each other"),
    (BRIDGE | {"disableContainerInterface": True}, IPAM, "remove ipam"),
    (BRIDGE | {"mtu": -1}, IPAM, "configuration of network net can't be used: Expected `int` >= 0 - at `\\$.mtu`"),
    (PTP | {"mtu": -1}, IPAM, "configuration of network net can't be used: Expected `int` >= 0 - at `\\$.mtu`"),
    (BRIDGE | {"mtu": 70000}, IPAM, "can't create br0 as a bridge"),
    (PTP | {"mtu": 70000}, IPAM, "can't create net1 as a veth"),
    (BRIDGE | {"vlan": 4095}, IPAM, "vlan 4095 is not between 0 and 4094"),
    (BRIDGE | {"vlan": -1}, IPAM, "vlan -1 is not between"),
    (BRIDGE | {"vlanTrunk": [{"id": 0}]}, IPAM, r"vlanTrunk\[0\] id 0 is not between"),
    (BRIDGE | {"vlanTrunk": [{"minID": 7}]}, IPAM, "only one of minID and maxID"),
    (BRIDGE | {"vlanTrunk": [{"minID": 9, "maxID": 7}]}, IPAM, "range 9 to 7 is empty"),
    (BRIDGE | {"mtu": "1500"}, IPAM, "configuration of network net can't be used: Expected `int`"),
    (PTP, answer({"address": "10.77.0.5/24"}), "assigned net1 no gateway, which ptp needs"),
    (PTP, None, "add ipam to net"),
]


@pytest.mark.parametrize(("config", "ipam", "words"), REFUSALS, ids=[words for _, _, words in REFUSALS])
def test_an_impossible_add_is_refused_with_a_reason(
    netns: str, config: dict[str, Any], ipam: results.Result | None, words: str
) -> None:
    with pytest.raises(NativeError, match=words) as caught:
        add(config, netns, ipam)
    assert caught.value.code == 999
    PLUGINS[config["type"]].delete(call(config, netns))


INFINIBAND = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1"
NO_MACS = [
    ({"mac": "02:00:5e:10:00"}, 'mac of net1: "02:00:5e:10:00" is not a hardware address'),
    ({"mac": "f1:fd:59:0b:bd:2b"}, 'mac of net1: "f1:fd:59:0b:bd:2b" is a multicast address'),
    ({"mac": "00:00:00:00:00:00"}, "mac of net1: .* is all zero"),
    ({"runtimeConfig": {"mac": INFINIBAND}}, r"runtimeConfig.mac of net1: .* has 20 bytes, as on InfiniBand, and an"),
    ({"runtimeConfig": {"mac": 7}}, "runtimeConfig.mac of net1 is 7, which is not a string"),
    ({"runtimeConfig": {"mac": "02:00:5e:10:00:00:00:01"}}, "has 8 bytes"),
]


@pytest.mark.parametrize(("options", "words"), NO_MACS)
def test_an_address_that_the_link_can_not_have_is_refused_before_it_is_made(
    netns: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(NativeError, match=words) as caught:
        add(MACVLAN | options, netns)
    assert caught.value.code == 7
    assert not any(line.startswith("2:") for line in listed(netns))


@pytest.mark.parametrize("ipam", [IPAM, None], ids=["with IPAM", "without IPAM"])
def test_a_mac_address_of_the_parent_is_named_as_the_reason(netns: str, ipam: results.Result | None) -> None:
    ip("link set par0 address 02:00:5e:10:00:01")
    with pytest.raises(NativeError, match="has the same MAC address: request another mac"):
        add(MACVLAN | {"mac": "02:00:5e:10:00:01"}, netns, ipam)


@pytest.mark.parametrize("prefix_lengths", [(24, 16), (16, 24)])
def test_an_ipv4_address_may_have_two_prefix_lengths(netns: str, prefix_lengths: tuple[int, int]) -> None:
    made = add(MACVLAN, netns, answer(*({"address": f"10.77.0.5/{length}"} for length in prefix_lengths)))
    macvlan.check(call(MACVLAN, netns, prev_result=made))


@pytest.mark.parametrize("spelled", ["02AA.bb00.1122", "02-AA-BB-00-11-22", "02:aa:bb:00:11:22"])
def test_an_address_is_the_same_in_every_spelling_and_from_every_place(netns: str, spelled: str) -> None:
    places: list[tuple[dict[str, Any], dict[str, str]]] = [
        (MACVLAN | {"mac": spelled}, {}),
        (MACVLAN | {"runtimeConfig": {"mac": spelled}}, {}),
        (MACVLAN, {"MAC": spelled}),
        (BRIDGE | {"args": {"cni": {"mac": spelled}}}, {}),
    ]
    for config, args in places:
        result = add(config, netns, args=args)
        assert [each.mac for each in result.interfaces if each.sandbox] == ["02:aa:bb:00:11:22"]
        PLUGINS[config["type"]].delete(call(config, netns))


def listed(netns: str) -> list[str]:
    return subprocess.run(
        ["ip", "-n", netns.rpartition("/")[2], "-o", "link"], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_an_address_in_the_way_is_refused_unless_forced(netns: str) -> None:
    ip("link add br0 type bridge")
    ip("addr add 10.99.0.1/24 dev br0")
    with pytest.raises(NativeError, match=r"bridge br0 has 10\.99\.0\.1/24 already, not 10\.77\.0\.1/24"):
        add(BRIDGE | {"isGateway": True}, netns)
    bridge.delete(call(BRIDGE, netns))
    add(BRIDGE | {"isGateway": True, "forceAddress": True}, netns)


@pytest.mark.parametrize("path", ["/run/netns/plumbline-test-missing", "/dev/null", "/proc/thread-self/ns/net"])
def test_a_file_that_is_not_a_namespace_is_refused(path: str) -> None:
    with pytest.raises(NativeError, match="can't be used as a network namespace") as caught:
        add({"type": "loopback"}, path)
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (BRIDGE, ""),
        (
            BRIDGE | {"ipam": {"type": "host-local"}, "capabilities": {"mac": True}, "dns": {}, "portIsolation": True},
            "",
        ),
        (BRIDGE | {"ipMasq": True, "ipMasqBackend": "nftables", "macspoofchk": True}, ""),
        (BRIDGE | {"ipMasqBackend": "pf"}, "ipMasqBackend"),
        (BRIDGE | {"enabledad": True}, "enabledad"),
        (BRIDGE | {"vlan": 7, "preserveDefaultVlan": False}, ""),
        (BRIDGE | {"vlanTrunk": [{"id": 7}, {"minID": 9, "maxID": 12}]}, ""),
        (BRIDGE | {"vlanTrunk": [{"vid": 7}]}, "vlanTrunk"),
        (BRIDGE | {"mtu": -1}, "mtu"),
        (PTP | {"ipam": {"type": "static"}, "mtu": 2**32}, "mtu"),
        (BRIDGE | {"isgateway": True}, "isgateway"),
        (BRIDGE | {"mtu": None}, "mtu"),
        (MACVLAN, ""),
        (MACVLAN | {"linkInContainer": True}, "linkInContainer"),
        (MACVLAN | {"bcqueuelen": 7}, "bcqueuelen"),
        (PTP, "no ipam"),
        (PTP | {"ipam": {"type": "static"}}, ""),
        (PTP | {"ipam": {"type": "static"}, "ipMasq": True}, ""),
        ({"type": "loopback"}, ""),
    ],
)
def test_options_of_the_reference_plugin_only_are_not_native(config: dict[str, Any], what: str) -> None:
    reason = PLUGINS[config["type"]].unsupported({"cniVersion": "1.0.0", "name": "net"} | config)
    assert (what in reason) if what else reason == ""


def test_the_runtimes_mac_address_goes_before_all_others(netns: str) -> None:
    config = MACVLAN | {"mac": "02:00:00:00:00:0a", "runtimeConfig": {"mac": "02-00-00-00-00-0C"}}
    result = add(config, netns, args={"MAC": "02:00:00:00:00:0b"})
    assert result.interfaces[0].mac == "02:00:00:00:00:0c"
    macvlan.delete(call(config, netns))
    assert add(config | {"runtimeConfig": {}}, netns).interfaces[0].mac == "02:00:00:00:00:0a"
    bridged = BRIDGE | {"args": {"cni": {"mac": "02:00:00:00:00:0d"}}}
    macvlan.delete(call(config, netns))
    assert add(bridged, netns, args={"MAC": "02:00:00:00:00:0b"}).interfaces[2].mac == "02:00:00:00:00:0d"


def test_a_name_that_the_node_has_too_is_free_in_the_container(netns: str) -> None:
    ip("link add net1 type bridge")
    assert add(MACVLAN, netns).interfaces[0].name == "net1"


def test_the_nodes_end_takes_another_name_when_its_own_is_taken(netns: str) -> None:
    name = add(BRIDGE, netns).interfaces[1].name
    bridge.delete(call(BRIDGE, netns))
    ip(f"link add {name} type bridge")
    assert add(BRIDGE, netns).interfaces[1].name not in {name, ""}


def test_many_at_once_share_a_bridge_that_was_not_there(netns: str) -> None:
    containers = 8
    with contextlib.ExitStack() as stack:
        paths = [netns, *(stack.enter_context(container()) for _ in range(containers - 1))]
        start = threading.Barrier(containers)

        def attach(path: str) -> results.Result:
            start.wait()
            config = {"cniVersion": "1.0.0", "name": "net", "isGateway": True} | BRIDGE
            return bridge.add(Call(container_id=path, netns=path, ifname="net1", config=config), IPAM)

        with ThreadPoolExecutor(containers) as threads:
            attached = list(threads.map(attach, paths))
    assert {result.interfaces[0].name for result in attached} == {"br0"}
    assert len({result.interfaces[1].name for result in attached}) == containers


def test_port_isolation_and_a_disabled_interface_reach_the_kernel(netns: str) -> None:
    result = add(BRIDGE | {"portIsolation": True, "disableContainerInterface": True}, netns, None)
    words = ["ip", "-j", "-d", "link", "show", result.interfaces[1].name]
    port = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)[0]
    assert port["linkinfo"]["info_slave_data"]["isolated"] is True
    words = ["ip", "-n", netns.rpartition("/")[2], "-j", "link", "show", "net1"]
    assert "UP" not in json.loads(subprocess.run(words, check=True, capture_output=True).stdout)[0]["flags"]


DAMAGE = [
    (BRIDGE, "addr del 10.77.0.5/24 dev net1", "lost its address 10.77.0.5/24"),
    (BRIDGE, "route del 10.88.0.0/16", "route to 10.88.0.0/16 of net1 is gone"),
    (BRIDGE, "link set net1 address 02:00:00:00:00:99", "has MAC address 02:00:00:00:00:99"),
    (BRIDGE, "link del net1", "interface net1 is gone"),
    (MACVLAN, "addr del fd77::5/64 dev net1", "lost its address fd77::5/64"),
    (MACVLAN, "link set net1 type macvlan mode vepa", "no longer in mode bridge"),
    (PTP, "link del net1", "interface net1 is gone"),
    ({"type": "loopback"}, "link set lo down", "lo is down: recreate the pod"),
]


@pytest.mark.parametrize(("config", "damage", "words"), DAMAGE, ids=[f"{c['type']} {d}" for c, d, _ in DAMAGE])
def test_check_reports_differences_from_the_record(netns: str, config: dict[str, Any], damage: str, words: str) -> None:
    plugin = PLUGINS[config["type"]]
    result = add(config, netns)
    plugin.check(call(config, netns, prev_result=result))
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        plugin.check(call(config, netns, prev_result=result))


def test_check_sees_a_port_that_left_its_bridge(netns: str) -> None:
    result = add(BRIDGE | {"isGateway": True}, netns)
    ip(f"link set {result.interfaces[1].name} nomaster")
    with pytest.raises(NativeError, match="no longer a port of br0"):
        bridge.check(call(BRIDGE, netns, prev_result=result))
    with pytest.raises(NativeError, match="needs prevResult"):
        bridge.check(call(BRIDGE, netns))
