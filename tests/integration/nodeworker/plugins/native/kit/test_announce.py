"""Neighbours with an older MAC address of an IP address get the new one, and the address works at once."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from nodeworker.plugins.native import registry
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import BOTH, call, card, ip, needs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

KINDS = [
    ("bridge", {"bridge": "brx"}, "wprt0"),
    ("macvlan", {"master": "par0"}, "wpar0"),
    ("macvlan", {"master": "par0", "mode": "passthru"}, "wpar0"),
    ("host-device", {"device": "par0"}, "wpar0"),
    pytest.param("ipvlan", {"master": "par0"}, "wpar0", marks=needs("ipvlan")),
    pytest.param("vlan", {"master": "par0", "vlanId": 7}, "wpar0", marks=needs("vlan")),
]
"""Plugin, options, and where on the node its neighbours would listen."""
V4, V6 = socket.inet_aton("10.77.0.5"), socket.inet_pton(socket.AF_INET6, "fd77::5")
_ALL_NODES = bytes.fromhex("333300000001")
_NEIGHBOUR_ADVERTISEMENT, _NEIGHBOUR_SOLICITATION = 136, 135


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        card()
        card("prt0")
        ip("link add brx type bridge")
        ip("link set brx up")
        ip("link set prt0 master brx")
        words = ["sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=1"]
        subprocess.run(["ip", "netns", "exec", path.rpartition("/")[2], *words], check=True)
        yield path


def add(kind: str, options: dict[str, Any], netns: str) -> bytes:
    """Attach, and return the MAC address of the container's interface."""
    plugin = registry.interface_plugin(kind)
    assert plugin is not None
    result = plugin.add(call({"type": kind} | options, netns), BOTH)
    mac = next(each.mac for each in result.interfaces if each.sandbox)
    return bytes.fromhex(mac.replace(":", ""))


@pytest.mark.parametrize(("kind", "options", "place"), KINDS)
def test_the_addresses_are_announced_to_neighbours(netns: str, kind: str, options: dict[str, Any], place: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as wire:
        wire.bind((place, 0))
        wire.settimeout(10)
        mac = add(kind, options, netns)
        heard: set[str] = set()
        while heard != {"arp", "advertisement"}:
            frame = wire.recv(2048)
            if frame[12:14] == b"\x08\x06" and frame[22:32] == mac + V4 and frame[38:42] == V4:
                heard.add("arp")
            if frame[12:14] == b"\x86\xdd" and frame[54] == _NEIGHBOUR_ADVERTISEMENT and frame[62:78] == V6:
                assert frame[:6] == _ALL_NODES
                assert (frame[21], frame[22:38], frame[58], frame[78:86]) == (255, V6, 0x20, b"\x02\x01" + mac)
                heard.add("advertisement")
            # No duplicate address detection: it would delay the pod's start by a second.
            assert not (frame[12:14] == b"\x86\xdd" and frame[54] == _NEIGHBOUR_SOLICITATION and frame[62:78] == V6)


@pytest.mark.parametrize(
    ("kind", "options", "place"),
    [*KINDS, ("ptp", {"ipam": {"type": "static"}}, ""), ("vxlan", {"vxlanId": 7, "master": "par0"}, "")],
)
def test_an_ipv6_address_is_usable_at_once(netns: str, kind: str, options: dict[str, Any], place: str) -> None:
    add(kind, options, netns)
    shown = ["ip", "-n", netns.rpartition("/")[2], "-6", "-o", "addr", "show", "dev", "net1", "scope", "global"]
    line = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    assert "fd77::5/64" in line
    assert "tentative" not in line
