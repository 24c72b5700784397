"""Interfaces that rest on another one, their parent, which is on the node or in the container already.

They are asked for on the container's side of the wall, which names a parent on the node by the number that it has for
the node's namespace: so the new name is looked for among the container's, on every kernel, and not among the node's.
"""

from __future__ import annotations

import socket

import msgspec

from nodeworker.kernel.codec import Values
from nodeworker.kernel.rtnetlink import links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import Endpoints, create_link, error_context, find_link, name_taken


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """What an interface rests on, seen from the container."""

    link: Link
    netnsid: int | None
    """Of the namespace that it is in; None: the container's own."""


def find_parent(ends: Endpoints, call: Call, name: str, *, in_container: bool = False) -> Parent:
    """Return the interface *name*; with an empty name, that which the default route leaves through.

    Raises NativeError if there is none.
    """
    where = "in the container" if in_container else "on this node"
    if name:
        link = find_link(ends.container, name) if in_container else ends.node_link(name)
    else:
        link = _of_default_route(ends, in_container=in_container)
    if link is None and name:
        raise NativeError(f"the master interface {name} is missing {where}: create it, or name another one")
    if link is None:
        raise NativeError(
            f"network {call.network} names no master interface, and no default route {where} leads to one"
        )
    if in_container:
        return Parent(link=link, netnsid=None)
    with error_context(f"name the node's namespace in that of {call.ifname}"):
        return Parent(link=link, netnsid=ends.node_netnsid)


def create_on_parent(ends: Endpoints, call: Call, on: Parent, kind: str, data: Values, *, mtu: int = 0) -> Link | None:
    """Return the interface of *kind* on *on* with the attributes *data*, made now or by an ADD that was cut.

    None: the parent has another interface that excludes this one. Raises NativeError.
    """
    create = links.create(
        call.ifname,
        kind,
        data=data,
        parent=on.link.index,
        parent_netnsid=on.netnsid,
        mtu=mtu,
        queue_length=0,
    )
    link = create_link(ends.container, call.ifname, kind, create) or find_link(ends.container, call.ifname)
    if link is not None and not (is_child_of(link, on, kind) and has_data(link, data)):
        raise name_taken(call)
    return link


def is_child_of(link: Link, on: Parent, kind: str) -> bool:
    """Return whether *link* is of *kind* and rests on *on*."""
    return (link.kind, link.parent, link.parent_netnsid) == (kind, on.link.index, on.netnsid)


def has_data(link: Link, data: Values) -> bool:
    """Return whether *link* has all attributes in *data*."""
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
