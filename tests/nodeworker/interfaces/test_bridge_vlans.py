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
from kernel_view import container, filters_vlans, node
from native_harness import answer, call

from nodeworker.interfaces import bridge, bridge_vlans
from nodeworker.interfaces.bridge_vlans import Trunk
from nodeworker.netlink import links
from nodeworker.netlink.links import Link
from nodeworker.netlink.message import u16

IDS = st.integers(1, 4094)
RANGES = st.tuples(IDS, IDS).map(lambda ends: Trunk(min_id=min(ends), max_id=max(ends)))
TRUNKS = st.lists(st.one_of(RANGES, IDS.map(lambda number: Trunk(id=number))), max_size=8)

needs_vlans = pytest.mark.skipif(
    os.geteuid() != 0 or not filters_vlans(), reason="the kernel has no VLAN filtering of bridges"
)


def filtering_bridge(default: int = 1) -> Link:
    data = links.vlan_filtering() + u16(links.IFLA_BR_VLAN_DEFAULT_PVID, default)
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
def test_a_trunk_is_the_union_of_what_it_names_in_as_few_ranges_as_there_can_be(trunk: list[Trunk]) -> None:
    ranges = bridge_vlans.membership(0, trunk, keeps_default=True).tagged
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
        (7, None, True, [links.into_vlan(5, 7)]),
        (7, None, False, [links.out_of_vlan(5, 1), links.into_vlan(5, 7)]),
        (1, None, False, [links.out_of_vlan(5, 1), links.into_vlan(5, 1)]),
        (0, [Trunk(id=9), Trunk(min_id=3, max_id=5)], True, [links.into_tagged_vlans(5, [(3, 5), (9, 9)])]),
        (0, [Trunk(id=9)], False, [links.out_of_vlan(5, 1), links.into_tagged_vlans(5, [(9, 9)])]),
    ],
)
def test_a_port_joins_what_is_asked_for(vlan: int, trunk: list[Trunk] | None, keeps: bool, wanted: list[Any]) -> None:
    member = bridge_vlans.membership(vlan, trunk, keeps_default=keeps)
    assert bridge_vlans.joined(5, filtering_bridge(), member) == wanted
    assert member.filtering == (vlan != 0 or trunk is not None)


def test_a_bridge_without_a_default_vlan_has_none_to_leave() -> None:
    member = bridge_vlans.membership(7, None, keeps_default=False)
    assert bridge_vlans.joined(5, filtering_bridge(default=0), member) == [links.into_vlan(5, 7)]


@needs_vlans
@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"vlan": 100, "preserveDefaultVlan": False}, {100: ["PVID", "Egress Untagged"]}),
        ({"vlanTrunk": [{"id": 5}, {"minID": 10, "maxID": 12}], "preserveDefaultVlan": False}, {5: [], 10: []}),
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
