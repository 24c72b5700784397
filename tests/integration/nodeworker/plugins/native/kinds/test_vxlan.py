"""A pod's own VXLAN interface: on the wire, over the node's cards, and one for each network and node."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native import registry
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import vxlan
from nodeworker.plugins.native.kit.parent_link import Parent
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import (
    BOTH,
    answer,
    call,
    card,
    cut_everywhere,
    data_of,
    ip,
    is_refused,
    late,
    names,
    needs,
    shown,
    works_or_names_its_module,
)

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

VXLAN: dict[str, Any] = {"type": "vxlan", "vxlanId": 7, "master": "par0"}

CASES: dict[str, dict[str, Any]] = {
    "remote": {"remote": "192.0.2.9", "local": "192.0.2.5", "mtu": 1300},
    "group": {"group": "239.1.1.7", "ttl": 9, "port": 8472},
    "IPv6": {"remote": "2001:db8::9", "local": "2001:db8::5", "mac": "02:00:5e:10:00:07"},
    "nothing but the card": {"learning": False},
}


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish(path)
        yield path


def furnish(_: str) -> None:
    card()
    ip("addr add 192.0.2.5/24 dev par0")
    ip("addr add 2001:db8::5/64 dev par0 nodad")


def link(**values: Any) -> Link:
    fields = {"index": 5, "name": "par0", "kind": "veth", "mac": "", "mtu": 1500, "flags": 0, "master": 0, "parent": 0}
    return Link(**(fields | {"parent_netnsid": None, "operstate": 0, "queue_length": 0, "data": {}} | values))


@pytest.mark.parametrize("options", CASES.values(), ids=[*CASES])
def test_pyroute2_reads_what_was_configured(options: dict[str, Any]) -> None:
    config = msgspec.convert(VXLAN | options, vxlan.Vxlan)
    seen = data_of("vxlan", vxlan._data(config, Parent(link=link(), netnsid=3)))
    peer = options.get("remote") or options.get("group")
    six = "6" if peer and ":" in peer else ""
    wanted = {
        "ID": 7,
        "LINK": 5,
        f"GROUP{six}": peer,
        f"LOCAL{six}": options.get("local"),
        "TTL": options.get("ttl", 0),
        "LEARNING": int(options.get("learning", True)),
        "PORT": options.get("port", 4789),
    }
    assert {key: seen.get_attr(f"IFLA_VXLAN_{key}") for key in wanted} == wanted


@needs("vxlan")
@pytest.mark.parametrize("options", CASES.values(), ids=[*CASES])
def test_the_kernel_has_the_configured_interface(netns: str, options: dict[str, Any]) -> None:
    result = vxlan.add(call(VXLAN | options, netns), BOTH)
    seen = shown("addr show net1", netns)[0]
    data = seen["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"]) == (
        7,
        options.get("port", 4789),
        options.get("learning", True),
    )
    assert (data.get("local") or data.get("local6")) == options.get("local")
    assert (data.get("remote") or data.get("group") or data.get("remote6")) == (
        options.get("remote") or options.get("group")
    )
    room = 1450 - (70 if ":" in options.get("remote", "") else 50)
    assert seen["mtu"] == options.get("mtu", room)
    assert {each["local"] for each in seen["addr_info"] if each["scope"] == "global"} == {"10.77.0.5", "fd77::5"}
    assert (result.interfaces[0].mac, result.interfaces[0].sandbox) == (seen["address"], netns)
    assert seen["address"] == options.get("mac", seen["address"])
    vxlan.check(call(VXLAN | options, netns, prev_result=result))


@needs("vxlan")
def test_packets_go_out_of_the_nodes_card_in_udp(netns: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.bind(("wpar0", 0))
        wire.settimeout(10)
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev par0")
        vxlan.add(call(VXLAN | {"remote": "192.0.2.9"}, netns), answer("10.77.0.5/24"))
        while True:
            frame = wire.recv(2048)
            outer, udp, inner = frame[14:34], frame[34:42], frame[50:]
            if outer[9] == socket.IPPROTO_UDP and inner[12:14] == b"\x08\x06":
                break
    assert ipaddress.ip_address(outer[16:20]) == ipaddress.ip_address("192.0.2.9")
    assert (udp[2:4], frame[46:49]) == ((4789).to_bytes(2, "big"), (7).to_bytes(3, "big"))
    assert inner[28:32] == socket.inet_aton("10.77.0.5"), "the neighbours hear of the address"


@needs("vxlan")
@pytest.mark.parametrize("options", CASES.values(), ids=[*CASES])
@pytest.mark.parametrize("ipam", [BOTH, None], ids=["addresses", "no addresses"])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(options: dict[str, Any], ipam: Any) -> None:
    cut_everywhere(vxlan, VXLAN | {"mac": "02:00:5e:10:00:07"} | options, ipam, furnish)


@needs("vxlan")
def test_a_del_succeeds_on_anything_that_is_gone() -> None:
    late(vxlan, VXLAN, BOTH, furnish)


@needs("vxlan")
def test_the_interface_dies_with_its_card_and_its_container(netns: str) -> None:
    result = vxlan.add(call(VXLAN, netns), BOTH)
    ip("link del par0")
    with pytest.raises(NativeError, match="the master interface par0 is missing on this node"):
        vxlan.check(call(VXLAN, netns, prev_result=result))
    assert names(netns) == {"lo"}
    vxlan.delete(call(VXLAN, netns))
    furnish(netns)
    with container() as brief:
        vxlan.add(call(VXLAN, brief), BOTH)
    while "net1" not in names(netns):  # the kernel takes namespaces apart when it has time
        with contextlib.suppress(NativeError):
            vxlan.add(call(VXLAN, netns), BOTH)


@needs("vxlan")
def test_the_card_of_the_default_route_is_taken_when_none_is_named(netns: str) -> None:
    config = {"type": "vxlan", "vxlanId": 7}
    is_refused(vxlan, call(config, netns), BOTH, "net has no master, and there is no default route on this node")
    ip("route add default via 192.0.2.1")
    asked = call(config, netns, prev_result=vxlan.add(call(config, netns), BOTH))
    vxlan.check(asked)
    ip("route replace default dev wpar0")
    with pytest.raises(NativeError, match="no longer in VXLAN 7 over wpar0"):
        vxlan.check(asked)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"master": "eth9"}, "the master interface eth9 is missing on this node"),
    ({"vxlanId": 0}, "vxlanId 0 is not between 1 and 16777215"),
    ({"vxlanId": 2**24}, "vxlanId 16777216 is not between"),
    ({"vxlanId": -1}, "Expected `int` >= 0"),
    ({"vxlanid": 7}, "unknown field `vxlanid`"),
    ({"port": 0}, "port 0 is not between 1 and 65535"),
    ({"ttl": 256}, "ttl 256 is not between 0 and 255"),
    ({"mtu": 1401}, "mtu 1401 is more than the 1400 that par0 leaves room for"),
    ({"mtu": 1381, "remote": "2001:db8::9"}, "more than the 1380"),
    ({"group": "239.1.1.7", "remote": "192.0.2.9"}, "group and remote exclude each other"),
    ({"group": "192.0.2.9"}, "group 192.0.2.9 is not a multicast address"),
    ({"remote": "239.1.1.7"}, "remote 239.1.1.7 is a multicast address"),
    ({"remote": "node-b"}, 'remote: "node-b" is not an IP address'),
    ({"remote": "192.0.2.9", "local": "2001:db8::5"}, "of different families"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_an_impossible_add_is_refused_with_a_reason(netns: str, options: dict[str, Any], words: str) -> None:
    is_refused(vxlan, call(VXLAN | options, netns), BOTH, words)
    assert names(netns) == {"lo"}


def test_an_address_that_it_can_not_have_is_refused(netns: str) -> None:
    words = 'mac of net1: "02:00" is not a hardware address'
    is_refused(vxlan, call(VXLAN | {"mac": "02:00"}, netns), BOTH, words, code=7)
    assert names(netns) == {"lo"}


@needs("vxlan")
def test_a_network_has_one_interface_on_a_node(netns: str) -> None:
    vxlan.add(call(VXLAN, netns), BOTH)
    with container() as other:
        is_refused(vxlan, call(VXLAN, other), BOTH, "this node has an interface in VXLAN 7 on port 4789 already")
        vxlan.add(call(VXLAN | {"vxlanId": 8}, other), BOTH)
    assert "net1" in names(netns)


@needs("vxlan")
def test_a_foreign_interface_is_left_unchanged(netns: str) -> None:
    ip("link add net1 type vxlan id 7 dstport 4789", netns)
    with pytest.raises(NativeError, match="has another interface net1 already"):
        vxlan.add(call(VXLAN, netns), BOTH)
    assert "net1" in names(netns)


@needs("vxlan")
def test_check_sees_another_network_under_the_name(netns: str) -> None:
    result = vxlan.add(call(VXLAN, netns), BOTH)
    mac = result.interfaces[0].mac
    ip("link del net1", netns)
    ip(f"link add net1 address {mac} type vxlan id 7 dstport 4789", netns)
    with pytest.raises(NativeError, match="no longer in VXLAN 7 over par0"):
        vxlan.check(call(VXLAN, netns, prev_result=result))


def test_a_missing_kernel_module_is_named(netns: str) -> None:
    works_or_names_its_module(vxlan, "vxlan", call(VXLAN, netns), BOTH)


def test_a_configuration_with_vxlan_id_needs_no_binary() -> None:
    mistaken, foreign = VXLAN | {"prot": 4789}, {"type": "vxlan", "vni": 7}
    assert vxlan.unsupported(mistaken) == ""
    assert "vxlanId" in vxlan.unsupported(foreign) or "vni" in vxlan.unsupported(foreign)
    texts = tuple(json.dumps(each) for each in (VXLAN, mistaken, foreign))
    assert registry.choose(texts, registry.NEVER) == (True, True, False)
