"""The vrf plugin: a separate routing table for some interfaces of a container, whose networks may overlap with others.

It comes after the plugin that created the interface. An interface that enters a VRF goes down and up, and loses IPv6
addresses and routes. The plugin restores them in the same system call, which a kill of the worker can't interrupt.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from events.schema import Phase
from nodeworker.kernel import namespaces
from nodeworker.kernel.layouts import ifaddrmsg
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.addresses import Assigned
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.chain_input import find_chained_link, require_prev_result
from nodeworker.plugins.native.kit.endpoints import Endpoints, create_link, error_context, find_link, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options
from nodeworker.plugins.spec.results import Result
from nodeworker.plugins.spec.versions import ConfigError, at_least

TYPE = "vrf"

_TABLES = range(1, 2**32 - 1)
_KERNEL_PROTOCOLS = frozenset({routes.PROTOCOL_KERNEL, routes.PROTOCOL_RA})


class Vrf(PluginConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of the plugin."""

    vrfname: str = ""
    table: U32 = 0
    """The routing table; 0: the lowest that no other VRF of the container has."""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Vrf)
    if isinstance(options, str):
        return options
    if not options.vrfname:
        return "no vrfname"
    try:
        return "" if at_least(options.cni_version, "0.3.1") else f"cniVersion {options.cni_version or 'none'}"
    except ConfigError as error:
        return str(error)


def add(call: Call, ipam_result: Result | None) -> Result:
    """Add the interface to the VRF, which is created if missing, and return the previous result.

    Raises NativeError.
    """
    config, before = decode_config(call, Vrf), require_prev_result(call)
    with open_endpoints(call, Phase.ADD) as ends:
        vrf = _vrf(ends, config)
        link = find_chained_link(ends, call)
        if link.master != vrf.index:
            _enslave(ends, call, link, vrf)
    return before


def check(call: Call) -> None:
    """Raise NativeError unless the interface is part of the VRF."""
    config = decode_config(call, Vrf)
    require_prev_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        vrf, link = find_link(ends.container, config.vrfname), find_link(ends.container, call.ifname)
        if vrf is None or vrf.kind != TYPE:
            raise NativeError(f"VRF {config.vrfname} is gone: recreate the pod")
        if link is None or link.master != vrf.index:
            raise NativeError(f"interface {call.ifname} is no longer part of VRF {config.vrfname}: recreate the pod")


def delete(call: Call) -> None:
    """Remove the interface from the VRF, and delete the VRF after its last one. Raises NativeError."""
    config = decode_config(call, Vrf)
    if not call.netns or not namespaces.is_namespace(call.netns):
        return
    with open_endpoints(call, Phase.DEL) as ends:
        vrf = find_link(ends.container, config.vrfname)
        if vrf is None or vrf.kind != TYPE:
            return
        with error_context(f"remove {call.ifname} from VRF {config.vrfname}"):
            members = [each for each in links.list_all(ends.container) if each.master == vrf.index]
            ends.container.do(*(links.change(each.index, master=0) for each in members if each.name == call.ifname))
            if all(each.name == call.ifname for each in members):
                ends.container.do(links.delete(vrf.index))


def table_of(link: Link) -> int:
    """Return the routing table of the VRF *link*."""
    return link.data.get("IFLA_VRF_TABLE", 0)


def free_table(interfaces: Iterable[Link]) -> int:
    """Return the lowest routing table that no VRF among *interfaces* has."""
    taken = {table_of(each) for each in interfaces if each.kind == TYPE}
    return next(table for table in _TABLES if table not in taken)


def create(name: str, table: int) -> Request:
    """Return the request for the VRF *name* with routing table *table*."""
    return links.create(name, TYPE, data={"IFLA_VRF_TABLE": table}, queue_length=0)


def lost(link: Link, vrf: Link, assigned: Iterable[Assigned], all_routes: Iterable[Route]) -> list[Request]:
    """Return the requests that restore the addresses and routes that *link* loses on entering *vrf*.

    *assigned* and *all_routes* are the container's before that.

    The kernel restores the addresses and routes that it created itself or learned from routers.
    """
    lost_addresses = [
        addresses.add(link.index, each.address, dad=False)
        for each in assigned
        if isinstance(each.address, ipaddress.IPv6Interface)
        and each.flags & ifaddrmsg.IFA_F_PERMANENT
        and not each.address.is_link_local
    ]
    lost_routes = [
        replace(each, table=table_of(vrf))
        for each in all_routes
        if (each.index, each.table, each.type) == (link.index, routes.MAIN, routes.UNICAST)
        and each.protocol not in _KERNEL_PROTOCOLS
    ]
    # A gateway must be reachable before a route through it.
    return lost_addresses + [
        routes.add(each) for each in sorted(lost_routes, key=lambda route: route.gateway is not None)
    ]


def _vrf(ends: Endpoints, config: Vrf) -> Link:
    """Return the VRF, which is up."""
    name = config.vrfname
    vrf = find_link(ends.container, name)
    if vrf is None:
        with error_context("list the container's interfaces"):
            table = config.table or free_table(links.list_all(ends.container))
        vrf = create_link(ends.container, name, TYPE, create(name, table)) or find_link(ends.container, name)
    if vrf is None or vrf.kind != TYPE:
        raise NativeError(f"the container's interface {name} is not a VRF: set vrfname to another name")
    if config.table and config.table != table_of(vrf):
        raise NativeError(f"VRF {name} has routing table {table_of(vrf)} already, not {config.table}: correct table")
    if not vrf.up:
        with error_context(f"set VRF {name} up"):
            ends.container.do(links.change(vrf.index, up=True))
    return vrf


def _enslave(ends: Endpoints, call: Call, link: Link, vrf: Link) -> None:
    if link.master:
        raise NativeError(
            f"interface {call.ifname} is part of a bridge, bond or other VRF already: remove it from there"
        )
    with error_context(f"list the addresses and routes of {call.ifname}"):
        assigned = addresses.list_of(ends.container, link.index)
        all_routes = [
            route for family in (socket.AF_INET, socket.AF_INET6) for route in routes.list_all(ends.container, family)
        ]
    with error_context(f"add {call.ifname} to VRF {vrf.name}"):
        ends.container.do(links.change(link.index, master=vrf.index), *lost(link, vrf, assigned, all_routes))
