"""Compare the expected state of a sandbox with a snapshot of the kernel.

Pure. State that the kernel creates by itself is not drift: link-local addresses, addresses and routes from router
advertisements, the local table, the MAC address of a bond and its members, and the members' MTU. A missing interface is
one drift; its addresses, routes and rules are not listed too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from events.schema import Drift, DriftKind
from nodeworker.drift.expected import Address, ExpectedLink, ExpectedRoute
from nodeworker.kernel.layouts import ifaddrmsg
from nodeworker.kernel.rtnetlink import bridge_ports, links
from nodeworker.kernel.rtnetlink.addresses import Assigned
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.plugins.native.kit import port_vlans

_SCOPE_LINK = 253
_NO_PREFIX_ROUTE = 0x200


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a sandbox in the kernel at one moment."""

    links: Mapping[str, Link]
    """Interfaces in the container, by name."""
    renamed: Mapping[str, str] = {}
    """The present names of expected interfaces that a program in the container renamed, by their own."""
    addresses: tuple[Assigned, ...] = ()
    routes: tuple[Route, ...] = ()
    parents: Mapping[str, Link] = {}
    """Parent links that exist on the node, by name."""
    ports: Mapping[str, Link] = {}
    """The node's ends of veth pairs, by the interface name in the container."""
    vlans: Mapping[str, Mapping[int, int]] = {}
    """The VLANs, each with its flags, of the ports that must belong to some."""
    missing_rules: Mapping[str, Mapping[DriftKind, str]] = {}
    """Interfaces whose rules in the node's packet filter are incomplete, with what remains of the rules."""


def differences(
    expected: tuple[ExpectedLink, ...], snapshot: Snapshot, wanted_mtus: Mapping[str, int]
) -> tuple[Drift, ...]:
    """Return all drift of the *expected* interfaces, in the order in which to repair it.

    *wanted_mtus* has, by interface name, the MTU of an interface that is expected without one.
    """
    return tuple(drift for link in expected for drift in _of_link(link, snapshot, wanted_mtus.get(link.ifname, 0)))


def _of_link(expected: ExpectedLink, snapshot: Snapshot, wanted_mtu: int) -> Iterator[Drift]:
    link, parent, port = (
        snapshot.links.get(expected.ifname),
        snapshot.parents.get(expected.parent),
        snapshot.ports.get(expected.ifname),
    )
    if expected.parent:
        yield from _of_parent(expected, parent)
    if expected.ifname in snapshot.renamed:
        return
    if link is None:
        if not expected.optional:
            yield _drift(expected, DriftKind.LINK_MISSING, expected.ifname)
        return
    if expected.is_port and parent is not None and (port is None or port.master != parent.index):
        yield _drift(expected, DriftKind.PORT_DETACHED, f"port of {expected.parent}", port.name if port else "")
    elif expected.is_port and parent is not None:
        present_vlans = snapshot.vlans.get(expected.ifname, {})
        if port_vlans.missing(present_vlans, bridge_ports.default_vlan(parent), expected.vlans):
            yield _drift(expected, DriftKind.VLANS_CHANGED, expected.vlans, port_vlans.described(present_vlans))
    is_member = _is_bonded(link, snapshot.links)
    yield from _of_properties(expected, link, port, any_mac=is_member or link.kind in links.BONDS)
    if (mtu := expected.mtu or wanted_mtu) and link.mtu != mtu and not is_member:
        yield _drift(expected, DriftKind.MTU_CHANGED, mtu, _found_mtu(expected, link, parent, mtu))
    present = {each.address: each for each in snapshot.addresses if each.index == link.index}
    yield from _of_addresses(expected, present)
    for route in expected.routes:
        if not (_is_implied(route, present) or any(_fits(route, each, link) for each in snapshot.routes)):
            yield _drift(expected, DriftKind.ROUTE_MISSING, route)
    if expected.rules is not None:
        for kind, remaining in snapshot.missing_rules.get(expected.ifname, {}).items():
            yield _drift(expected, kind, expected.rules.description(kind), remaining)


def _of_parent(expected: ExpectedLink, parent: Link | None) -> Iterator[Drift]:
    if parent is None:
        yield _drift(expected, DriftKind.PARENT_MISSING, expected.parent)
    elif not parent.up:
        yield _drift(expected, DriftKind.PARENT_DOWN, f"{expected.parent} up", "down")


def _is_bonded(link: Link, container: Mapping[str, Link]) -> bool:
    """Return whether *link* is a member of a bond among the links of the *container*, which gives it MAC and MTU."""
    return bool(link.master) and any(
        each.index == link.master and each.kind in links.BONDS for each in container.values()
    )


def _of_properties(expected: ExpectedLink, link: Link, port: Link | None, *, any_mac: bool) -> Iterator[Drift]:
    if expected.up and not link.up:
        yield _drift(expected, DriftKind.LINK_DOWN, "up", "down")
    elif expected.up and port is not None and not port.up:
        yield _drift(expected, DriftKind.LINK_DOWN, "up", f"{port.name} on the node down")
    if expected.mac and link.mac != expected.mac and not any_mac:
        yield _drift(expected, DriftKind.MAC_CHANGED, expected.mac, link.mac)


def _found_mtu(expected: ExpectedLink, link: Link, parent: Link | None, mtu: int) -> str:
    """Return the MTU of *link*, and the parent's MTU if it is too small for *mtu*.

    The text changes when the parent's MTU is raised: the worker then records a new drift, which can be repaired.
    """
    if parent is None or expected.has_room(parent.mtu, mtu):
        return str(link.mtu)
    return f"{link.mtu}, as {expected.parent} has {parent.mtu}"


def _of_addresses(expected: ExpectedLink, present: Mapping[Address, Assigned]) -> Iterator[Drift]:
    if expected.addresses:
        for each in present.values():
            if each.address not in expected.addresses and _is_configured(each):
                yield _drift(expected, DriftKind.ADDRESS_FOREIGN, "", each.address)
    for address in expected.addresses:
        if address not in present:
            yield _drift(expected, DriftKind.ADDRESS_MISSING, address)


def _drift(link: ExpectedLink, kind: DriftKind, expected: object, found: object = "") -> Drift:
    return Drift(kind=kind, network=link.network, ifname=link.ifname, expected=str(expected), found=str(found))


def _is_configured(assigned: Assigned) -> bool:
    """Return whether a program or a person added the address, not the kernel or a router advertisement."""
    return bool(assigned.flags & ifaddrmsg.IFA_F_PERMANENT) and assigned.scope < _SCOPE_LINK


def _is_implied(route: ExpectedRoute, present: Mapping[Address, Assigned]) -> bool:
    """Return whether the repair of its address restores *route*, or the address has no prefix route."""
    if not route.by_kernel:
        return False
    return all(each.flags & _NO_PREFIX_ROUTE for address, each in present.items() if address.ip == route.source)


def _fits(expected: ExpectedRoute, route: Route, link: Link) -> bool:
    return (
        route.destination == expected.destination
        and (expected.gateway is None or route.gateway == expected.gateway)
        and (expected.source is None or expected.by_kernel or route.source == expected.source)
        and (expected.table is None or route.table == expected.table)
        and (not expected.own or route.index == link.index)
    )
