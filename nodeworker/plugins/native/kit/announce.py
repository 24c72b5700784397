"""Announce an interface's addresses to its neighbours, whose caches may hold an older MAC address.

For IPv4 the kernel does so when a link with ``arp_notify`` comes up, and not when a link that is up gets an address.
For IPv6 it does so after duplicate address detection, for which native plugins do not wait. The announcement of IPv6 is
a raw ICMPv6 packet; that of ARP needs a packet socket, and closing one blocks the thread for 12 ms.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Sequence

from nodeworker.kernel.layouts import ifinfmsg
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.kit.addressing import Assignment
from nodeworker.plugins.native.kit.endpoints import Endpoints

_ETH_P_ARP = 0x0806
_ARP_ETHERNET_IPV4_REQUEST = bytes.fromhex("0001 0800 06 04 0001")
"""Hardware and protocol, the lengths of their addresses, operation."""
_ARPHRD_ETHER = 1
_BROADCAST = b"\xff" * 6
_MAC_LENGTH = 6

_ALL_NODES = "ff02::1"
_NEIGHBOUR_ADVERTISEMENT = 136
_OVERRIDE = 0x20
_TARGET_LINK_LAYER_ADDRESS = 2
_HOPS = 255
_NOT_YET = frozenset({errno.ENETUNREACH, errno.EINVAL})
"""Errors while the link has no multicast route yet, or the address is still tentative."""
_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Seconds between attempts. Most announcements need no second attempt; on a busy node some need a few."""


def announce_ipv6(ends: Endpoints, link: Link, assigned: Sequence[Assignment]) -> None:
    """Send an unsolicited neighbour advertisement for each IPv6 address (RFC 4861, section 7.2.6).

    A failure is ignored: without an announcement the neighbours learn the address later, from traffic.
    """
    local = [each.address.ip for each in assigned if isinstance(each.address.ip, ipaddress.IPv6Address)]
    if not local:
        return
    with contextlib.suppress(OSError), ends.netns.run_inside(_socket) as connection:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.index)
        for address in local:
            source = address.packed + link.index.to_bytes(4, sys.byteorder)
            message = (
                [advertisement(address, link.mac)],
                [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)],
                socket.MSG_DONTWAIT,
                (_ALL_NODES, 0, 0, link.index),
            )
            _send(lambda message=message: connection.sendmsg(*message), ends, link)


def _send(send: Callable[[], object], ends: Endpoints, link: Link) -> None:
    """Call *send*, and retry while the kernel has not finished its work on a link that is up, or on the address.

    Raises OSError.
    """
    for pause in _PAUSES:
        try:
            send()
        except OSError as error:
            now = links.find(ends.container, links.by_index(link.index)) if error.errno in _NOT_YET else None
            if now is None or not now.flags & ifinfmsg.IFF_LOWER_UP:
                raise
            time.sleep(pause)
        else:
            return
    send()


def advertisement(address: ipaddress.IPv6Address, mac: str) -> bytes:
    """Return the advertisement that *address* is at *mac*; the kernel adds the checksum (RFC 4861, section 4.4)."""
    head = bytes([_NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, _OVERRIDE, 0, 0, 0])
    return head + address.packed + bytes([_TARGET_LINK_LAYER_ADDRESS, 1]) + bytes.fromhex(mac.replace(":", ""))


def announce_ipv4(ends: Endpoints, link: Link, assigned: Sequence[Assignment]) -> None:
    """Broadcast an ARP announcement for each IPv4 address (RFC 5227, section 3), if *link* uses ARP.

    A failure is ignored: without an announcement the neighbours learn the address later, from traffic.
    """
    local = [each.address.ip for each in assigned if isinstance(each.address.ip, ipaddress.IPv4Address)]
    mac = bytes.fromhex(link.mac.replace(":", ""))
    if not local or link.flags & ifinfmsg.IFF_NOARP or len(mac) != _MAC_LENGTH:
        return
    with contextlib.suppress(OSError), ends.netns.run_inside(_packet_socket) as connection:
        for address in local:
            place = (link.name, _ETH_P_ARP, socket.PACKET_BROADCAST, _ARPHRD_ETHER, _BROADCAST)
            connection.sendto(arp_announcement(address, mac), socket.MSG_DONTWAIT, place)


def arp_announcement(address: ipaddress.IPv4Address, mac: bytes) -> bytes:
    """Return the ARP request of *mac* for its own *address*; a neighbour that has it in its cache updates the entry."""
    return _ARP_ETHERNET_IPV4_REQUEST + mac + address.packed + bytes(_MAC_LENGTH) + address.packed


def _packet_socket() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
