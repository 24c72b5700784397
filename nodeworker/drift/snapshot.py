"""Take in at one glance what the kernel has of a sandbox: a millisecond, on a thread that may block."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping

import msgspec

from events.schema import Phase
from nodeworker.drift.differences import Snapshot
from nodeworker.drift.expected import ExpectedLink
from nodeworker.drift.filter_rules import lost
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.socket import Netlink

_PAIRED = "veth"


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, and the number by which the node's kernel knows the namespace."""

    seen: Snapshot
    netnsid: int


def take(
    netns: str, wanted: Collection[ExpectedLink], phase: Phase, inode: int = 0, rules: RulesetCache | None = None
) -> Observation:
    """Return what the kernel has of the *wanted* interfaces of the namespace at *netns*, as of ``Namespace``.

    *rules* has those of the packet filter that are known. Raises RequestFailedError (namespace_invalid, or where
    ``iptables`` does not work plugin_failed), NetlinkError.
    """
    with Namespace(netns, phase, inode) as container, Netlink.within(container) as inside, Netlink.on_node() as node:
        there = {link.name: link for link in links.every(inside)}
        ports = {str(each.ifname): port for each in wanted if (port := _other_end(node, there.get(each.ifname)))}
        parents = {name: link for name in {each.parent for each in wanted} - {""} if (link := _named(node, name))}
        seen = Snapshot(
            links=there,
            addresses=tuple(addresses.every(inside)),
            routes=tuple(
                route for family in (socket.AF_INET, socket.AF_INET6) for route in routes.every(inside, family)
            ),
            parents=parents,
            ports=ports,
            vlans=_vlans(
                node, {each.ifname: port for each in wanted if each.vlans.any and (port := ports.get(each.ifname))}
            ),
            lost=lost([each.ruled for each in wanted if each.ruled is not None], phase, rules or RulesetCache()),
        )
        return Observation(seen=seen, netnsid=links.netnsid(node, container.fd))


def _vlans(node: Netlink, ports: Mapping[str, Link]) -> Mapping[str, Mapping[int, int]]:
    """Return the VLANs of *ports*; the kernel only tells of all that the node has."""
    answers = node.dump(links.port_vlans()) if ports else ()
    return {ifname: links.vlans_of(port.index, answers) for ifname, port in ports.items()}


def _named(node: Netlink, name: str) -> Link | None:
    return links.find(node, links.named(name))


def _other_end(node: Netlink, link: Link | None) -> Link | None:
    """Return the end on the node of the pair that *link* is the container's end of."""
    if link is None or link.kind != _PAIRED or not link.parent or link.parent_netnsid is None:
        return None
    port = links.find(node, links.numbered(link.parent))
    return port if port is not None and (port.kind, port.parent) == (_PAIRED, link.index) else None
