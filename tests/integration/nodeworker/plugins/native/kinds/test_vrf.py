"""A VRF in a pod: made for the first interface, gone with the last, and nothing is lost on the way in.

Where the kernel has none, a bridge takes its place, whose first attribute is a number too: so all but what the kernel
does with routing tables is put to the test.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from nodeworker.kernel import codec
from nodeworker.kernel.layouts import LinkMessage, ifaddrmsg, ifinfmsg, rtmsg
from nodeworker.kernel.rtnetlink import addresses, routes
from nodeworker.kernel.rtnetlink.addresses import Assigned
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import vrf
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node, view
from tests.support.plugins.native_harness import (
    BOTH,
    answer,
    call,
    cut_everywhere,
    data_of,
    encoded,
    ip,
    is_refused,
    kernel_has,
    late,
    names,
    needs,
    shown,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

VRF: dict[str, Any] = {"type": "vrf", "vrfname": "blue"}
ROUTES = [{"dst": "10.88.0.0/16", "gw": "10.77.0.1"}, {"dst": "fd88::/64", "gw": "fd77::1"}]


def interface(**values: Any) -> Link:
    fields = {"index": 5, "name": "net1", "kind": "veth", "mac": "", "mtu": 1500, "flags": 0, "master": 0, "parent": 0}
    return Link(**(fields | {"parent_netnsid": None, "operstate": 0, "queue_length": 0, "data": {}} | values))


def a_vrf(table: int) -> Link:
    return interface(index=9, name="blue", kind=vrf.TYPE, data={"IFLA_VRF_TABLE": table})


def furnish(netns: str) -> None:
    """Give the container two interfaces, the first with addresses and routes."""
    for number in (1, 2):
        ip(f"link add net{number} address 02:00:5e:10:00:0{number} type veth peer name other{number}", netns)
        ip(f"link set net{number} up", netns)
        ip(f"link set other{number} up", netns)
    ip("addr add 10.77.0.5/24 dev net1", netns)
    ip("addr add fd77::5/64 dev net1 nodad", netns)
    ip("route add 10.88.0.0/16 via 10.77.0.1", netns)
    ip("-6 route add fd88::/64 via fd77::1", netns)


def before(netns: str, ifname: str = "net1") -> Result:
    return answer("10.77.0.5/24", routes=ROUTES, interfaces=[{"name": ifname, "sandbox": netns}])


def asked(netns: str, config: dict[str, Any] = VRF, ifname: str = "net1") -> Any:
    return call(config, netns, ifname=ifname, prev_result=before(netns, ifname))


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish(path)
        yield path


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of interface that stands for a VRF."""
    if not kernel_has("vrf"):
        monkeypatch.setattr(vrf, "TYPE", "bridge")
        kinds = ifinfmsg.ifinfmsg.ifinfo.data_map
        monkeypatch.setitem(kinds, "bridge", kinds["vrf"])
    return vrf.TYPE


@pytest.mark.parametrize("table", [1, 256, 2**32 - 2])
def test_pyroute2_reads_the_table(table: int) -> None:
    info = codec.layout(LinkMessage).decode(vrf.create("blue", table).body)["IFLA_LINKINFO"]
    assert data_of("vrf", info["IFLA_INFO_DATA"]).get_attr("IFLA_VRF_TABLE") == table
    assert vrf.table_of(a_vrf(table)) == table


@pytest.mark.parametrize(("taken", "free"), [([], 1), ([1, 2, 4], 3), ([2], 1), ([3, 2, 1], 4)])
def test_the_lowest_table_that_no_vrf_has_is_taken(taken: list[int], free: int) -> None:
    others = [interface(kind="macvlan", data={"IFLA_MACVLAN_MODE": "private"}), interface()]
    assert vrf.free_table([*others, *map(a_vrf, taken)]) == free


