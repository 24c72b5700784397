"""Requests that give addresses to interfaces and take them away, and what the kernel says about one.

Layouts: RFC 3549, section 2.3.3.2, and the kernel's ``include/uapi/linux/if_addr.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import TypeAlias

import msgspec

from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink

Address: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_FLAGS = 8

IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80

_HEADER = struct.Struct("=BBBBI")
"""Family, prefix length, flags, scope, interface index."""
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})
_HAS_BROADCAST = 30
"""The longest IPv4 prefix that has room for a broadcast address."""


class Assigned(msgspec.Struct, frozen=True, kw_only=True):
    """An address on an interface."""

    index: int
    address: Address
    flags: int
    scope: int


def family_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address | Address) -> int:
    """Return the address family of *address*."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def add(index: int, address: Address, *, dad: bool = True) -> Request:
    """Return the request that gives *address* to the interface *index*, with its broadcast address; it may be there.

    Without *dad* an IPv6 address is usable at once: nobody is asked whether it is taken (RFC 4862, section 5.4).
    """
    body = _body(index, address)
    if address.version == 4 and address.network.prefixlen <= _HAS_BROADCAST:
        body += message.attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    if address.version == 6 and not dad:
        body += message.u32(IFA_FLAGS, IFA_F_NODAD)
    return Request(RTM_NEWADDR, message.NLM_F_CREATE | message.NLM_F_EXCL, body, frozenset({errno.EEXIST}))


def delete(index: int, address: Address) -> Request:
    """Return the request that takes *address* from the interface *index*; it may be gone."""
    return Request(RTM_DELADDR, 0, _body(index, address), frozenset({errno.EADDRNOTAVAIL, errno.ENODEV}))


def of(netlink: Netlink, index: int) -> list[Assigned]:
    """Return the addresses of the interface *index*, in the kernel's order, IPv4 first. Raises NetlinkError."""
    answers = [
        answer
        for family in (socket.AF_INET, socket.AF_INET6)
        for answer in netlink.dump(Request(RTM_GETADDR, 0, _HEADER.pack(family, 0, 0, 0, index)))
        if answer.type == RTM_NEWADDR
    ]
    # A kernel without strict checking answers with the addresses of all interfaces.
    return [each for each in map(_assigned, (answer.body for answer in answers)) if each.index == index]


def every(netlink: Netlink) -> list[Assigned]:
    """Return the addresses of all interfaces. Raises NetlinkError."""
    answers = netlink.dump(Request(RTM_GETADDR, 0, _HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    return [_assigned(each.body) for each in answers if each.type == RTM_NEWADDR and each.body[0] in _FAMILIES]


def _body(index: int, address: Address) -> bytes:
    header = _HEADER.pack(family_of(address), address.network.prefixlen, 0, 0, index)
    return header + message.attribute(IFA_LOCAL, address.packed) + message.attribute(IFA_ADDRESS, address.packed)


def _assigned(body: bytes) -> Assigned:
    _, prefix, flags, scope, index = _HEADER.unpack_from(body)
    found = message.attributes(body, _HEADER.size)
    packed = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
    return Assigned(
        index=index,
        address=ipaddress.ip_interface((packed, prefix)),
        flags=message.as_int(found.get(IFA_FLAGS), flags),
        scope=scope,
    )
