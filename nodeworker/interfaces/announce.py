"""Tell the neighbours of a new interface where its IPv6 addresses now live, because they may know an older place.

For IPv4 the kernel does it, asked by ``arp_notify``. For IPv6 it would do it after duplicate address detection, which
native interfaces don't wait for. The packet is a raw ICMPv6 one: closing a packet socket holds the thread for 12 ms.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence

from nodeworker.interfaces.addressing import Assignment
from nodeworker.interfaces.ends import Ends
from nodeworker.netlink.links import Link

_ALL_NODES = "ff02::1"
_NEIGHBOUR_ADVERTISEMENT = 136
_OVERRIDE = 0x20
_TARGET_LINK_LAYER_ADDRESS = 2
_HOPS = 255


def announce(ends: Ends, link: Link, given: Sequence[Assignment]) -> None:
    """Send an unsolicited neighbour advertisement for each IPv6 address (RFC 4861, section 7.2.6).

    That nobody hears it is no failure: neighbours then find out by themselves, later.
    """
    local = [each.address.ip for each in given if isinstance(each.address.ip, ipaddress.IPv6Address)]
    if not local:
        return
    with contextlib.suppress(OSError), ends.netns.inside(_socket) as connection:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.index)
        for address in local:
            connection.sendmsg(
                [advertisement(address, link.mac)],
                [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address.packed + link.index.to_bytes(4, sys.byteorder))],
                socket.MSG_DONTWAIT,
                (_ALL_NODES, 0, 0, link.index),
            )


def advertisement(address: ipaddress.IPv6Address, mac: str) -> bytes:
    """Return the advertisement that *address* is at *mac*; the kernel puts the checksum in (RFC 4861, section 4.4)."""
    head = bytes([_NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, _OVERRIDE, 0, 0, 0])
    return head + address.packed + bytes([_TARGET_LINK_LAYER_ADDRESS, 1]) + bytes.fromhex(mac.replace(":", ""))


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
