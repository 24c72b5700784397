"""Put right what differs about interfaces that are there, in the kernel, whoever made them.

Blocking: for a thread. Everything is idempotent: an address that is there, a route that is there, are fine.
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
from nodeworker.drift.expected_rules import Ruled
from nodeworker.kernel import sysctl
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds.bridge.vlans import joined
from nodeworker.plugins.native.kit.addressing import Assignment
from nodeworker.plugins.native.kit.announce import announce, announce_ipv4
from nodeworker.plugins.native.kit.endpoints import Endpoints

_ANNOUNCED = frozenset({DriftKind.LINK_MISSING, DriftKind.LINK_DOWN, DriftKind.MAC_CHANGED, DriftKind.ADDRESS_MISSING})
_SILENT = frozenset({links.OPERSTATE_DOWN, links.OPERSTATE_LOWER_LAYER_DOWN})
_CARRIER_PATIENCE, _CARRIER_PAUSE = 0.5, 0.01
"""Seconds. A link that was just set up, and a bridge's port, let packets through a moment later."""
_BY_THE_KERNEL = 2
_LINK_SCOPE = 253


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A drift that was not put right."""

    drift: Drift
    error_class: ErrorClass
    reason: str


def mend(
    netns: str, wanted: Sequence[ExpectedLink], seen: Snapshot, drifts: Sequence[Drift], inode: int = 0
) -> list[Refused]:
    """Put right *drifts* of the *wanted* interfaces, as they were *seen*, in order; return those that could not be.

    The namespace is that at *netns* with the *inode*, as of ``Namespace``.
    Raises RequestFailedError (namespace_invalid).
    """
    refused: list[Refused] = []
    known = {each.ifname: each for each in wanted}
    with (
        Namespace(netns, Phase.REPAIR, inode) as container,
        Netlink.within(container) as inside,
        Netlink.on_node() as node,
    ):
        hands = _Hands(Endpoints(node=node, container=inside, netns=container), seen)
        for drift in drifts:
            if (link := known.get(drift.ifname)) is None:
                refused.append(_refused(drift, ErrorClass.NOT_REPAIRABLE, "nothing is recorded of the interface"))
                continue
            try:
                if reason := hands.mend(link, drift):
                    refused.append(_refused(drift, ErrorClass.NOT_REPAIRABLE, reason))
            except OSError as error:
                refused.append(_refused(drift, ErrorClass.PLUGIN_FAILED, f"the kernel said: {error.strerror or error}"))
            except NativeError as error:
                refused.append(_refused(drift, ErrorClass.PLUGIN_FAILED, str(error)))
        for ifname in {drift.ifname for drift in drifts if drift.kind in _ANNOUNCED} & known.keys():
            hands.announce(known[ifname])
    return refused


def rename_port(netns: str, ifname: str, name: str, mac: str) -> None:
    """Give the node's end of the pair *ifname* the *name* and *mac* that it had, if there is one and they are free.

    Raises RequestFailedError (namespace_invalid), NetlinkError.
    """
    with (
        Namespace(netns, Phase.REPAIR) as container,
        Netlink.within(container) as inside,
        Netlink.on_node() as node,
    ):
        link = links.find(inside, links.named(ifname))
        if link is None or link.kind != "veth" or link.parent_netnsid is None:
            return
        port = links.find(node, links.numbered(link.parent))
        if port is None or port.kind != "veth":
            return
        if port.name != name and links.find(node, links.named(name)) is None:
            down, up = links.change(port.index, up=False), links.change(port.index, up=True)
            node.do(down, links.change(port.index, name=name), up)  # kernels before 6.2 rename no link that is up
        if mac and port.mac != mac.lower():
            node.do(links.change(port.index, mac=mac))


class _Hands:
    """Both ends of a sandbox, at work."""

    def __init__(self, ends: Endpoints, seen: Snapshot) -> None:
        self._ends = ends
        self._seen = seen

    def mend(self, wanted: ExpectedLink, drift: Drift) -> str:
        """Put *drift* right; return why it can't be, or an empty text. Raises OSError, NativeError."""
        link = self._seen.links.get(wanted.ifname)
        match drift.kind:
            case DriftKind.PARENT_MISSING | DriftKind.PARENT_DOWN:
                return self._parent(wanted)
            case DriftKind.PORT_DETACHED | DriftKind.VLANS_CHANGED:
                return self._plug(wanted)
            case _ if link is None:
                return "the interface is missing"
            case DriftKind.LINK_DOWN:
                self._set_up(link, wanted)
            case DriftKind.MTU_CHANGED:
                return self._mtu(link, wanted, int(drift.expected))
            case DriftKind.MAC_CHANGED if wanted.kind == "ipvlan":
                return f"an ipvlan interface has the MAC address of its parent {wanted.parent}"
            case DriftKind.MAC_CHANGED:
                self._inside(links.change(link.index, mac=wanted.mac))
            case DriftKind.ADDRESS_FOREIGN:
                self._inside(addresses.delete(link.index, ipaddress.ip_interface(drift.found)))
            case DriftKind.ADDRESS_MISSING:
                self._address(link, wanted, drift)
            case DriftKind.ROUTE_MISSING:
                return self._route(link, wanted, drift)
            case DriftKind.MASQUERADE_MISSING | DriftKind.FILTER_MISSING if wanted.ruled is not None:
                return self._rules(wanted.ruled, drift)
            case _:
                return "this version of Plumbline does not know how"
        return ""

    def announce(self, wanted: ExpectedLink) -> None:
        """Tell the neighbours where the addresses of the interface live: they may know another place."""
        given = [Assignment(address=each, gateway=None) for each in wanted.addresses]
        with contextlib.suppress(OSError):  # they find out by themselves, later
            if given and (link := self._carrying(wanted)) is not None:
                announce_ipv4(self._ends, link, given)
                announce(self._ends, link, given)

    def _carrying(self, wanted: ExpectedLink) -> Link | None:
        """Return the interface once it and its port let packets through, or when they have had long enough."""
        until, port = time.monotonic() + _CARRIER_PATIENCE, self._seen.ports.get(wanted.ifname)
        while True:
            link = links.find(self._ends.container, links.named(wanted.ifname))
            outside = links.find(self._ends.node, links.numbered(port.index)) if port is not None else None
            silent = any(each is not None and each.operstate in _SILENT for each in (link, outside))
            if not silent or time.monotonic() > until:
                return link
            time.sleep(_CARRIER_PAUSE)

    def _parent(self, wanted: ExpectedLink) -> str:
        """Set a bridge up, as its plugin would with the next ADD. Other parents are the node's own business."""
        parent = self._seen.parents.get(wanted.parent)
        if parent is None:
            return f"{wanted.parent} is the node's: make it again, and whatever it needs"
        if not wanted.is_port:
            return f"{wanted.parent} is the node's: set it up (ip link set {wanted.parent} up)"
        self._on_node(links.change(parent.index, up=True))
        return ""

    def _plug(self, wanted: ExpectedLink) -> str:
        port, bridge = self._seen.ports.get(wanted.ifname), self._seen.parents.get(wanted.parent)
        if port is None:
            return "its other end is not on the node any more: delete the interface to have it made again"
        if bridge is None:
            return f"bridge {wanted.parent} is missing"
        requests = [links.change(port.index, up=True, master=bridge.index)]
        if wanted.hairpin or wanted.isolated:
            requests.append(links.port(port.index, hairpin=wanted.hairpin, isolated=wanted.isolated))
        self._on_node(*requests, *joined(port.index, bridge, wanted.vlans))
        return ""

    def _mtu(self, link: Link, wanted: ExpectedLink, mtu: int) -> str:
        parent = self._seen.parents.get(wanted.parent)
        if parent is not None and not wanted.has_room(parent.mtu, mtu):
            return f"{wanted.parent}, which it rests on, is the node's and has MTU {parent.mtu}: give it {mtu} or more"
        self._inside(links.change(link.index, mtu=mtu))
        return ""

    def _set_up(self, link: Link, wanted: ExpectedLink) -> None:
        if (port := self._seen.ports.get(wanted.ifname)) is not None and not port.up:
            self._on_node(links.change(port.index, up=True))
        self._inside(links.change(link.index, up=True))

    def _address(self, link: Link, wanted: ExpectedLink, drift: Drift) -> None:
        address = ipaddress.ip_interface(drift.expected)
        if address.version == 6:
            self._ends.netns.inside(lambda: sysctl.enable_ipv6(wanted.ifname))
        replaced = any(each.replaces_kernels(address) for each in wanted.routes)
        self._inside(
            addresses.add(link.index, address, dad=False), *([_kernels(address.network, link)] if replaced else [])
        )

    def _route(self, link: Link, wanted: ExpectedLink, drift: Drift) -> str:
        route = next((each for each in wanted.routes if str(each) == drift.expected), None)
        if route is None:
            return "no such route is recorded"
        if not route.own:
            return f"nobody knows which interface plugin {wanted.kind} had it lead through"
        self._inside(*_requests(route, link))
        return ""

    def _rules(self, ruled: Ruled, drift: Drift) -> str:
        port = self._seen.ports.get(drift.ifname)
        if port is None and drift.kind is DriftKind.FILTER_MISSING:
            return "its other end, where it is filtered, is not on the node any more"
        filter_rules.make(ruled, drift.kind, port.name if port is not None else "")
        return ""

    def _inside(self, *requests: Request) -> None:
        self._ends.container.do(*requests)

    def _on_node(self, *requests: Request) -> None:
        self._ends.node.do(*requests)


def _requests(route: ExpectedRoute, link: Link) -> list[Request]:
    """Return what makes *route* through *link*."""
    table = route.table or routes.MAIN
    if route.by_kernel:
        made = Route(
            destination=route.destination,
            index=link.index,
            source=route.source if route.destination.version == 4 else None,
            scope=_LINK_SCOPE,
            protocol=_BY_THE_KERNEL,
            metric=0 if route.destination.version == 4 else 256,
        )
        return [routes.add(made)]
    made = Route(
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
    requests = [routes.add(made)]
    if route.source is not None and route.destination.version == 6:
        # The kernel leaves an IPv6 route without the source that it takes away, and adds none that is else the same.
        requests.insert(0, routes.delete(replace(made, source=None)))
    if route.source is not None and route.gateway is not None:
        requests.append(_kernels(route.destination, link))
    return requests


def _kernels(network: Network, link: Link) -> Request:
    """Return what takes the route away that the kernel makes to the *network* of an address."""
    return routes.delete(Route(destination=network, index=link.index, scope=routes.NOWHERE, protocol=_BY_THE_KERNEL))


def _refused(drift: Drift, error_class: ErrorClass, reason: str) -> Refused:
    return Refused(drift=drift, error_class=error_class, reason=reason)
