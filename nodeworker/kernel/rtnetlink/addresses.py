"""Requests that add addresses to interfaces and remove them, and the kernel's descriptions of addresses."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TypeAlias

import msgspec

from nodeworker.kernel import codec
from nodeworker.kernel.layouts import ifaddrmsg, nl, rtnl
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink

Address: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_LAYOUT = codec.layout(ifaddrmsg.ifaddrmsg)
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})
_LONGEST_WITH_BROADCAST = 30
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
    """Return the request that adds *address*, with its broadcast address, to the interface *index*.

    An existing address is no error. Without *dad* an IPv6 address is usable at once: the kernel does not ask the
    neighbours whether it is taken (RFC 4862, section 5.4).
    """
    values = _values(index, address)
    if address.version == 4 and address.network.prefixlen <= _LONGEST_WITH_BROADCAST:
        values["IFA_BROADCAST"] = address.network.broadcast_address.packed
    if address.version == 6 and not dad:
        values["IFA_FLAGS"] = ifaddrmsg.IFA_F_NODAD
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return Request(rtnl.RTM_NEWADDR, flags, _LAYOUT.encode(values), frozenset({errno.EEXIST}))


def delete(index: int, address: Address) -> Request:
    """Return the request that removes *address* from the interface *index*; a missing address is no error."""
    body = _LAYOUT.encode(_values(index, address))
    return Request(rtnl.RTM_DELADDR, 0, body, frozenset({errno.EADDRNOTAVAIL, errno.ENODEV}))


def list_of(netlink: Netlink, index: int) -> list[Assigned]:
    """Return the addresses of the interface *index*, in the kernel's order, IPv4 first. Raises NetlinkError."""
    requests = (
        Request(rtnl.RTM_GETADDR, 0, _LAYOUT.encode({"family": family, "index": index}))
        for family in (socket.AF_INET, socket.AF_INET6)
    )
    answers = [answer for request in requests for answer in netlink.dump(request)]
    found = [_decode(answer.body) for answer in answers if answer.type == rtnl.RTM_NEWADDR]
    # A kernel without strict checking answers with the addresses of all interfaces.
    return [each for each in found if each.index == index]


def list_all(netlink: Netlink) -> list[Assigned]:
    """Return the addresses of all interfaces. Raises NetlinkError."""
    answers = netlink.dump(Request(rtnl.RTM_GETADDR, 0, _LAYOUT.encode({"family": socket.AF_UNSPEC})))
    return [_decode(each.body) for each in answers if each.type == rtnl.RTM_NEWADDR and each.body[0] in _FAMILIES]


def _values(index: int, address: Address) -> dict[str, object]:
    return {
        "family": family_of(address),
        "prefixlen": address.network.prefixlen,
        "index": index,
        "IFA_LOCAL": address.packed,
        "IFA_ADDRESS": address.packed,
    }


def _decode(body: bytes) -> Assigned:
    found = _LAYOUT.decode(body)
    packed = found.get("IFA_LOCAL") or found["IFA_ADDRESS"]
    return Assigned(
        index=found["index"],
        address=ipaddress.ip_interface((packed, found["prefixlen"])),
        flags=found.get("IFA_FLAGS", found["flags"]),
        scope=found["scope"],
    )
