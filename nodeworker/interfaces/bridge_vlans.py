"""Which VLANs a bridge's port belongs to, and the interface by which the node itself takes part in one.

A bridge that is made for such a port filters by VLAN; one that is there is left as it is, as by the reference plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nodeworker.interfaces import sysctl
from nodeworker.interfaces.ends import explaining, made, present
from nodeworker.interfaces.native import NativeError
from nodeworker.interfaces.veth import names_for
from nodeworker.netlink import links
from nodeworker.netlink.links import Link
from nodeworker.netlink.message import Request
from nodeworker.netlink.socket import Netlink

_IDS = range(1, 4095)
_UNTAGGED = links.BRIDGE_VLAN_INFO_PVID | links.BRIDGE_VLAN_INFO_UNTAGGED


class Trunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VLANs that a port belongs to by their tags: one, those from one to another, or both."""

    min_id: int | None = msgspec.field(name="minID", default=None)
    max_id: int | None = msgspec.field(name="maxID", default=None)
    id: int | None = None


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The VLANs of a port; none at all for a port that is left as the bridge makes it."""

    untagged: int = 0
    """The VLAN of what the container sends and gets without a tag; 0 for what the bridge says."""
    tagged: tuple[tuple[int, int], ...] = ()
    """First and last of the VLANs that it takes part in by their tags."""
    filtering: bool = False
    """Whether a bridge that is made for it filters by VLAN."""
    keeps_default: bool = True
    """Whether it stays in the VLAN that the bridge puts every port into."""


def membership(vlan: int, trunk: Sequence[Trunk] | None, *, keeps_default: bool) -> Membership:
    """Return what the configuration asks for. Raises NativeError if that can't be."""
    if vlan and vlan not in _IDS:
        raise NativeError(f"vlan {vlan} is not between 0 and {_IDS.stop - 1}")
    tagged = _ranges(trunk or ())
    if vlan and tagged:
        raise NativeError("vlan and vlanTrunk exclude each other: leave one out")
    return Membership(
        untagged=vlan, tagged=tagged, filtering=bool(vlan) or trunk is not None, keeps_default=keeps_default
    )


def joined(port: int, bridge: Link, of: Membership) -> list[Request]:
    """Return the requests that make *port* of *bridge* a member."""
    requests: list[Request] = []
    if (of.untagged or of.tagged) and not of.keeps_default and (default := links.default_vlan(bridge)):
        requests.append(links.out_of_vlan(port, default))
    if of.untagged:
        requests.append(links.into_vlan(port, of.untagged))
    if of.tagged:
        requests.append(links.into_tagged_vlans(port, of.tagged))
    return requests


def check(node: Netlink, port: Link, bridge: Link, of: Membership) -> None:
    """Raise NativeError unless *port* of *bridge* is a member; in which VLANs others have put it besides is theirs."""
    if not (of.untagged or of.tagged):
        return
    with explaining(f"look up the VLANs of {port.name}"):
        vlans = links.vlans_of(port.index, node.dump(links.port_vlans()))
    if reason := missing(vlans, links.default_vlan(bridge), of):
        raise NativeError(f"interface {port.name}, a port of bridge {bridge.name}, {reason}: attach it again")


def missing(vlans: Mapping[int, int], default: int, of: Membership) -> str:
    """Return what of the membership a port with *vlans*, each with its flags, lacks; or an empty text.

    *default* is the VLAN that its bridge puts every port into, 0 for none.
    """
    if of.untagged and vlans.get(of.untagged, 0) & _UNTAGGED != _UNTAGGED:
        return f"no longer has VLAN {of.untagged} for what has no tag"
    wanted = [number for first, last in of.tagged for number in range(first, last + 1)]
    for number in wanted:
        if number not in vlans or vlans[number] & links.BRIDGE_VLAN_INFO_UNTAGGED:
            return f"is no longer in VLAN {number} by its tag"
    if not of.keeps_default and default in vlans and default not in (of.untagged, *wanted):
        return f"is in VLAN {default} again, which it was taken out of"
    return ""


def node_interface(node: Netlink, bridge: Link, of: Membership) -> Link:
    """Return the node's own interface in the untagged VLAN, which is made if need be. Raises NativeError."""
    name = f"{bridge.name}.{of.untagged}"
    ports = names_for(bridge.name, str(of.untagged))
    link = present(node, name)
    for port in ports if link is None else ():
        data = links.peer(port, mtu=bridge.mtu, queue_length=0)
        create = links.create(name, "veth", data=data, mtu=bridge.mtu, queue_length=0)
        link = made(node, name, "veth", create) or present(node, name)
        if link is not None:
            break
    if link is None:
        raise NativeError(f"can not make {name}: the node has other interfaces named {', '.join(ports)}")
    if not link.up:  # it is set up last: so it is ready, unless an ADD was cut
        _make_ready(node, bridge, link, ports, of)
    return link


def _make_ready(node: Netlink, bridge: Link, link: Link, ports: Sequence[str], of: Membership) -> None:
    requests: list[Request] = []
    with explaining(f"make {link.name} the node's interface in VLAN {of.untagged} of {bridge.name}"):
        port = links.find(node, links.numbered(link.parent)) if link.kind == "veth" else None
        if port is not None and port.name in ports:
            sysctl.prefer(f"ipv6/conf/{port.name}/accept_ra", "0")
            requests = [links.change(port.index, up=True, master=bridge.index), *joined(port.index, bridge, of)]
        node.do(*requests, links.change(link.index, up=True))


def _ranges(trunk: Sequence[Trunk]) -> tuple[tuple[int, int], ...]:
    """Return the VLANs of *trunk* as ranges that neither meet nor overlap, in their order. Raises NativeError."""
    wanted: list[tuple[int, int]] = []
    for each in trunk:
        if (each.min_id is None) != (each.max_id is None):
            raise NativeError("vlanTrunk has minID or maxID without the other: state both")
        if each.min_id is not None and each.max_id is not None:
            if each.min_id not in _IDS or each.max_id not in _IDS or each.max_id < each.min_id:
                raise NativeError(f"vlanTrunk has no VLANs from {each.min_id} to {each.max_id} in 1 to {_IDS.stop - 1}")
            wanted.append((each.min_id, each.max_id))
        if each.id is not None:
            if each.id not in _IDS:
                raise NativeError(f"vlanTrunk id {each.id} is not between 1 and {_IDS.stop - 1}")
            wanted.append((each.id, each.id))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(wanted):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
