"""Requests that change a bridge's ports and their VLANs, and the kernel's descriptions of those."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from nodeworker.kernel.codec import Attributes, Values
from nodeworker.kernel.layouts import AF_BRIDGE, ifinfmsg, rtnl
from nodeworker.kernel.rtnetlink.links import EXT_MASK_NO_STATISTICS, LAYOUT, Link
from nodeworker.kernel.rtnetlink.message import Answer, Request

_EXT_MASK_VLANS: Final = 0x4
"""``RTEXT_FILTER_BRVLAN_COMPRESSED``: describe VLANs, as ranges. (pyroute2 has no name for it.)"""


def change(index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> Request:
    """Return the request that changes how its bridge treats the port *index*; None leaves a setting unchanged."""
    port = {"IFLA_BRPORT_MODE": hairpin, "IFLA_BRPORT_ISOLATED": isolated}
    return _change({"family": AF_BRIDGE, "index": index, "IFLA_PROTINFO": port})


def default_vlan(bridge: Link) -> int:
    """Return the VLAN that every new port of *bridge* belongs to, 0 for none."""
    return bridge.data.get("IFLA_BR_VLAN_DEFAULT_PVID", 0)


def add_untagged_vlan(index: int, vlan: int) -> Request:
    """Return the request that adds the port *index* to *vlan*, without a tag on that port."""
    flags = ifinfmsg.BRIDGE_VLAN_INFO_PVID | ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED
    return _change(_port_vlans(index, [{"flags": flags, "vid": vlan}]))


def add_tagged_vlans(index: int, ranges: Iterable[tuple[int, int]]) -> Request:
    """Return the request that adds the port *index* to the VLANs in *ranges* (first, last), by their tags."""
    infos: list[Values] = []
    for first, last in ranges:
        if first < last:
            infos.append({"flags": ifinfmsg.BRIDGE_VLAN_INFO_RANGE_BEGIN, "vid": first})
            infos.append({"flags": ifinfmsg.BRIDGE_VLAN_INFO_RANGE_END, "vid": last})
        else:
            infos.append({"vid": first})
    return _change(_port_vlans(index, infos))


def remove_vlan(index: int, vlan: int) -> Request:
    """Return the request that removes the port *index* from *vlan*; a port outside of it is no error."""
    return Request(rtnl.RTM_DELLINK, 0, LAYOUT.encode(_port_vlans(index, [{"vid": vlan}])), frozenset({errno.ENOENT}))


def vlans_request() -> Request:
    """Return the request for a dump of all ports of bridges, each with its VLANs."""
    mask = _EXT_MASK_VLANS | EXT_MASK_NO_STATISTICS
    return Request(rtnl.RTM_GETLINK, 0, LAYOUT.encode({"family": AF_BRIDGE, "IFLA_EXT_MASK": mask}))


def decode_vlans(index: int, answers: Iterable[Answer]) -> dict[int, int]:
    """Return the VLANs of the port *index*, each with its flags, from the *answers* to ``vlans_request``."""
    vlans: dict[int, int] = {}
    for answer in answers:
        found = LAYOUT.decode(answer.body)
        if answer.type != rtnl.RTM_NEWLINK or (found["family"], found["index"]) != (AF_BRIDGE, index):
            continue
        spec: Attributes | None = found.get("IFLA_AF_SPEC")
        first = 0
        for info in spec.repeated("IFLA_BRIDGE_VLAN_INFO") if spec else ():
            flags, vlan = info["flags"], info["vid"]
            if flags & ifinfmsg.BRIDGE_VLAN_INFO_RANGE_BEGIN:
                first = vlan
                continue
            begin = first if flags & ifinfmsg.BRIDGE_VLAN_INFO_RANGE_END and first else vlan
            roles = flags & (ifinfmsg.BRIDGE_VLAN_INFO_PVID | ifinfmsg.BRIDGE_VLAN_INFO_UNTAGGED)
            vlans.update((number, roles) for number in range(begin, vlan + 1))
            first = 0
    return vlans


def _port_vlans(index: int, infos: list[Values]) -> Values:
    spec = {"IFLA_BRIDGE_FLAGS": ifinfmsg.BRIDGE_FLAGS_MASTER, "IFLA_BRIDGE_VLAN_INFO": infos}
    return {"family": AF_BRIDGE, "index": index, "IFLA_AF_SPEC": spec}


def _change(values: Values) -> Request:
    return Request(rtnl.RTM_SETLINK, 0, LAYOUT.encode(values))
