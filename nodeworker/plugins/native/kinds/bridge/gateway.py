"""The bridge as the gateway of its network: the gateway addresses, and their assignment to the bridge."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from msgspec.structs import replace

from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Gateway
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kit.addressing import Assignment
from nodeworker.plugins.native.kit.endpoints import error_context
from nodeworker.plugins.spec.addresses import network
from nodeworker.plugins.spec.results import Result, Route


def with_gateways(assigned: Sequence[Assignment]) -> list[Assignment]:
    """Return *assigned*, each with a gateway, by default the first address of its network."""
    return [
        each if each.gateway else replace(each, gateway=each.address.network.network_address + 1) for each in assigned
    ]


def with_default_routes(ipam_result: Result, assigned: Sequence[Assignment]) -> Result:
    """Return *ipam_result* with a default route through each family's first gateway.

    A family that has a default route with a gateway gets none.
    """
    all_routes = list(ipam_result.routes)
    for each in assigned:
        default = routes.DEFAULT_V4 if each.address.version == 4 else routes.DEFAULT_V6
        if not any(route.gw and network(route.dst) == default for route in all_routes):
            all_routes.append(Route(dst=str(default), gw=str(each.gateway)))
    return replace(ipam_result, routes=tuple(all_routes))


def ensure_addresses(node: Netlink, bridge: Link, assigned: Sequence[Assignment], *, force: bool) -> None:
    """Give *bridge* the gateways of *assigned* as its addresses, and fix its MAC address, which changes with its ports.

    Another IPv4 address, or an IPv6 address of an overlapping network, is an error, or is deleted if *force*. Raises
    NativeError.
    """
    with error_context(f"list the addresses of {bridge.name}"):
        existing = [each.address for each in addresses.list_of(node, bridge.index)]
    requests: list[Request] = []
    for wanted in (_on_bridge(each.address, each.gateway) for each in assigned if each.gateway):
        obstacles = [] if wanted in existing else [each for each in existing if _conflict(each, wanted)]
        if obstacles and not force:
            others = ", ".join(str(each) for each in obstacles)
            raise NativeError(
                f"bridge {bridge.name} has {others} already, not {wanted}: set forceAddress to replace it"
            )
        requests += [addresses.delete(bridge.index, each) for each in obstacles]
        existing = [each for each in existing if each not in obstacles]
        if wanted not in existing:
            # The MAC address first: after an interruption, no address may be left without it.
            requests += [links.change(bridge.index, mac=bridge.mac), addresses.add(bridge.index, wanted)]
            existing.append(wanted)
    with error_context(f"configure {bridge.name} as the gateway"):
        node.do(*requests)


def _on_bridge(address: Address, gateway: Gateway) -> Address:
    return ipaddress.ip_interface(f"{gateway}/{address.network.prefixlen}")


def _conflict(existing: Address, wanted: Address) -> bool:
    if existing.version != wanted.version:
        return False
    return existing.version == 4 or wanted.ip in existing.network or existing.ip in wanted.network
