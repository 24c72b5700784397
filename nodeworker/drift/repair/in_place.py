"""Repair interfaces that exist, directly in the kernel, whichever plugin created them.

Blocking: call it on a thread. Every change is idempotent: an address or route that exists already is no error.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from events.schema import Drift, DriftKind, ErrorClass, Phase
from nodeworker.drift import filter_rules
from nodeworker.drift.differences import Snapshot
from nodeworker.drift.expected import ExpectedLink, ExpectedRoute, Network
from nodeworker.drift.expected_rules import ExpectedRules
from nodeworker.kernel import sysctl
from nodeworker.kernel.layouts import rtmsg
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, bridge_ports, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kit.addressing import Assignment
from nodeworker.plugins.native.kit.announce import announce_ipv4, announce_ipv6
from nodeworker.plugins.native.kit.endpoints import Endpoints
from nodeworker.plugins.native.kit.port_vlans import joined

_ANNOUNCED = frozenset({DriftKind.LINK_MISSING, DriftKind.LINK_DOWN, DriftKind.MAC_CHANGED, DriftKind.ADDRESS_MISSING})
_SILENT = frozenset({links.OPERSTATE_DOWN, links.OPERSTATE_LOWER_LAYER_DOWN})
_CARRIER_TIMEOUT, _CARRIER_PAUSE = 0.5, 0.01
"""Seconds. A link that was just set up, and a bridge port, pass packets a moment later."""
_BY_THE_KERNEL = 2
_LINK_SCOPE = 253


class NotRepaired(msgspec.Struct, frozen=True):
    """A drift that was not repaired, and why."""

    drift: Drift
    error_class: ErrorClass
    reason: str


def repair_in_place(
    netns: str, expected: Sequence[ExpectedLink], snapshot: Snapshot, drifts: Sequence[Drift], inode: int = 0
) -> list[NotRepaired]:
    """Repair *drifts* of the *expected* interfaces in order; return those that could not be repaired.

    *snapshot* is their state. The namespace is the one at *netns* with *inode* (see ``Namespace``).
    Raises RequestFailedError (namespace_invalid).
    """
    not_repaired: list[NotRepaired] = []
    known = {each.ifname: each for each in expected}
    with (
        Namespace(netns, Phase.REPAIR, inode) as container,
        Netlink.within(container) as inside,
        Netlink.on_node() as node,
    ):
        repair = _Repair(Endpoints(node=node, container=inside, netns=container), snapshot)
        for drift in drifts:
            if (link := known.get(drift.ifname)) is None:
                reason = "nothing is recorded of the interface"
                not_repaired.append(NotRepaired(drift, ErrorClass.NOT_REPAIRABLE, reason))
                continue
            try:
                if reason := repair.one(link, drift):
                    not_repaired.append(NotRepaired(drift, ErrorClass.NOT_REPAIRABLE, reason))
            except OSError as error:
                reason = f"the kernel said: {error.strerror or error}"
                not_repaired.append(NotRepaired(drift, ErrorClass.PLUGIN_FAILED, reason))
            except NativeError as error:
                not_repaired.append(NotRepaired(drift, ErrorClass.PLUGIN_FAILED, str(error)))
        for ifname in {drift.ifname for drift in drifts if drift.kind in _ANNOUNCED} & known.keys():
            repair.announce(known[ifname])
    return not_repaired


def rename_port(netns: str, ifname: str, name: str, mac: str) -> None:
    """Give the node's end of the veth pair *ifname* the recorded *name*, if it is free, and *mac*.

    Does nothing without such a pair.

    Raises RequestFailedError (namespace_invalid), NetlinkError.
    """
    with (
        Namespace(netns, Phase.REPAIR) as container,
        Netlink.within(container) as inside,
        Netlink.on_node() as node,
    ):
        link = links.find(inside, links.by_name(ifname))
        if link is None or link.kind != "veth" or link.parent_netnsid is None:
            return
        port = links.find(node, links.by_index(link.parent))
        if port is None or port.kind != "veth":
            return
        if port.name != name and links.find(node, links.by_name(name)) is None:
            down, up = links.change(port.index, up=False), links.change(port.index, up=True)
            node.do(down, links.change(port.index, name=name), up)  # kernels before 6.2 do not rename a link that is up
        if mac and port.mac != mac.lower():
            node.do(links.change(port.index, mac=mac))


class _Repair:
    """Repairs single drifts of one sandbox."""

    def __init__(self, ends: Endpoints, snapshot: Snapshot) -> None:
        self._ends = ends
        self._snapshot = snapshot

    def one(self, expected: ExpectedLink, drift: Drift) -> str:
        """Repair *drift*; return why it can't be repaired, or an empty text. Raises OSError, NativeError."""
        link = self._snapshot.links.get(expected.ifname)
        match drift.kind:
            case DriftKind.PARENT_MISSING | DriftKind.PARENT_DOWN:
                return self._parent(expected)
            case DriftKind.PORT_DETACHED | DriftKind.VLANS_CHANGED:
                return self._attach_port(expected)
            case _ if link is None:
                return "the interface is missing"
            case DriftKind.LINK_DOWN:
                self._set_up(link, expected)
            case DriftKind.MTU_CHANGED:
                return self._mtu(link, expected, int(drift.expected))
            case DriftKind.MAC_CHANGED if expected.kind == "ipvlan":
                return f"an ipvlan interface has the MAC address of its parent {expected.parent}"
            case DriftKind.MAC_CHANGED:
                self._inside(links.change(link.index, mac=expected.mac))
            case DriftKind.ADDRESS_FOREIGN:
                self._inside(addresses.delete(link.index, ipaddress.ip_interface(drift.found)))
            case DriftKind.ADDRESS_MISSING:
                self._address(link, expected, drift)
            case DriftKind.ROUTE_MISSING:
                return self._route(link, expected, drift)
            case DriftKind.MASQUERADE_MISSING | DriftKind.FILTER_MISSING if expected.rules is not None:
                return self._rules(expected.rules, drift)
            case _:
                return "this version of Plumbline does not know how"
        return ""

    def announce(self, expected: ExpectedLink) -> None:
        """Announce the addresses of the interface: neighbours may have another MAC address or port in their caches."""
        assignments = [Assignment(address=each, gateway=None) for each in expected.addresses]
        with contextlib.suppress(OSError):  # without it neighbours learn the change later, from traffic
            if assignments and (link := self._wait_for_carrier(expected)) is not None:
                announce_ipv4(self._ends, link, assignments)
                announce_ipv6(self._ends, link, assignments)

    def _wait_for_carrier(self, expected: ExpectedLink) -> Link | None:
        """Return the interface when it and its port pass packets, or after a timeout."""
        until, port = time.monotonic() + _CARRIER_TIMEOUT, self._snapshot.ports.get(expected.ifname)
        while True:
            link = links.find(self._ends.container, links.by_name(expected.ifname))
            outside = links.find(self._ends.node, links.by_index(port.index)) if port is not None else None
            silent = any(each is not None and each.operstate in _SILENT for each in (link, outside))
            if not silent or time.monotonic() > until:
                return link
            time.sleep(_CARRIER_PAUSE)

    def _parent(self, expected: ExpectedLink) -> str:
        """Set a bridge up, as its plugin would with the next ADD. The administrator manages other parents."""
        parent = self._snapshot.parents.get(expected.parent)
        if parent is None:
            return f"{expected.parent} is the node's: create it again, with the settings that it needs"
        if not expected.is_port:
            return f"{expected.parent} is the node's: set it up (ip link set {expected.parent} up)"
        self._on_node(links.change(parent.index, up=True))
        return ""

    def _attach_port(self, expected: ExpectedLink) -> str:
        port, bridge = self._snapshot.ports.get(expected.ifname), self._snapshot.parents.get(expected.parent)
        if port is None:
            return "its other end is not on the node any more: delete the interface so that the worker creates it again"
        if bridge is None:
            return f"bridge {expected.parent} is missing"
        requests = [links.change(port.index, up=True, master=bridge.index)]
        if expected.hairpin or expected.isolated:
            requests.append(bridge_ports.change(port.index, hairpin=expected.hairpin, isolated=expected.isolated))
        self._on_node(*requests, *joined(port.index, bridge, expected.vlans))
        return ""

    def _mtu(self, link: Link, expected: ExpectedLink, mtu: int) -> str:
        parent = self._snapshot.parents.get(expected.parent)
        if parent is not None and not expected.has_room(parent.mtu, mtu):
            return f"its parent {expected.parent} is the node's and has MTU {parent.mtu}: give it {mtu} or more"
        self._inside(links.change(link.index, mtu=mtu))
        return ""

    def _set_up(self, link: Link, expected: ExpectedLink) -> None:
        if (port := self._snapshot.ports.get(expected.ifname)) is not None and not port.up:
            self._on_node(links.change(port.index, up=True))
        self._inside(links.change(link.index, up=True))

    def _address(self, link: Link, expected: ExpectedLink, drift: Drift) -> None:
        address = ipaddress.ip_interface(drift.expected)
        if address.version == 6:
            self._ends.netns.run_inside(lambda: sysctl.enable_ipv6(expected.ifname))
        replaced = any(each.replaces_kernels(address) for each in expected.routes)
        self._inside(
            addresses.add(link.index, address, dad=False),
            *([_remove_prefix_route(address.network, link)] if replaced else []),
        )

    def _route(self, link: Link, expected: ExpectedLink, drift: Drift) -> str:
        route = next((each for each in expected.routes if str(each) == drift.expected), None)
        if route is None:
            return "no such route is recorded"
        if not route.own:
            return f"it is not recorded through which interface plugin {expected.kind} routed it"
        self._inside(*_requests(route, link))
        return ""

    def _rules(self, rules: ExpectedRules, drift: Drift) -> str:
        port = self._snapshot.ports.get(drift.ifname)
        if port is None and drift.kind is DriftKind.FILTER_MISSING:
            return "its other end, where it is filtered, is not on the node any more"
        filter_rules.restore(rules, drift.kind, port.name if port is not None else "")
        return ""

    def _inside(self, *requests: Request) -> None:
        self._ends.container.do(*requests)

    def _on_node(self, *requests: Request) -> None:
        self._ends.node.do(*requests)


