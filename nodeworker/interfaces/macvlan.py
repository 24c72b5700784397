"""An interface with a MAC address of its own on a network card of the node.

It is asked for on the container's side of the wall, which names the card by the number that it has for the node's
namespace: so the name is looked for among the container's, on every kernel, and not among the node's.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from events.schema import Phase
from nodeworker.delegates.results import Interface, Result
from nodeworker.interfaces.addressing import assignments, configure, with_interface
from nodeworker.interfaces.announce import announce
from nodeworker.interfaces.checking import addressed, container_link, recorded
from nodeworker.interfaces.ends import Ends, explaining, made, name_taken, node_link, opened, present, taken_away
from nodeworker.interfaces.native import Call, NativeError
from nodeworker.interfaces.netconf import NetConf, load, misfit, requested_mac
from nodeworker.netlink import links, message, routes
from nodeworker.netlink.links import Link
from nodeworker.netlink.socket import Netlink

TYPE = "macvlan"

_MODES = {"": 4, "bridge": 4, "private": 1, "vepa": 2, "passthru": 8}
_IFLA_MACVLAN_MODE = 1


class Macvlan(NetConf, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a macvlan network."""

    master: str = ""
    """The card; empty for the one that the node's default route leaves through."""
    mode: str = ""
    mtu: int = 0
    """0 for the card's."""
    mac: str = ""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return what *config* asks for that only the reference plugin knows, or an empty text."""
    options = misfit(config, Macvlan)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam: Result | None) -> Result:
    """Make the interface and return the result. Raises NativeError."""
    config = load(call, Macvlan)
    mac = requested_mac(call, config, config.mac)
    given = [] if ipam is None else assignments(call, ipam)
    with opened(call, Phase.ADD) as ends:
        link = _link(ends, call, config, mac)
        if ipam is None:
            with explaining(f"set {call.ifname} up"):
                ends.container.do(links.change(link.index, up=True))
        else:
            configure(ends, call, link, given, ipam, dad=False, notify=True)
            announce(ends, link, given)
    return Result(
        cni_version=config.cni_version,
        interfaces=(Interface(name=link.name, mac=link.mac, mtu=link.mtu, sandbox=call.netns),),
        ips=() if ipam is None else with_interface(ipam.ips, 0),
        routes=() if ipam is None else ipam.routes,
        dns=config.dns,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config, result = load(call, Macvlan), recorded(call)
    with opened(call, Phase.CHECK) as ends:
        master = _master(ends.node, config)
        link = container_link(ends, call, result, TYPE)
        if link.parent != master.index:
            raise NativeError(f"interface {call.ifname} no longer rests on {master.name}")
        if _mode(link) != _MODES.get(config.mode):
            raise NativeError(f"interface {call.ifname} is no longer in mode {config.mode or 'bridge'}")
        addressed(ends, call, link, result)


def delete(call: Call) -> None:
    """Take the interface away; it and its namespace may be gone. Raises NativeError."""
    taken_away(call)


def _link(ends: Ends, call: Call, config: Macvlan, mac: str) -> Link:
    """Return the interface, made now or by an ADD that was cut."""
    mode = _MODES.get(config.mode)
    if mode is None:
        raise NativeError(f"macvlan has no mode {config.mode!r}: use bridge, private, vepa or passthru")
    master = _master(ends.node, config)
    if not 0 <= config.mtu <= master.mtu:
        raise NativeError(f"mtu {config.mtu} is not between 0 and the {master.mtu} of {master.name}")
    with explaining(f"name the node's namespace in that of {call.ifname}"):
        netnsid = ends.node_number
    create = links.create(
        call.ifname,
        TYPE,
        data=message.u32(_IFLA_MACVLAN_MODE, mode),
        parent=master.index,
        parent_netnsid=netnsid,
        mtu=config.mtu,
        mac=mac,
        queue_length=0,
    )
    link = made(ends.container, call.ifname, TYPE, create) or present(ends.container, call.ifname)
    if link is None or not _ours(link, master, mode, netnsid) or (mac and link.mac != mac):
        raise name_taken(call)
    return link


def _ours(link: Link, master: Link, mode: int, netnsid: int) -> bool:
    place = (link.kind, link.parent, link.parent_netnsid)
    return place == (TYPE, master.index, netnsid) and _mode(link) == mode


def _mode(link: Link) -> int:
    return message.as_int(message.attributes(link.data).get(_IFLA_MACVLAN_MODE))


def _master(node: Netlink, config: Macvlan) -> Link:
    if config.master:
        return node_link(node, config.master, "master interface")
    with explaining("find the interface of the node's default route"):
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in routes.defaults(node, family):
                link = links.find(node, links.numbered(route.index))
                if link is not None:
                    return link
    raise NativeError("the network names no master interface, and the node has no default route to take one from")
