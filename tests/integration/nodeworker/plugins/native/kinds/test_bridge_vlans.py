"""A port is in the VLANs that its network names, on a bridge that keeps them apart."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.kernel.layouts import ifinfmsg, rtnl
from nodeworker.kernel.rtnetlink import bridge_ports, links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Answer
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.native.kit import port_vlans
from nodeworker.plugins.native.kit.vlan_membership import Trunk, membership
from tests.support.plugins.kernel_view import container, filters_vlans, node
from tests.support.plugins.native_harness import answer, call

IDS = st.integers(1, 4094)
RANGES = st.tuples(IDS, IDS).map(lambda ends: Trunk(min_id=min(ends), max_id=max(ends)))
TRUNKS = st.lists(st.one_of(RANGES, IDS.map(lambda number: Trunk(id=number))), max_size=8)

needs_vlans = pytest.mark.skipif(
    os.geteuid() != 0 or not filters_vlans(), reason="the kernel has no VLAN filtering of bridges"
)


def filtering_bridge(default: int = 1) -> Link:
    data = {"IFLA_BR_VLAN_FILTERING": 1, "IFLA_BR_VLAN_DEFAULT_PVID": default}
    return Link(
        index=3,
        name="br0",
        kind="bridge",
        mac="02:00:00:00:00:01",
        mtu=1500,
        flags=1,
        master=0,
        parent=0,
        parent_netnsid=None,
        operstate=6,
        queue_length=1000,
        data=data,
    )


@given(TRUNKS)
def test_a_trunk_is_merged_into_the_fewest_ranges(trunk: list[Trunk]) -> None:
    ranges = membership(0, trunk, keeps_default=True).tagged
    wanted = {each.id for each in trunk if each.id is not None}
    for each in trunk:
        if each.min_id is not None and each.max_id is not None:
            wanted |= set(range(each.min_id, each.max_id + 1))
    assert [number for first, last in ranges for number in range(first, last + 1)] == sorted(wanted)
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("vlan", "trunk", "keeps", "wanted"),
    [
        (0, None, True, []),
        (0, None, False, []),
        (0, [], False, []),
        (7, None, True, [bridge_ports.add_untagged_vlan(5, 7)]),
        (7, None, False, [bridge_ports.remove_vlan(5, 1), bridge_ports.add_untagged_vlan(5, 7)]),
        (1, None, False, [bridge_ports.remove_vlan(5, 1), bridge_ports.add_untagged_vlan(5, 1)]),
        (0, [Trunk(id=9), Trunk(min_id=3, max_id=5)], True, [bridge_ports.add_tagged_vlans(5, [(3, 5), (9, 9)])]),
        (0, [Trunk(id=9)], False, [bridge_ports.remove_vlan(5, 1), bridge_ports.add_tagged_vlans(5, [(9, 9)])]),
        (7, [Trunk(id=9)], True, [bridge_ports.add_untagged_vlan(5, 7), bridge_ports.add_tagged_vlans(5, [(9, 9)])]),
        (
            7,
            [Trunk(min_id=6, max_id=8)],
            True,
            [bridge_ports.add_untagged_vlan(5, 7), bridge_ports.add_tagged_vlans(5, [(6, 6), (8, 8)])],
        ),
    ],
)
def test_a_port_joins_the_configured_vlans(
    vlan: int, trunk: list[Trunk] | None, keeps: bool, wanted: list[Any]
) -> None:
    member = membership(vlan, trunk, keeps_default=keeps)
    assert port_vlans.joined(5, filtering_bridge(), member) == wanted
    assert member.filtering == (vlan != 0 or trunk is not None)


def test_a_bridge_without_a_default_vlan_has_none_to_leave() -> None:
    member = membership(7, None, keeps_default=False)
    assert port_vlans.joined(5, filtering_bridge(default=0), member) == [bridge_ports.add_untagged_vlan(5, 7)]


PORTS = (
    # Laid out by hand as the kernel's br_fill_ifvlaninfo_compressed does it, cut to what matters: port 5 in 1 (PVID,
    # untagged), in 7 and 10 to 12 by their tags; the bridge itself, index 3, in 1; port 6 in 99; port 8 in none.
    "07000100 05000000 43100100 00000000 0a000300 76657468 35000000 08000a00 03000000 "
    "24001a80 08000200 06000100 08000200 00000700 08000200 08000a00 08000200 10000c00",
    "07000100 03000000 43100100 00000000 08000300 62723000 0c001a00 08000200 06000100",
    "07000100 06000000 43100100 00000000 08000a00 03000000 0c001a00 08000200 06006300",
    "07000100 08000000 43100100 00000000 08000a00 03000000",
)
PVID_UNTAGGED = ifinfmsg.BRIDGE_VLAN_INFO_PVID | ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED


def answers() -> list[Answer]:
    return [Answer(rtnl.RTM_NEWLINK, bytes.fromhex(each)) for each in PORTS]


def test_vlans_of_one_port_are_decoded_from_a_dump_of_all() -> None:
    assert bridge_ports.decode_vlans(5, answers()) == {1: PVID_UNTAGGED, 7: 0, 10: 0, 11: 0, 12: 0}
    assert bridge_ports.decode_vlans(6, answers()) == {99: PVID_UNTAGGED}
    assert bridge_ports.decode_vlans(8, answers()) == {}
    assert bridge_ports.decode_vlans(9, answers()) == {}


@given(TRUNKS)
def test_added_vlans_are_decoded_again(trunk: list[Trunk]) -> None:
    ranges = membership(0, trunk, keeps_default=True).tagged
    reply = Answer(rtnl.RTM_NEWLINK, bridge_ports.add_tagged_vlans(5, ranges).body)
    assert list(bridge_ports.decode_vlans(5, [reply])) == [n for first, last in ranges for n in range(first, last + 1)]


@pytest.mark.parametrize(
    ("found", "vlan", "trunk", "keeps", "said"),
    [
        ({7: PVID_UNTAGGED, 1: 2}, 7, None, True, ""),
        ({7: PVID_UNTAGGED, 9: 0}, 7, None, False, ""),
        ({7: PVID_UNTAGGED, 1: 2}, 7, None, False, "is in VLAN 1 again"),
        ({1: PVID_UNTAGGED}, 1, None, False, ""),
        ({1: PVID_UNTAGGED}, 7, None, True, "no longer has VLAN 7"),
        ({7: 0, 1: PVID_UNTAGGED}, 7, None, True, "no longer has VLAN 7"),
        ({7: ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED}, 7, None, True, "no longer has VLAN 7"),
        ({}, 7, None, True, "no longer has VLAN 7"),
        ({3: 0, 4: 0, 5: 0}, 0, [Trunk(min_id=3, max_id=5)], False, ""),
        ({3: 0, 5: 0}, 0, [Trunk(min_id=3, max_id=5)], False, "no longer has VLAN 4"),
        ({3: 0, 4: PVID_UNTAGGED, 5: 0}, 0, [Trunk(min_id=3, max_id=5)], True, "no longer has VLAN 4"),
        ({3: 0, 4: PVID_UNTAGGED, 5: 0}, 4, [Trunk(min_id=3, max_id=5)], False, ""),
        ({3: 0, 4: 0, 5: 0}, 4, [Trunk(min_id=3, max_id=5)], False, "no longer has VLAN 4 for untagged"),
    ],
)
def test_check_reports_a_port_in_wrong_vlans(
    found: dict[int, int], vlan: int, trunk: list[Trunk] | None, keeps: bool, said: str
) -> None:
    problem = port_vlans.missing(found, 1, membership(vlan, trunk, keeps_default=keeps))
    assert (said in problem) if said else not problem, problem


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_the_kernel_dumps_all_ports() -> None:
    with node():
        for words in ("br0 type bridge", "a0 type veth peer name a1"):
            subprocess.run(["ip", "link", "add", *words.split()], check=True)
        subprocess.run(["ip", "link", "set", "a0", "master", "br0"], check=True)
        with Netlink.on_node() as netlink:
            reply = netlink.dump(bridge_ports.vlans_request())
            port = links.find(netlink, links.by_name("a0"))
        assert port is not None
        assert port.index in {links.decode(each).index for each in reply if each.type == rtnl.RTM_NEWLINK}


@needs_vlans
@pytest.mark.parametrize("change", ["del vid 100", "add vid 1"])
def test_check_reports_a_port_in_another_bridge(change: str) -> None:
    config = {"type": "bridge", "bridge": "br0", "vlan": 100, "preserveDefaultVlan": False}
    with node(), container() as netns:
        result = bridge.add(call(config, netns), None)
        bridge.check(call(config, netns, prev_result=result))
        command, *vlan = change.split()
        subprocess.run(["bridge", "vlan", command, "dev", result.interfaces[1].name, *vlan], check=True)
        with pytest.raises(NativeError, match="VLAN"):
            bridge.check(call(config, netns, prev_result=result))


@needs_vlans
@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"vlan": 100, "preserveDefaultVlan": False}, {100: ["PVID", "Egress Untagged"]}),
        ({"vlanTrunk": [{"id": 5}, {"minID": 10, "maxID": 12}], "preserveDefaultVlan": False}, {5: [], 10: []}),
        ({"vlan": 7, "vlanTrunk": [{"id": 5}], "preserveDefaultVlan": False}, {5: [], 7: ["PVID", "Egress Untagged"]}),
    ],
)
def test_the_kernel_has_the_port_in_its_vlans(config: dict[str, Any], wanted: dict[int, list[str]]) -> None:
    config = {"type": "bridge", "bridge": "br0", "isGateway": True} | config
    with node(), container() as netns:
        ipam = answer("10.77.0.5/24", gateways=("10.77.0.1",))
        bridge.add(call(config, netns), ipam)
        result = bridge.add(call(config, netns), ipam)
        shown = subprocess.run(["bridge", "-j", "vlan"], check=True, capture_output=True, text=True).stdout
        port = next(each for each in json.loads(shown) if each["ifname"] == result.interfaces[1].name)
        assert {each["vlan"]: each.get("flags", []) for each in port["vlans"]} == wanted
