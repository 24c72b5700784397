"""Requests that make, replace, take away and list routes, of both families.

Layouts: RFC 3549, section 2.3.3.3, and the kernel's ``include/uapi/linux/rtnetlink.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from msgspec.structs import replace as changed

from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import Answer, Request
from nodeworker.kernel.rtnetlink.socket import Netlink

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Gateway: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_METRICS = 8
RTA_MULTIPATH = 9
RTA_TABLE = 15

RTAX_MTU = 2
RTAX_ADVMSS = 8

MAIN = 254
"""The table that holds everything that nobody has put elsewhere."""
UNIVERSE = 0
LINK = 253
HOST = 254
NOWHERE = 255
PROTOCOL_KERNEL = 2
PROTOCOL_BOOT = 3
UNICAST = 1

_TABLES_IN_HEADER = 256
_CLONED = 0x200

_HEADER = struct.Struct("=BBBBBBBBI")
"""Family, length of destination and source, TOS, table, protocol, scope, type, flags."""
_NEXT_HOP = struct.Struct("=HBBi")
"""Length, flags, weight, interface index."""

DEFAULT_V4 = ipaddress.IPv4Network("0.0.0.0/0")
DEFAULT_V6 = ipaddress.IPv6Network("::/0")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A unicast route, as it is wanted or as the kernel has it; 0 and None leave a thing to the kernel."""

    destination: Network
    index: int
    """Of the interface that it leaves through."""
    gateway: Gateway | None = None
    source: Gateway | None = None
    """The address that it prefers to leave from."""
    metric: int = 0
    """Of IPv6, the kernel makes 1024 of 0."""
    table: int = MAIN
    scope: int = UNIVERSE
    """IPv4 only."""
    protocol: int = PROTOCOL_BOOT
    mtu: int = 0
    advmss: int = 0
    type: int = UNICAST

    @property
    def is_default(self) -> bool:
        """Whether it leads everywhere."""
        return self.destination.prefixlen == 0


def add(route: Route) -> Request:
    """Return the request that makes *route*, before others to the same destination; it may be there already."""
    return Request(RTM_NEWROUTE, message.NLM_F_CREATE, _body(route), frozenset({errno.EEXIST}))


def replace(route: Route) -> Request:
    """Return the request that puts *route* in the place of the first one to its destination, table and metric."""
    return Request(RTM_NEWROUTE, message.NLM_F_CREATE | message.NLM_F_REPLACE, _body(route))


def delete(route: Route) -> Request:
    """Return the request that takes away the first route that is like *route* in all that it states; it may be gone.

    Scope ``NOWHERE`` is like any.
    """
    return Request(RTM_DELROUTE, 0, _body(route), frozenset({errno.ESRCH, errno.ENODEV}))


def every(netlink: Netlink, family: int) -> list[Route]:
    """Return the routes of *family* (``AF_INET``, ``AF_INET6``) in all tables, in the kernel's order.

    A route over several next hops comes once per hop. Raises NetlinkError.
    """
    answers = netlink.dump(Request(RTM_GETROUTE, 0, _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)))
    return [route for answer in answers if answer.type == RTM_NEWROUTE for route in _described(answer)]


def defaults(netlink: Netlink, family: int) -> list[Route]:
    """Return the default unicast routes of *family* in the main table. Raises NetlinkError."""
    return [
        route for route in every(netlink, family) if route.is_default and route.table == MAIN and route.type == UNICAST
    ]


def _body(route: Route) -> bytes:
    table = route.table if route.table < _TABLES_IN_HEADER else 0
    family = socket.AF_INET if route.destination.version == 4 else socket.AF_INET6
    prefix = route.destination.prefixlen
    return _HEADER.pack(family, prefix, 0, 0, table, route.protocol, route.scope, route.type, 0) + b"".join(
        _attributes(route)
    )


def _attributes(route: Route) -> Iterable[bytes]:
    if route.destination.prefixlen:
        yield message.attribute(RTA_DST, route.destination.network_address.packed)
    if route.index:
        yield message.u32(RTA_OIF, route.index)
    if route.gateway:
        yield message.attribute(RTA_GATEWAY, route.gateway.packed)
    if route.source:
        yield message.attribute(RTA_PREFSRC, route.source.packed)
    if route.metric:
        yield message.u32(RTA_PRIORITY, route.metric)
    if route.table >= _TABLES_IN_HEADER:
        yield message.u32(RTA_TABLE, route.table)
    metrics = [
        message.u32(kind, value) for kind, value in ((RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)) if value
    ]
    if metrics:
        yield message.nested(RTA_METRICS, *metrics)


def _described(answer: Answer) -> list[Route]:
    family, prefix, _, _, table, protocol, scope, kind, flags = _HEADER.unpack_from(answer.body)
    if flags & _CLONED:
        return []  # what the kernel learned about one destination of a route
    found = message.attributes(answer.body, _HEADER.size)
    width = 4 if family == socket.AF_INET else 16
    metrics = message.attributes(found.get(RTA_METRICS, b""))
    route = Route(
        destination=_network(found.get(RTA_DST, bytes(width)), prefix),
        index=message.as_int(found.get(RTA_OIF)),
        gateway=_gateway(found.get(RTA_GATEWAY)),
        source=_gateway(found.get(RTA_PREFSRC)),
        metric=message.as_int(found.get(RTA_PRIORITY)),
        table=message.as_int(found.get(RTA_TABLE), table),
        scope=scope,
        protocol=protocol,
        mtu=message.as_int(metrics.get(RTAX_MTU)),
        advmss=message.as_int(metrics.get(RTAX_ADVMSS)),
        type=kind,
    )
    hops = found.get(RTA_MULTIPATH)
    return [changed(route, index=index, gateway=gateway) for index, gateway in _hops(hops)] if hops else [route]


def _hops(body: bytes) -> Iterable[tuple[int, Gateway | None]]:
    start = 0
    while start + _NEXT_HOP.size <= len(body):
        length, _, _, index = _NEXT_HOP.unpack_from(body, start)
        if length < _NEXT_HOP.size:
            return
        attributes = message.attributes(body[start : start + length], _NEXT_HOP.size)
        yield index, _gateway(attributes.get(RTA_GATEWAY))
        start += length + (-length % 4)


def _network(packed: bytes, prefix: int) -> Network:
    return ipaddress.ip_network((packed, prefix))


def _gateway(packed: bytes | None) -> Gateway | None:
    return ipaddress.ip_address(packed) if packed else None
