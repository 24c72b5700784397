"""Add a bridge's port to its VLANs, and the node to one of them through an interface.

A bridge that a plugin creates for such a port filters by VLAN; an existing bridge is not changed, as with the reference
plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from nodeworker.kernel import sysctl
from nodeworker.kernel.layouts import ifinfmsg
from nodeworker.kernel.rtnetlink import bridge_ports, links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kit.endpoints import create_link, error_context, find_link
from nodeworker.plugins.native.kit.veth import end_names
from nodeworker.plugins.native.kit.vlan_membership import Membership, merged, shown

_UNTAGGED = ifinfmsg.BRIDGE_VLAN_INFO_PVID | ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED


def joined(port: int, bridge: Link, of: Membership) -> list[Request]:
    """Return the requests that add *port* of *bridge* to the VLANs."""
    requests: list[Request] = []
    if of.any and not of.keeps_default and (default := bridge_ports.default_vlan(bridge)):
        requests.append(bridge_ports.remove_vlan(port, default))
    if of.untagged:
        requests.append(bridge_ports.add_untagged_vlan(port, of.untagged))
    if of.tagged:
        requests.append(bridge_ports.add_tagged_vlans(port, of.tagged))
    return requests


def check(node: Netlink, port: Link, bridge: Link, of: Membership) -> None:
    """Raise NativeError unless *port* of *bridge* is in the VLANs; further VLANs are no error."""
    if not of.any:
        return
    with error_context(f"look up the VLANs of {port.name}"):
        vlans = bridge_ports.decode_vlans(port.index, node.dump(bridge_ports.vlans_request()))
    if reason := missing(vlans, bridge_ports.default_vlan(bridge), of):
        raise NativeError(f"interface {port.name}, a port of bridge {bridge.name}, {reason}: recreate the pod")


def missing(vlans: Mapping[int, int], default: int, of: Membership) -> str:
    """Return what a port with *vlans*, each with its flags, lacks; an empty text if nothing.

    *default* is the VLAN that its bridge puts every port into, 0 for none.
    """
    if of.untagged and vlans.get(of.untagged, 0) & _UNTAGGED != _UNTAGGED:
        return f"no longer has VLAN {of.untagged} for untagged frames"
    wanted = [number for first, last in of.tagged for number in range(first, last + 1)]
    for number in wanted:
        if number not in vlans or vlans[number] & ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED:
            return f"no longer has VLAN {number} for tagged frames"
    if not of.keeps_default and default in vlans and default not in (of.untagged, *wanted):
        return f"is in VLAN {default} again, from which the ADD removed it"
    return ""


def described(vlans: Mapping[int, int]) -> str:
    """Return *vlans* of a port, each with its flags, as text."""
    without_tag = [f"{number} untagged" for number, flags in sorted(vlans.items()) if flags & _UNTAGGED == _UNTAGGED]
    by_tag = shown(merged((number, number) for number, flags in vlans.items() if flags & _UNTAGGED != _UNTAGGED))
    return f"VLAN {', '.join([*without_tag, *by_tag])}" if vlans else "no VLAN"


def node_interface(node: Netlink, bridge: Link, of: Membership) -> Link:
    """Return the node's interface in the untagged VLAN; create it if it does not exist. Raises NativeError."""
    name = f"{bridge.name}.{of.untagged}"
    ports = end_names(bridge.name, str(of.untagged))
    link = find_link(node, name)
    for port in ports if link is None else ():
        data = links.veth_peer(port, mtu=bridge.mtu, queue_length=0)
        create = links.create(name, "veth", data=data, mtu=bridge.mtu, queue_length=0)
        link = create_link(node, name, "veth", create) or find_link(node, name)
        if link is not None:
            break
    if link is None:
        raise NativeError(f"can't create {name}: the node has other interfaces named {', '.join(ports)}")
    if not link.up:  # an interface is set up last: this one is from an interrupted ADD
        _make_ready(node, bridge, link, ports, of)
    return link


def _make_ready(node: Netlink, bridge: Link, link: Link, ports: Sequence[str], of: Membership) -> None:
    requests: list[Request] = []
    with error_context(f"configure {link.name} as the node's interface in VLAN {of.untagged} of {bridge.name}"):
        port = links.find(node, links.by_index(link.parent)) if link.kind == "veth" else None
        if port is not None and port.name in ports:
            sysctl.try_ensure(f"ipv6/conf/{port.name}/accept_ra", "0")
            requests = [
                links.change(port.index, up=True, master=bridge.index),
                *joined(port.index, bridge, replace(of, tagged=())),
            ]
        node.do(*requests, links.change(link.index, up=True))
