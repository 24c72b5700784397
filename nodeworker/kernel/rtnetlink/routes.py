"""Requests that add, replace, delete and list routes, of both families."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace as changed

from nodeworker.kernel import codec
from nodeworker.kernel.layouts import nl, rtmsg, rtnl
from nodeworker.kernel.rtnetlink.message import Answer, Request
from nodeworker.kernel.rtnetlink.socket import Netlink

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Gateway: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAIN: Final = 254
"""``RT_TABLE_MAIN``: the table of routes that name no other. (pyroute2 has no name for it.)"""
TABLES_IN_HEADER: Final = 256
"""Tables from this number on are named by an attribute."""
PROTOCOL_KERNEL = rtnl.rtprotos["RTPROT_KERNEL"]
PROTOCOL_BOOT = rtnl.rtprotos["RTPROT_BOOT"]
PROTOCOL_RA = rtnl.rtprotos["RTPROT_RA"]
UNICAST = rtnl.rtypes["RTN_UNICAST"]

_CLONED = 0x200
"""``RTM_F_CLONED``: what the kernel learned about one destination of a route."""
_LAYOUT = codec.layout(rtmsg.rtmsg)

DEFAULT_V4 = ipaddress.IPv4Network("0.0.0.0/0")
DEFAULT_V6 = ipaddress.IPv6Network("::/0")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route to add, or one of the kernel's; the kernel chooses what is 0 or None."""

    destination: Network
    index: int
    """Of the interface that packets leave through."""
    gateway: Gateway | None = None
    source: Gateway | None = None
    """The address that the kernel gives packets without one."""
    metric: int = 0
    """For IPv6, the kernel turns 0 into 1024."""
    table: int = MAIN
    scope: int = rtmsg.RT_SCOPE_UNIVERSE
    """IPv4 only."""
    protocol: int = PROTOCOL_BOOT
    mtu: int = 0
    advmss: int = 0
    type: int = UNICAST

    @property
    def is_default(self) -> bool:
        """Whether it is for every destination."""
        return self.destination.prefixlen == 0


def add(route: Route) -> Request:
    """Return the request that adds *route* before others to its destination; an existing route is no error."""
    return Request(rtnl.RTM_NEWROUTE, nl.NLM_F_CREATE, _encode(route), frozenset({errno.EEXIST}))


def replace(route: Route) -> Request:
    """Return the request that replaces the first route with the destination, table and metric of *route*."""
    return Request(rtnl.RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, _encode(route))


def delete(route: Route) -> Request:
    """Return the request that deletes the first route with everything that *route* states; no route is no error.

    Scope ``RT_SCOPE_NOWHERE`` matches any.
    """
    return Request(rtnl.RTM_DELROUTE, 0, _encode(route), frozenset({errno.ESRCH, errno.ENODEV}))


def list_all(netlink: Netlink, family: int) -> list[Route]:
    """Return the routes of *family* (``AF_INET``, ``AF_INET6``) in all tables, in the kernel's order.

    A route over several next hops comes once per hop. Raises NetlinkError.
    """
    answers = netlink.dump(Request(rtnl.RTM_GETROUTE, 0, _LAYOUT.encode({"family": family})))
    return [route for answer in answers if answer.type == rtnl.RTM_NEWROUTE for route in decode(answer)]


def defaults(netlink: Netlink, family: int) -> list[Route]:
    """Return the default unicast routes of *family* in the main table. Raises NetlinkError."""
    routes = list_all(netlink, family)
    return [route for route in routes if route.is_default and route.table == MAIN and route.type == UNICAST]


def decode(answer: Answer) -> list[Route]:
    """Return the route in *answer*, once for each of its next hops; none for what the kernel keeps in its cache."""
    found = _LAYOUT.decode(answer.body)
    if found["flags"] & _CLONED:
        return []
    metrics = found.get("RTA_METRICS") or {}
    nowhere = bytes(4 if found["family"] == socket.AF_INET else 16)
    route = Route(
        destination=ipaddress.ip_network((found.get("RTA_DST", nowhere), found["dst_len"])),
        index=found.get("RTA_OIF", 0),
        gateway=_gateway(found.get("RTA_GATEWAY")),
        source=_gateway(found.get("RTA_PREFSRC")),
        metric=found.get("RTA_PRIORITY", 0),
        table=found.get("RTA_TABLE", found["table"]),
        scope=found["scope"],
        protocol=found["proto"],
        mtu=metrics.get("RTAX_MTU", 0),
        advmss=metrics.get("RTAX_ADVMSS", 0),
        type=found["type"],
    )
    hops: Iterable[codec.Values] = found.get("RTA_MULTIPATH") or ()
    return [changed(route, index=hop["oif"], gateway=_gateway(hop.get("RTA_GATEWAY"))) for hop in hops] or [route]


def _encode(route: Route) -> bytes:
    in_header = route.table < TABLES_IN_HEADER
    metrics = {name: value for name, value in (("RTAX_MTU", route.mtu), ("RTAX_ADVMSS", route.advmss)) if value}
    prefix = route.destination.prefixlen
    return _LAYOUT.encode(
        {
            "family": socket.AF_INET if route.destination.version == 4 else socket.AF_INET6,
            "dst_len": prefix,
            "table": route.table if in_header else 0,
            "proto": route.protocol,
            "scope": route.scope,
            "type": route.type,
            "RTA_DST": route.destination.network_address.packed if prefix else None,
            "RTA_OIF": route.index or None,
            "RTA_GATEWAY": route.gateway.packed if route.gateway else None,
            "RTA_PREFSRC": route.source.packed if route.source else None,
            "RTA_PRIORITY": route.metric or None,
            "RTA_TABLE": None if in_header else route.table,
            "RTA_METRICS": metrics or None,
        }
    )


def _gateway(packed: bytes | None) -> Gateway | None:
    return ipaddress.ip_address(packed) if packed else None
