"""Veth pairs: one end in the container, the other on the node; the kernel creates each end in its namespace.

The name of the node's end is a hash: by it, the repetition of an interrupted ADD finds its pair.
"""

from __future__ import annotations

import hashlib

import msgspec

from nodeworker.kernel import sysctl
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import Endpoints, create_link, error_context, find_link, name_taken

_NAMES = 10
"""Names to try for the node's end: another pair may have the same hash."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The two ends of a pair: in the container, and on the node."""

    inside: Link
    outside: Link


def node_names(call: Call) -> list[str]:
    """Return the possible names of the node's end for *call*, in the order of the attempts."""
    return end_names(call.container_id, call.network, call.ifname)


def end_names(*owner: str) -> list[str]:
    """Return the possible names of an end for *owner*, in the order of the attempts."""
    digest = hashlib.sha256("\0".join(owner).encode()).hexdigest()
    return [f"veth{digest[place * 4 : place * 4 + 8]}" for place in range(_NAMES)]


def create_pair(ends: Endpoints, call: Call, *, mtu: int = 0, mac: str = "") -> Pair:
    """Return the pair of *call*, new or from an interrupted ADD; both ends may be down. Raises NativeError.

    As with the reference plugins, the ends have no transmission queue, and the node's ignores router advertisements.
    """
    names = node_names(call)
    inside = _inside(ends, call, names, mtu, mac)
    with error_context(f"look up the other end of {call.ifname}"):
        outside = links.find(ends.node, links.by_index(inside.parent))
    if outside is None or outside.name not in names or (outside.kind, outside.parent) != ("veth", inside.index):
        raise name_taken(call)
    sysctl.try_ensure(f"ipv6/conf/{outside.name}/accept_ra", "0", is_another=True)
    return Pair(inside=inside, outside=outside)


def _inside(ends: Endpoints, call: Call, names: list[str], mtu: int, mac: str) -> Link:
    """Return the container's end, or another interface with its name."""
    for name in names:
        other = links.veth_peer(name, netns_fd=ends.netns.node_fd, mtu=mtu, queue_length=0)
        create = links.create(call.ifname, "veth", data=other, mtu=mtu, mac=mac, queue_length=0)
        inside = create_link(ends.container, call.ifname, "veth", create) or find_link(ends.container, call.ifname)
        if inside is not None:
            return inside
    raise NativeError(f"can't make {call.ifname}: the node has other interfaces named {', '.join(names)}")
