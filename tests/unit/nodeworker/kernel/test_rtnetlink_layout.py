"""A second opinion on the layouts: what pyroute2 reads in our requests, and what we read in its messages."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.kernel import wire
from nodeworker.kernel.layouts import ifaddrmsg, ifinfmsg, nl, rtmsg, rtnl
from nodeworker.kernel.rtnetlink import addresses, bridge_ports, links, message, routes
from nodeworker.kernel.rtnetlink.message import Answer, Request


def read(kind: Any, request: Request) -> Any:
    """Return what pyroute2 reads in *request* as it goes onto the wire."""
    packed = message.packed(request, 7)
    assert len(packed) % 4 == 0
    decoded = kind(packed)
    decoded.decode()
    assert decoded["header"]["sequence_number"] == 7
    assert decoded["header"]["type"] == request.type
    assert decoded["header"]["flags"] == request.flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK
    return decoded


def test_a_new_macvlan() -> None:
    request = links.create(
        "net1",
        "macvlan",
        data={"IFLA_MACVLAN_MODE": "bridge"},
        parent=7,
        parent_netnsid=3,
        mtu=1400,
        mac="02:00:5e:10:00:01",
        queue_length=0,
    )
    seen = read(ifinfmsg.ifinfmsg, request)
    for name, value in (
        ("IFLA_IFNAME", "net1"),
        ("IFLA_LINK", 7),
        ("IFLA_LINK_NETNSID", 3),
        ("IFLA_MTU", 1400),
        ("IFLA_TXQLEN", 0),
        ("IFLA_ADDRESS", "02:00:5e:10:00:01"),
    ):
        assert seen.get_attr(name) == value
    assert seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "macvlan"
    assert seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_MACVLAN_MODE") == "bridge"


def test_a_new_veth_pair() -> None:
    seen = read(
        ifinfmsg.ifinfmsg, links.create("net1", "veth", data=links.veth_peer("veth0a0b0c0d", netns_fd=9, mtu=1300))
    )
    peer = seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert [peer.get_attr(name) for name in ("IFLA_IFNAME", "IFLA_NET_NS_FD", "IFLA_MTU")] == ["veth0a0b0c0d", 9, 1300]


def test_a_changed_link() -> None:
    seen = read(ifinfmsg.ifinfmsg, links.change(5, up=True, promiscuous=False, master=0, group=9, alias="for a pod"))
    assert (seen["index"], seen["flags"], seen["change"]) == (
        5,
        ifinfmsg.IFF_UP,
        ifinfmsg.IFF_UP | ifinfmsg.IFF_PROMISC,
    )
    assert [seen.get_attr(name) for name in ("IFLA_MASTER", "IFLA_GROUP", "IFLA_IFALIAS")] == [0, 9, "for a pod"]
    assert read(ifinfmsg.ifinfmsg, links.change(5, allmulti=True))["flags"] == ifinfmsg.IFF_ALLMULTI


def test_a_bridge_port() -> None:
    seen = read(ifinfmsg.ifinfmsg, bridge_ports.change(5, hairpin=True, isolated=False))
    assert (seen["family"], seen["index"]) == (socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7, 5)
    port = seen.get_attr("IFLA_PROTINFO")
    assert (port.get_attr("IFLA_BRPORT_MODE"), port.get_attr("IFLA_BRPORT_ISOLATED")) == (1, 0)


def test_vlans_of_a_bridge_port() -> None:
    def vlans(request: Request) -> list[tuple[int, int]]:
        seen = read(ifinfmsg.ifinfmsg, request)
        assert (seen["family"], seen["index"]) == (7, 5)
        spec = seen.get_attr("IFLA_AF_SPEC")
        assert spec.get_attr("IFLA_BRIDGE_VLAN_FLAGS") == ifinfmsg.BRIDGE_FLAGS_MASTER
        return [(each["flags"], each["vid"]) for each in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO")]

    pvid_untagged = ifinfmsg.BRIDGE_VLAN_INFO_PVID | ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED
    assert vlans(bridge_ports.add_untagged_vlan(5, 100)) == [(pvid_untagged, 100)]
    assert vlans(bridge_ports.remove_vlan(5, 1)) == [(0, 1)]
    begin, end = ifinfmsg.BRIDGE_VLAN_INFO_RANGE_BEGIN, ifinfmsg.BRIDGE_VLAN_INFO_RANGE_END
    assert vlans(bridge_ports.add_tagged_vlans(5, [(7, 7), (10, 20)])) == [(0, 7), (begin, 10), (end, 20)]


def test_a_bridge_that_filters_by_vlan() -> None:
    seen = read(ifinfmsg.ifinfmsg, links.create("br0", "bridge", data={"IFLA_BR_VLAN_FILTERING": 1}))
    assert seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_BR_VLAN_FILTERING") == 1


def test_a_veth_pair_of_the_node() -> None:
    seen = read(ifinfmsg.ifinfmsg, links.create("br0.7", "veth", data=links.veth_peer("veth0a0b0c0d", queue_length=0)))
    peer = seen.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert [peer.get_attr(name) for name in ("IFLA_IFNAME", "IFLA_NET_NS_FD")] == ["veth0a0b0c0d", None]


@pytest.mark.parametrize(
    ("text", "broadcast"),
    [("10.7.0.5/24", "10.7.0.255"), ("10.7.0.5/31", None), ("10.7.0.5/32", None), ("fd77::5/64", None)],
)
def test_an_address(text: str, broadcast: str | None) -> None:
    address = ipaddress.ip_interface(text)
    seen = read(ifaddrmsg.ifaddrmsg, addresses.add(5, address, dad=False))
    assert (seen["index"], seen["prefixlen"], seen["family"]) == (
        5,
        address.network.prefixlen,
        addresses.family_of(address),
    )
    assert seen.get_attr("IFA_LOCAL") == seen.get_attr("IFA_ADDRESS") == str(address.ip)
    assert seen.get_attr("IFA_BROADCAST") == broadcast
    assert seen.get_attr("IFA_FLAGS") == (ifaddrmsg.IFA_F_NODAD if address.version == 6 else None)


@pytest.mark.parametrize("table", [routes.MAIN, 255, 256, 70000])
def test_a_route(table: int) -> None:
    route = routes.Route(
        destination=ipaddress.ip_network("fd88::/48"),
        index=5,
        gateway=ipaddress.ip_address("fd77::1"),
        source=ipaddress.ip_address("fd77::5"),
        metric=20,
        table=table,
        mtu=1300,
        advmss=1200,
    )
    request = routes.add(route)
    seen = read(rtmsg.rtmsg, request)
    assert (seen["family"], seen["dst_len"], seen["proto"], seen["type"]) == (socket.AF_INET6, 48, 3, 1)
    assert (seen.get_attr("RTA_TABLE") or seen["table"]) == table
    for name, value in (("RTA_DST", "fd88::"), ("RTA_GATEWAY", "fd77::1"), ("RTA_PREFSRC", "fd77::5")):
        assert seen.get_attr(name) == value
    assert [seen.get_attr(name) for name in ("RTA_OIF", "RTA_PRIORITY")] == [5, 20]
    metrics = seen.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU"), metrics.get_attr("RTAX_ADVMSS")) == (1300, 1200)
    assert routes.decode(Answer(rtnl.RTM_NEWROUTE, request.body)) == [route]


def test_a_route_over_several_hops_is_read_once_per_hop() -> None:
    sent = rtmsg.rtmsg()
    sent["family"], sent["table"] = socket.AF_INET, routes.MAIN
    hops = [{"oif": 3, "attrs": [("RTA_GATEWAY", "10.7.0.1")]}, {"oif": 4, "attrs": [("RTA_GATEWAY", "10.7.0.2")]}]
    sent["attrs"] = [("RTA_MULTIPATH", hops)]
    sent.encode()
    seen = routes.decode(Answer(rtnl.RTM_NEWROUTE, bytes(sent.data)[message.HEADER.size :]))
    assert [(each.index, str(each.gateway)) for each in seen] == [(3, "10.7.0.1"), (4, "10.7.0.2")]


@pytest.mark.parametrize("cut", range(1, 12))
def test_attributes_that_are_cut_short_end_the_list(cut: int) -> None:
    body = wire.attribute(3, b"abc\0") + wire.attribute(4, b"\x07\0")
    assert wire.split(body[:-cut]) in ({3: b"abc\0"}, {3: b"abc\0", 4: b"\x07\0"}, {})
    assert wire.split(body) == {3: b"abc\0", 4: b"\x07\0"}
    assert wire.split(b"\2\0\3\0" + body) == {}


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=9))), st.binary(max_size=6), st.integers(0, 9))
def test_attributes_decode_alike_in_bulk_and_one_by_one(
    given: list[tuple[int, bytes]], rest: bytes, start: int
) -> None:
    body = b"".join(wire.attribute(kind, value) for kind, value in given) + rest
    assert wire.split(body, start) == dict(wire.each_attribute(body, start))
