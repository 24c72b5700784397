"""Compare the interface, addresses and routes that ADD reported with the kernel's (CNI specification 1.1, "CHECK").

A route may be in any table: the pod may have policy rules that lead there.
"""

from __future__ import annotations

import socket

from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link
from nodeworker.plugins.spec.addresses import network, optional, with_prefix
from nodeworker.plugins.spec.results import Interface, Result


def recorded_result(call: Call) -> Result:
    """Return the recorded result of the attachment. Raises NativeError if the runtime passed none."""
    if call.prev_result is None:
        raise NativeError(f"CHECK of {call.ifname} needs prevResult: the runtime must pass it")
    return call.prev_result


def check_link(ends: Endpoints, call: Call, result: Result, kind: str | None) -> Link:
    """Return the container's interface of *kind* (None: any), with the recorded MAC address. Raises NativeError."""
    wanted = next((each for each in result.interfaces if (each.name, each.sandbox) == (call.ifname, call.netns)), None)
    if wanted is None:
        raise NativeError(
            f"prevResult has no interface {call.ifname} in {call.netns}: the runtime must pass the result of the ADD"
        )
    return check_interface(ends.container, wanted, kind)


def check_interface(netlink: Netlink, wanted: Interface, kind: str | None) -> Link:
    """Return the interface *wanted* of *kind* (None: any), with the recorded MAC address or a bond's.

    Raises NativeError.
    """
    link = find_link(netlink, wanted.name)
    if link is None:
        raise NativeError(f"interface {wanted.name} is gone: recreate the pod")
    if kind is not None and link.kind != kind:
        raise NativeError(
            f"interface {wanted.name} is a {link.kind or 'physical card'}, not the ADD's {kind}: recreate the pod"
        )
    if wanted.mac and wanted.mac.lower() != link.mac and not _is_bonded(netlink, link):
        raise NativeError(f"interface {wanted.name} has MAC address {link.mac}, not {wanted.mac}: recreate the pod")
    return link


def _is_bonded(netlink: Netlink, link: Link) -> bool:
    """Return whether *link* is a member of a bond, which gives it a MAC address. Raises NativeError."""
    if not link.master:
        return False
    with error_context(f"look up the interface that {link.name} is a member of"):
        master = links.find(netlink, links.by_index(link.master))
    return master is not None and master.kind in links.BONDS


def check_addresses(ends: Endpoints, call: Call, link: Link, result: Result) -> None:
    """Raise NativeError unless *link* has the recorded addresses, and the container the recorded routes."""
    with error_context(f"list the addresses and routes of {call.ifname}"):
        there = {str(each.address) for each in addresses.list_of(ends.container, link.index)}
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        ways = [route for family in families.values() for route in routes.list_all(ends.container, family)]
    destinations = {str(route.destination) for route in ways}
    for ip in result.ips:
        address = with_prefix(ip.address)
        if str(address) not in there:
            raise NativeError(f"interface {call.ifname} has lost its address {address}: recreate the pod")
        if str(address.network) not in destinations:
            raise NativeError(f"interface {call.ifname} no longer has a route to {address.network}: recreate the pod")
    for wanted in result.routes:
        destination = network(wanted.dst)
        gateway = optional(wanted.gw) if destination.prefixlen else None
        if not any(each.destination == destination and gateway in {None, each.gateway} for each in ways):
            raise NativeError(f"the route to {destination} of {call.ifname} is gone: recreate the pod")
