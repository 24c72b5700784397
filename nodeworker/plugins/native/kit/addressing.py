"""Configure an interface in a container with the addresses and routes that an IPAM plugin assigned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from nodeworker.kernel import sysctl
from nodeworker.kernel.layouts import rtmsg
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Gateway, Route
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context
from nodeworker.plugins.spec.addresses import network, optional, with_prefix
from nodeworker.plugins.spec.results import IP, Result


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """An address for the container, and its network's gateway if there is one."""

    address: Address
    gateway: Gateway | None


def assignments(call: Call, ipam_result: Result) -> list[Assignment]:
    """Return the addresses that *ipam_result* assigns.

    Raises NativeError if it assigns none, one that is malformed, or one twice: the interface would lack an address.
    """
    if not ipam_result.ips:
        raise NativeError(f"the IPAM plugin assigned no address to {call.ifname}")
    assigned = [assignment(call, ip) for ip in ipam_result.ips]
    seen: set[Address | Gateway] = set()
    for address in (each.address for each in assigned):
        # The kernel has an IPv4 address once for each prefix length, and an IPv6 address once.
        key = address if address.version == 4 else address.ip
        if key in seen:
            raise NativeError(
                f"the IPAM plugin assigned {address} to {call.ifname} twice: make each range or address of ipam another"
            )
        seen.add(key)
    return assigned


def with_interface(ips: Sequence[IP], index: int) -> tuple[IP, ...]:
    """Return *ips*, assigned to the interface *index* of a result."""
    return tuple(replace(ip, interface=index) for ip in ips)


def configure(
    ends: Endpoints,
    call: Call,
    link: Link,
    assigned: Sequence[Assignment],
    result: Result,
    *,
    dad: bool,
    notify: bool = False,
) -> None:
    """Add the addresses *assigned* and the routes of *result* to *link*, in the container, and set it up.

    Without *dad* IPv6 addresses are usable at once: IPAM assigns each only once. With *notify* the kernel announces the
    IPv4 addresses to the neighbours. Raises NativeError.
    """
    if any(each.address.version == 6 for each in assigned):
        with error_context(f"enable IPv6 for {call.ifname}"):
            ends.netns.run_inside(lambda: sysctl.enable_ipv6(call.ifname))
    with error_context(f"configure {call.ifname} with {', '.join(str(each.address) for each in assigned)}"):
        ends.container.do(
            *([links.enable_arp_notify(link.index)] if notify else []),
            *(addresses.add(link.index, each.address, dad=dad) for each in assigned),
            links.change(link.index, up=True),
        )
    wanted = _routes(call, link, assigned, result)
    for outcome, (route, _) in zip(ends.container.attempt(*(request for _, request in wanted)), wanted, strict=True):
        if outcome is not None:
            way = f" by {route.gateway}" if route.gateway else ""
            raise NativeError(f"can't route {route.destination}{way} through {call.ifname}: {outcome.strerror}")


def _routes(call: Call, link: Link, assigned: Sequence[Assignment], result: Result) -> list[tuple[Route, Request]]:
    """Return the routes of *result*; one without a gateway gets the first gateway of its family."""
    gateways: dict[int, Gateway] = {}
    for each in assigned:
        if each.gateway:
            gateways.setdefault(each.gateway.version, each.gateway)
    wanted: list[tuple[Route, Request]] = []
    for each in result.routes:
        try:
            destination = network(each.dst)
            gateway = optional(each.gw) or gateways.get(destination.version)
        except ValueError as error:
            raise NativeError(f"the IPAM plugin assigned {call.ifname} an invalid route: {error}") from None
        route = Route(
            destination=destination,
            index=link.index,
            gateway=gateway,
            metric=each.priority,
            table=routes.MAIN if each.table is None else each.table,
            scope=rtmsg.RT_SCOPE_UNIVERSE if each.scope is None else each.scope,
            mtu=each.mtu,
            advmss=each.advmss,
        )
        wanted.append((route, routes.add(route)))
    return wanted


def assignment(call: Call, ip: IP) -> Assignment:
    """Return the address of *ip* with its gateway. Raises NativeError if one is malformed."""
    try:
        return Assignment(
            address=with_prefix(ip.address),
            gateway=optional(ip.gateway),
        )
    except ValueError as error:
        raise NativeError(f"the IPAM plugin assigned {call.ifname} an invalid address: {error}") from None


_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def enable_forwarding(assigned: Iterable[Assignment]) -> None:
    """Enable forwarding on the node for the IP versions of *assigned*. Raises NativeError."""
    for version in sorted({each.address.version for each in assigned}):
        with error_context(f"enable forwarding of IPv{version} on the node"):
            sysctl.ensure(_FORWARDING[version], "1")
