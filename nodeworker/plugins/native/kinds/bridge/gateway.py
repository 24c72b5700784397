"""The bridge as the gateway of its network: which addresses that takes, and how the bridge comes to have them."""

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
from nodeworker.plugins.spec.results import Result, Route


def with_gateways(given: Sequence[Assignment]) -> list[Assignment]:
    """Return *given*, each with a gateway: where IPAM names none, the first address of its network."""
    return [each if each.gateway else replace(each, gateway=each.address.network.network_address + 1) for each in given]


def with_default_routes(ipam: Result, given: Sequence[Assignment]) -> Result:
    """Return *ipam* with a default route by each family's first gateway, where it has none that names its own."""
    ways = list(ipam.routes)
    for each in given:
        everywhere = routes.DEFAULT_V4 if each.address.version == 4 else routes.DEFAULT_V6
        if not any(route.gw and ipaddress.ip_network(route.dst, strict=False) == everywhere for route in ways):
            ways.append(Route(dst=str(everywhere), gw=str(each.gateway)))
    return replace(ipam, routes=tuple(ways))


def ensure_addresses(node: Netlink, bridge: Link, given: Sequence[Assignment], *, force: bool) -> None:
    """Give *bridge* the gateways of *given* as its addresses, and for good the MAC address that it is described with.

    Without that, the bridge changes its MAC address with its ports. An address that would stand in another's way is an
    error, or goes if *force*: any other of IPv4, of IPv6 those whose networks overlap. Raises NativeError.
    """
    with error_context(f"list the addresses of {bridge.name}"):
        there = [each.address for each in addresses.list_of(node, bridge.index)]
    requests: list[Request] = []
    for wanted in (_on_bridge(each.address, each.gateway) for each in given if each.gateway):
        obstacles = [] if wanted in there else [each for each in there if _in_the_way(each, wanted)]
        if obstacles and not force:
            others = ", ".join(str(each) for each in obstacles)
            raise NativeError(f"bridge {bridge.name} has {others} already, and not {wanted}: see forceAddress")
        requests += [addresses.delete(bridge.index, each) for each in obstacles]
        there = [each for each in there if each not in obstacles]
        if wanted not in there:
            # The MAC address first: an ADD that is cut in between must not leave the address without it.
            requests += [links.change(bridge.index, mac=bridge.mac), addresses.add(bridge.index, wanted)]
            there.append(wanted)
    with error_context(f"make {bridge.name} the gateway"):
        node.do(*requests)


def _on_bridge(address: Address, gateway: Gateway) -> Address:
    return ipaddress.ip_interface(f"{gateway}/{address.network.prefixlen}")


def _in_the_way(there: Address, wanted: Address) -> bool:
    if there.version != wanted.version:
        return False
    return there.version == 4 or wanted.ip in there.network or there.ip in wanted.network