def _requests(route: ExpectedRoute, link: Link) -> list[Request]:
    """Return the requests that create *route* through *link*."""
    table = route.table or routes.MAIN
    if route.by_kernel:
        created = Route(
            destination=route.destination,
            index=link.index,
            source=route.source if route.destination.version == 4 else None,
            scope=_LINK_SCOPE,
            protocol=_BY_THE_KERNEL,
            metric=0 if route.destination.version == 4 else 256,
        )
        return [routes.add(created)]
    created = Route(
        destination=route.destination,
        index=link.index,
        gateway=route.gateway,
        source=route.source,
        metric=route.metric,
        table=table,
        scope=route.scope,
        mtu=route.mtu,
        advmss=route.advmss,
    )
    requests = [routes.add(created)]
    if route.source is not None and route.destination.version == 6:
        # Removing an address, the kernel keeps its IPv6 route without the source, and refuses to add an equal one.
        requests.insert(0, routes.delete(replace(created, source=None)))
    if route.source is not None and route.gateway is not None:
        requests.append(_remove_prefix_route(route.destination, link))
    return requests


def _remove_prefix_route(network: Network, link: Link) -> Request:
    """Return the request that removes the prefix route to *network*, which the kernel creates with an address."""
    return routes.delete(
        Route(destination=network, index=link.index, scope=rtmsg.RT_SCOPE_NOWHERE, protocol=_BY_THE_KERNEL)
    )
