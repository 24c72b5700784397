"""VLANs of a bridge's ports: a container that sees one of them, and the gateway that stands in it.

The container's end carries no tags. As the port of a VLAN leads to nothing of the node, its gateway is the end of a
pair of its own, ``<bridge>.<vlan>``, whose other end is a port of the same VLAN; as the bridge, it stays.
"""

from __future__ import annotations

import hashlib

from nodeworker.interfaces import sysctl
from nodeworker.interfaces.ends import Ends, explaining, made, present
from nodeworker.interfaces.native import NativeError
from nodeworker.netlink import links
from nodeworker.netlink.links import Link
from nodeworker.netlink.message import Request

FIRST, LAST = 1, 4094


def membership(port: int, bridge: Link, vlan: int, *, keep_default: bool) -> list[Request]:
    """Return the requests that put *port* of *bridge* into *vlan*, and without *keep_default* into no other."""
    default = links.default_vlan(bridge)
    leaving = [] if keep_default or not default else [links.out_of_vlan(port, default)]
    return [*leaving, links.into_vlan(port, vlan)]


def gateway(ends: Ends, bridge: Link, vlan: int, *, keep_default: bool) -> Link:
    """Return the node's own interface in *vlan*, made if need be; what has its name is taken for it.

    Raises NativeError.
    """
    name = f"{bridge.name}.{vlan}"
    digest = hashlib.sha256(name.encode()).hexdigest()
    outer = f"veth{digest[:8]}"
    other = links.peer(outer, netns_fd=ends.netns.node_fd, mtu=bridge.mtu, queue_length=0)
    create = links.create(name, "veth", data=other, mtu=bridge.mtu, queue_length=0)
    link = present(ends.node, name) or made(ends.node, name, "veth", create) or present(ends.node, name)
    if link is None:
        raise NativeError(f"can not make {name}: the node has another interface named {outer}")
    port = present(ends.node, outer)
    if port is not None and port.index == link.parent:
        # An ADD that was cut may have left them unconnected.
        sysctl.prefer(f"ipv6/conf/{outer}/accept_ra", "0")
        with explaining(f"make {name} the node's interface in VLAN {vlan} of {bridge.name}"):
            ends.node.do(
                links.change(port.index, up=True, master=bridge.index),
                *membership(port.index, bridge, vlan, keep_default=keep_default),
                links.change(link.index, up=True),
            )
    return link
