"""Interfaces on a parent: another interface, on the node or in the container.

The request goes to the container's namespace, and names the node's namespace by its number there. So the kernel, in
every version, compares the new name with those in the container and not with those on the node.
"""

from __future__ import annotations

import socket

import msgspec

from nodeworker.kernel.codec import Values
from nodeworker.kernel.rtnetlink import links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import create_or_find
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link, name_taken


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """The parent of an interface in the container."""

    link: Link
    netnsid: int | None
    """The number of its namespace in the container's; None: it is in the container."""


def find_parent(ends: Endpoints, call: Call, name: str, *, in_container: bool = False) -> Parent:
    """Return the interface *name*; with an empty name, the interface of the default route.

    A parent on the node: the node's namespace gets a number in the container's (RTM_NEWNSID) if it has none. Raises
    NativeError if there is no such interface.
    """
    where = "in the container" if in_container else "on this node"
    if name:
        link = find_link(ends.container, name) if in_container else ends.node_link(name)
    else:
        link = _of_default_route(ends, in_container=in_container)
    if link is None and name:
        raise NativeError(f"the master interface {name} is missing {where}: create it, or set master to another name")
    if link is None:
        raise NativeError(f"network {call.network} has no master, and there is no default route {where}: set master")
    if in_container:
        return Parent(link=link, netnsid=None)
    with error_context(f"identify the node's namespace in the namespace of {call.ifname}"):
        return Parent(link=link, netnsid=ends.node_netnsid)


def create_on_parent(
    ends: Endpoints,
    call: Call,
    parent: Parent,
    kind: str,
    data: Values,
    *,
    mtu: int = 0,
    mac: str = "",
    excluded: str = "",
) -> Link:
    """Return the interface of *kind* on *parent* with the attributes *data*, new or from an interrupted ADD.

    Raises NativeError, with the words *excluded* where the parent has another interface that excludes this one.
    """
    request = links.create(
        call.ifname,
        kind,
        data=data,
        parent=parent.link.index,
        parent_netnsid=parent.netnsid,
        mtu=mtu,
        mac=mac,
        queue_length=0,
    )
    link = create_or_find(ends, call, kind, request)
    if link is None and excluded:
        raise NativeError(excluded)
    if link is None or not (is_child_of(link, parent, kind) and has_data(link, data)) or (mac and link.mac != mac):
        raise name_taken(call)
    return link


def is_child_of(link: Link, parent: Parent, kind: str) -> bool:
    """Return whether *link* is of *kind* and *parent* its parent."""
    return (link.kind, link.parent, link.parent_netnsid) == (kind, parent.link.index, parent.netnsid)


def has_data(link: Link, data: Values) -> bool:
    """Return whether *link*, of the kind of *data*, has all its attributes."""
    return all(link.data.get(name) == value for name, value in data.items())


def _of_default_route(ends: Endpoints, *, in_container: bool) -> Link | None:
    netlink = ends.container if in_container else ends.node
    with error_context("find the interface of the default route"):
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in routes.defaults(netlink, family):
                link = links.find(netlink, links.by_index(route.index))
                if link is not None:
                    return link
    return None
