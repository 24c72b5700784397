"""Read the state of a sandbox from the kernel, and its files. Blocking, about a millisecond: call it on a thread."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from functools import partial

import msgspec

from events.schema import Phase
from nodeworker.drift.differences import Snapshot
from nodeworker.drift.expected import ExpectedLink
from nodeworker.drift.files import ExpectedFile
from nodeworker.drift.filter_rules import missing_rules
from nodeworker.drift.renamed import renamed
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.kernel.rtnetlink import addresses, bridge_ports, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins import device_info

_PAIRED = "veth"


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, and the node's ID (nsid) of the namespace."""

    snapshot: Snapshot
    netnsid: int


def take_snapshot(
    netns: str, expected: Collection[ExpectedLink], phase: Phase, inode: int = 0, cache: RulesetCache | None = None
) -> Observation:
    """Return the state of the *expected* interfaces in the namespace at *netns* with *inode* (see ``Namespace``).

    *cache* has the packet filter's rules as last read. Raises RequestFailedError (namespace_invalid; plugin_failed if
    ``iptables`` does not work), NetlinkError.
    """
    with Namespace(netns, phase, inode) as container, Netlink.within(container) as inside, Netlink.on_node() as node:
        present = {link.name: link for link in links.list_all(inside)}
        ports = {str(each.ifname): port for each in expected if (port := _node_end(node, present.get(each.ifname)))}
        parents = {name: link for name in {each.parent for each in expected} - {""} if (link := _named(node, name))}
        snapshot = Snapshot(
            links=present,
            renamed=renamed(expected, present, parents, partial(_node_end, node)),
            addresses=tuple(addresses.list_all(inside)),
            routes=tuple(
                route for family in (socket.AF_INET, socket.AF_INET6) for route in routes.list_all(inside, family)
            ),
            parents=parents,
            ports=ports,
            vlans=_vlans(
                node, {each.ifname: port for each in expected if each.vlans.any and (port := ports.get(each.ifname))}
            ),
            missing_rules=missing_rules(
                [each.rules for each in expected if each.rules is not None], phase, cache or RulesetCache()
            ),
        )
        return Observation(snapshot=snapshot, netnsid=links.ensure_netnsid(node, container.fd))


def read_files(files: Collection[ExpectedFile]) -> Mapping[str, bytes]:
    """Return the contents of those *files* that exist, by path. One that can't be read is empty."""
    contents: dict[str, bytes] = {}
    for path in {each.path for each in files}:
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                contents[path] = file.read(device_info.MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            contents[path] = b""
    return contents


def _vlans(node: Netlink, ports: Mapping[str, Link]) -> Mapping[str, Mapping[int, int]]:
    """Return the VLANs of *ports*; the kernel can only list those of all ports of the node."""
    answers = node.dump(bridge_ports.vlans_request()) if ports else ()
    return {ifname: bridge_ports.decode_vlans(port.index, answers) for ifname, port in ports.items()}


def _named(node: Netlink, name: str) -> Link | None:
    return links.find(node, links.by_name(name))


def _node_end(node: Netlink, link: Link | None) -> Link | None:
    """Return the node's end of the veth pair whose end in the container is *link*."""
    if link is None or link.kind != _PAIRED or not link.parent or link.parent_netnsid is None:
        return None
    port = links.find(node, links.by_index(link.parent))
    return port if port is not None and (port.kind, port.parent) == (_PAIRED, link.index) else None