def test_routes_lost_on_entering_a_vrf_are_restored() -> None:
    def assigned(text: str, flags: int = ifaddrmsg.IFA_F_PERMANENT) -> Assigned:
        return Assigned(index=5, address=ipaddress.ip_interface(text), flags=flags, scope=0)

    def way(text: str, **more: Any) -> Route:
        return Route(**({"destination": ipaddress.ip_network(text), "index": 5} | more))

    by = {"gateway": ipaddress.ip_address("10.77.0.1"), "metric": 7, "mtu": 1300}
    beside = way("10.77.0.1/32", scope=rtmsg.RT_SCOPE_LINK)
    requests = vrf.lost(
        interface(),
        a_vrf(300),
        [assigned("10.77.0.5/24"), assigned("fd77::5/64"), assigned("fe80::5/64"), assigned("fd77::99/64", 0)],
        [
            way("10.88.0.0/16", **by),
            beside,
            way("10.77.0.0/24", protocol=routes.PROTOCOL_KERNEL),
            way("::/0", protocol=9),
            way("10.89.0.0/16", index=6),
            way("10.90.0.0/16", table=100),
            way("10.77.0.5/32", table=255, type=2),
        ],
    )
    assert requests == [
        addresses.add(5, ipaddress.ip_interface("fd77::5/64"), dad=False),
        routes.add(way("10.77.0.1/32", scope=rtmsg.RT_SCOPE_LINK, table=300)),
        routes.add(way("10.88.0.0/16", **by, table=300)),
    ]


def test_the_interface_is_part_of_a_new_vrf_that_is_up(netns: str, kind: str) -> None:
    assert vrf.add(asked(netns), None) == before(netns)
    seen = shown("link show blue", netns)[0]
    assert (seen["linkinfo"]["info_kind"], "UP" in seen["flags"]) == (kind, True)
    assert shown("link show net1", netns)[0]["master"] == "blue"
    vrf.check(asked(netns))
    assert names() == {"lo"}


@pytest.mark.usefixtures("kind")
def test_an_add_or_del_interrupted_anywhere_can_be_repeated() -> None:
    cut_everywhere(vrf, VRF, None, furnish, prev_result=BOTH)


@pytest.mark.usefixtures("kind")
def test_a_del_succeeds_on_anything_that_is_gone() -> None:
    late(vrf, VRF, None, furnish, prev_result=BOTH)


@pytest.mark.usefixtures("kind")
def test_the_vrf_stays_until_its_last_interface_leaves(netns: str) -> None:
    first, second = asked(netns), asked(netns, ifname="net2")
    vrf.add(first, None)
    vrf.add(second, None)
    vrf.delete(first)
    assert "master" not in shown("link show net1", netns)[0]
    assert shown("link show net2", netns)[0]["master"] == "blue"
    vrf.delete(first)
    assert "blue" in names(netns)
    vrf.delete(second)
    assert names(netns) == {"lo", "net1", "net2", "other1", "other2"}


@pytest.mark.usefixtures("kind")
def test_a_vrf_of_an_interface_that_is_gone_goes_too(netns: str) -> None:
    vrf.add(asked(netns), None)
    ip("link del net1", netns)
    vrf.delete(asked(netns))
    assert "blue" not in names(netns)


@pytest.mark.usefixtures("kind")
def test_an_interface_belongs_to_one(netns: str) -> None:
    vrf.add(asked(netns), None)
    red = asked(netns, VRF | {"vrfname": "red"})
    is_refused(vrf, red, None, "net1 is part of a bridge, bond or other VRF already: remove it from there")
    assert shown("link show net1", netns)[0]["master"] == "blue"
    assert "red" not in names(netns)


def test_a_foreign_interface_is_not_used_as_vrf(netns: str) -> None:
    config = asked(netns, VRF | {"vrfname": "other2"})
    before = view(netns)
    is_refused(vrf, config, None, "the container's interface other2 is not a VRF: set vrfname")
    assert differences(view(netns), before) == []


