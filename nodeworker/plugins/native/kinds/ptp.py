"""The ptp plugin: a veth pair between the container and the node, which routes the container's packets."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from events.schema import Phase
from nodeworker.kernel.layouts import rtmsg
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Gateway, Network, Route
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.filter import masquerade
from nodeworker.plugins.native.kit.addressing import (
    Assignment,
    assignments,
    configure,
    enable_forwarding,
    with_interface,
)
from nodeworker.plugins.native.kit.container_link import remove_link
from nodeworker.plugins.native.kit.endpoints import error_context, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options
from nodeworker.plugins.native.kit.verify import check_addresses, check_link, recorded_result
from nodeworker.plugins.native.kit.veth import create_pair
from nodeworker.plugins.spec.results import DNS, Interface, Result

TYPE = "ptp"


class Ptp(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a point-to-point network."""

    ip_masq: bool = False
    ip_masq_backend: masquerade.Backend | None = None
    mtu: U32 = 0
    """0: the kernel chooses."""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Ptp)
    if isinstance(options, str):
        return options
    return "" if options.has_ipam else "no ipam"


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the veth pair and return the result. Raises NativeError."""
    config = decode_config(call, Ptp)
    if ipam_result is None:
        raise NativeError(f"a point-to-point network needs addresses: add ipam to {call.network}")
    assigned = assignments(call, ipam_result)
    gateways = [_gateway(call, each) for each in assigned]
    enable_forwarding(assigned)
    with open_endpoints(call, Phase.ADD) as ends:
        pair = create_pair(ends, call, mtu=config.mtu)
        with error_context(f"set {pair.outside.name} up"):
            ends.node.do(links.change(pair.outside.index, up=True))
        configure(ends, call, pair.inside, assigned, ipam_result, dad=False)
        with error_context(f"route the packets of {call.ifname} to the node"):
            ends.container.do(*_routes_through_node(pair.inside, assigned, gateways))
        with error_context(f"route to {call.ifname} through {pair.outside.name}"):
            ends.node.do(*_routes_to_container(pair.outside, assigned, gateways))
    if config.ip_masq:
        masquerade.install(call, config.ip_masq_backend, [each.address for each in assigned])
    return replace(
        ipam_result,
        cni_version=config.cni_version,
        interfaces=(
            Interface(name=pair.outside.name, mac=pair.outside.mac),
            Interface(name=pair.inside.name, mac=pair.inside.mac, mtu=pair.inside.mtu, sandbox=call.netns),
        ),
        ips=with_interface(ipam_result.ips, 1),
        dns=config.dns if config.dns != DNS() else ipam_result.dns,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the veth pair is as ``call.prev_result`` says."""
    config, result = decode_config(call, Ptp), recorded_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        link = check_link(ends, call, result, "veth")
        check_addresses(ends, call, link, result)
    if config.ip_masq:
        masquerade.check(call, config.ip_masq_backend)


def delete(call: Call) -> None:
    """Delete the veth pair and its rules; they, or the container's namespace, may be gone. Raises NativeError."""
    remove_link(call)
    config = decode_options(call.config, Ptp)
    if not isinstance(config, str) and config.ip_masq:
        masquerade.remove(call)


def collect(call: Call, valid: Collection[tuple[str, str]]) -> None:
    """Delete the rules of the network's interfaces that are not in *valid*. Raises NativeError."""
    config = decode_options(call.config, Ptp)
    if not isinstance(config, str) and config.ip_masq:
        masquerade.collect(call, config.ip_masq_backend, valid)


def _gateway(call: Call, assignment: Assignment) -> Gateway:
    if assignment.gateway is None or assignment.gateway.version != assignment.address.version:
        raise NativeError(f"the IPAM plugin assigned {call.ifname} no gateway, which ptp needs: set gateway in ipam")
    return assignment.gateway


def _routes_through_node(link: Link, assigned: Sequence[Assignment], gateways: Sequence[Gateway]) -> Iterator[Request]:
    """Yield the requests that replace the kernel's prefix route with a route to the gateway and one through it."""
    for each, gateway in zip(assigned, gateways, strict=True):
        network, source = each.address.network, each.address.ip
        prefix_route = Route(
            destination=network, index=link.index, scope=rtmsg.RT_SCOPE_NOWHERE, protocol=routes.PROTOCOL_KERNEL
        )
        gateway_route = Route(destination=_host(gateway), index=link.index, scope=rtmsg.RT_SCOPE_LINK, source=source)
        # First: after an interruption, the container must still have a route to its gateway.
        yield routes.add(gateway_route)
        yield routes.delete(prefix_route)
        yield routes.add(Route(destination=network, index=link.index, gateway=gateway, source=source))


def _routes_to_container(link: Link, assigned: Sequence[Assignment], gateways: Sequence[Gateway]) -> Iterator[Request]:
    for each, gateway in zip(assigned, gateways, strict=True):
        yield addresses.add(link.index, ipaddress.ip_interface(gateway), dad=False)
        yield routes.add(Route(destination=_host(each.address.ip), index=link.index, scope=rtmsg.RT_SCOPE_HOST))


def _host(address: Gateway) -> Network:
    return ipaddress.ip_network(address)
