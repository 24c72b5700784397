"""What differs between the sandbox as it should be and the kernel as it is.

Pure. What the kernel makes by itself is no drift: link-local addresses, addresses and routes that routers advertised,
the local table. Of an interface that is missing nothing more is said: all that it had went with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from events.schema import Drift, DriftKind
from nodeworker.drift.expected import Address, ExpectedLink, ExpectedRoute
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.addresses import IFA_F_PERMANENT, Assigned
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.plugins.native.kinds.bridge import vlans

_SCOPE_LINK = 253
_NO_PREFIX_ROUTE = 0x200


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's side of a sandbox, as of one moment."""

    links: Mapping[str, Link]
    """In the container, by name."""
    addresses: tuple[Assigned, ...] = ()
    routes: tuple[Route, ...] = ()
    parents: Mapping[str, Link] = {}
    """On the node, by name: those of the interfaces' parents that are there."""
    ports: Mapping[str, Link] = {}
    """On the node, by the name in the container: the other ends that are there."""
    vlans: Mapping[str, Mapping[int, int]] = {}
    """Of those of them that have to be in some, each with its flags."""
    lost: Mapping[str, Mapping[DriftKind, str]] = {}
    """By interface name: what is left of its rules in the node's packet filter, of those that are not all there."""


def differences(wanted: tuple[ExpectedLink, ...], seen: Snapshot, first_mtus: Mapping[str, int]) -> tuple[Drift, ...]:
    """Return all drift of the *wanted* interfaces, in the order in which it is best put right.

    *first_mtus* has, by interface name, the MTU that each had when it was first seen.
    """
    return tuple(drift for link in wanted for drift in _of_link(link, seen, first_mtus.get(link.ifname, 0)))


def _of_link(wanted: ExpectedLink, seen: Snapshot, first_mtu: int) -> Iterator[Drift]:
    link, parent, port = (
        seen.links.get(wanted.ifname),
        seen.parents.get(wanted.parent),
        seen.ports.get(wanted.ifname),
    )
    if wanted.parent:
        yield from _of_parent(wanted, parent)
    if link is None:
        if not wanted.optional:
            yield _drift(wanted, DriftKind.LINK_MISSING, wanted.ifname)
        return
    if wanted.is_port and parent is not None and (port is None or port.master != parent.index):
        yield _drift(wanted, DriftKind.PORT_DETACHED, f"port of {wanted.parent}", port.name if port else "")
    elif wanted.is_port and parent is not None:
        seen_vlans = seen.vlans.get(wanted.ifname, {})
        if vlans.missing(seen_vlans, links.default_vlan(parent), wanted.vlans):
            yield _drift(wanted, DriftKind.VLANS_CHANGED, wanted.vlans, vlans.described(seen_vlans))
    yield from _of_properties(wanted, link, port)
    if (mtu := wanted.mtu or first_mtu) and link.mtu != mtu:
        yield _drift(wanted, DriftKind.MTU_CHANGED, mtu, _found_mtu(wanted, link, parent, mtu))
    there = {each.address: each for each in seen.addresses if each.index == link.index}
    yield from _of_addresses(wanted, there)
    for route in wanted.routes:
        if not (_is_implied(route, there) or any(_fits(route, each, link) for each in seen.routes)):
            yield _drift(wanted, DriftKind.ROUTE_MISSING, route)
    if wanted.ruled is not None:
        for kind, left in seen.lost.get(wanted.ifname, {}).items():
            yield _drift(wanted, kind, wanted.ruled.expected(kind), left)


def _of_parent(wanted: ExpectedLink, parent: Link | None) -> Iterator[Drift]:
    if parent is None:
        yield _drift(wanted, DriftKind.PARENT_MISSING, wanted.parent)
    elif not parent.up:
        yield _drift(wanted, DriftKind.PARENT_DOWN, f"{wanted.parent} up", "down")


def _of_properties(wanted: ExpectedLink, link: Link, port: Link | None) -> Iterator[Drift]:
    if wanted.up and not link.up:
        yield _drift(wanted, DriftKind.LINK_DOWN, "up", "down")
    elif wanted.up and port is not None and not port.up:
        yield _drift(wanted, DriftKind.LINK_DOWN, "up", f"{port.name} on the node down")
    if wanted.mac and link.mac != wanted.mac:
        yield _drift(wanted, DriftKind.MAC_CHANGED, wanted.mac, link.mac)


def _found_mtu(wanted: ExpectedLink, link: Link, parent: Link | None, mtu: int) -> str:
    """Return the MTU of *link*, and why it can't be *mtu* where that is so: it is another drift when it can again."""
    if parent is None or wanted.has_room(parent.mtu, mtu):
        return str(link.mtu)
    return f"{link.mtu}, as {wanted.parent} has {parent.mtu}"


def _of_addresses(wanted: ExpectedLink, there: Mapping[Address, Assigned]) -> Iterator[Drift]:
    if wanted.addresses:
        for each in there.values():
            if each.address not in wanted.addresses and _is_somebodys(each):
                yield _drift(wanted, DriftKind.ADDRESS_FOREIGN, "", each.address)
    for address in wanted.addresses:
        if address not in there:
            yield _drift(wanted, DriftKind.ADDRESS_MISSING, address)


def _drift(wanted: ExpectedLink, kind: DriftKind, expected: object, found: object = "") -> Drift:
    return Drift(kind=kind, network=wanted.network, ifname=wanted.ifname, expected=str(expected), found=str(found))


def _is_somebodys(assigned: Assigned) -> bool:
    """Return whether somebody gave the address, and not the kernel by itself or on a router's word."""
    return bool(assigned.flags & IFA_F_PERMANENT) and assigned.scope < _SCOPE_LINK


def _is_implied(route: ExpectedRoute, there: Mapping[Address, Assigned]) -> bool:
    """Return whether *route* comes back with its address, or is not to be there."""
    if not route.by_kernel:
        return False
    return all(each.flags & _NO_PREFIX_ROUTE for address, each in there.items() if address.ip == route.source)


def _fits(wanted: ExpectedRoute, route: Route, link: Link) -> bool:
    return (
        route.destination == wanted.destination
        and (wanted.gateway is None or route.gateway == wanted.gateway)
        and (wanted.source is None or wanted.by_kernel or route.source == wanted.source)
        and (wanted.table is None or route.table == wanted.table)
        and (not wanted.own or route.index == link.index)
    )