@pytest.mark.usefixtures("kind")
def test_an_impossible_add_is_refused_with_a_reason(netns: str) -> None:
    is_refused(vrf, call(VRF, netns), None, "prevResult is missing")
    is_refused(vrf, asked(netns, ifname="net9"), None, "the container has no interface net9")
    vrf.add(asked(netns), None)
    with pytest.raises(NativeError, match=r"VRF blue has routing table \d+ already, not 77"):
        vrf.add(asked(netns, VRF | {"table": 77}, ifname="net2"), None)
    assert "master" not in shown("link show net2", netns)[0]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("link set net1 nomaster", "net1 is no longer part of VRF blue"),
        ("link del net1", "net1 is no longer part of VRF blue"),
        ("link del blue", "VRF blue is gone"),
    ],
)
def test_check_reports_differences_from_the_record(netns: str, damage: str, words: str) -> None:
    vrf.add(asked(netns), None)
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        vrf.check(asked(netns))


@needs("vrf")
@pytest.mark.parametrize("table", [0, 300])
def test_addresses_and_routes_are_in_the_vrfs_table(netns: str, table: int) -> None:
    vrf.add(asked(netns, VRF | {"table": table}), None)
    ways = {each["dst"] for family in "46" for each in shown(f"-{family} route show table {table or 1}", netns)}
    assert {"10.77.0.0/24", "10.88.0.0/16", "fd77::/64", "fd88::/64"} <= ways
    assert "fd77::5" in {each["local"] for each in shown("addr show net1", netns)[0]["addr_info"]}


@needs("vrf")
@pytest.mark.skipif(not (REFERENCE / "vrf").exists(), reason="the reference plugins are not installed")
@pytest.mark.parametrize("options", [{}, {"table": 300}], ids=["free table", "given table"])
def test_a_native_vrf_is_like_the_reference_plugins(options: dict[str, Any]) -> None:
    """Without routes by a gateway, which version 1.1.1 of the reference plugin loses."""
    config = {"cniVersion": "1.0.0", "name": "net"} | VRF | options
    views: list[Any] = []
    for native in (True, False):
        with node(), container() as path:
            furnish(path)
            ip("route del 10.88.0.0/16", path)
            ip("-6 route del fd88::/64", path)
            previous = encoded(before(path))
            if native:
                result = encoded(vrf.add(asked(path, config), None))
            else:
                result = execute("vrf", "ADD", config | {"prevResult": previous}, path, "net1")
            attached = view(path, {"dns": {}} | result)
            if native:
                vrf.delete(asked(path, config))
            else:
                execute("vrf", "DEL", config | {"prevResult": previous}, path, "net1")
            views.append([attached, view(path)])
    assert differences(*views) == []


def test_a_missing_kernel_module_is_named_with_the_reference_code(netns: str) -> None:
    if kernel_has("vrf"):
        vrf.add(asked(netns), None)
        return
    is_refused(vrf, asked(netns), None, r"kernel does not support vrf .*: load its module vrf$")
    if (REFERENCE / "vrf").exists():
        config = {"cniVersion": "1.0.0", "name": "net", "prevResult": json.loads(json.dumps(encoded(before(netns))))}
        with pytest.raises(AssertionError, match=r'"code": 999'):
            execute("vrf", "ADD", config | VRF, netns, "net1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"table": 300}, ""),
        ({"vrfname": ""}, "no vrfname"),
        ({"table": -1}, "table"),
        ({"vrfName": "red"}, "vrfName"),
        ({"cniVersion": "0.3.0"}, "cniVersion 0.3.0"),
        ({"cniVersion": "9.9.9x"}, "9.9.9x"),
    ],
)
def test_options_of_the_reference_plugin_only_are_not_native(options: dict[str, Any], reason: str) -> None:
    said = vrf.unsupported({"cniVersion": "1.0.0", "name": "net"} | VRF | options)
    assert (reason in said, bool(said)) == (True, bool(reason))
