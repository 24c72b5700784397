"""The bridge plugin: a veth pair whose node end is a port of a bridge, which the first ADD creates."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from msgspec.structs import replace

from events.schema import Phase
from nodeworker.kernel import sysctl
from nodeworker.kernel.rtnetlink import bridge_ports, links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.filter import mac_filter, masquerade
from nodeworker.plugins.native.kinds.bridge.gateway import ensure_addresses, with_default_routes, with_gateways
from nodeworker.plugins.native.kit import port_vlans
from nodeworker.plugins.native.kit.addressing import (
    Assignment,
    assignments,
    configure,
    enable_forwarding,
    with_interface,
)
from nodeworker.plugins.native.kit.announce import announce_ipv6
from nodeworker.plugins.native.kit.container_link import remove_link
from nodeworker.plugins.native.kit.endpoints import (
    Endpoints,
    create_link,
    error_context,
    find_link,
    open_endpoints,
)
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options, requested_mac
from nodeworker.plugins.native.kit.port_vlans import joined, node_interface
from nodeworker.plugins.native.kit.verify import check_addresses, check_interface, check_link, recorded_result
from nodeworker.plugins.native.kit.veth import Pair, create_pair
from nodeworker.plugins.native.kit.vlan_membership import Membership, Trunk, membership
from nodeworker.plugins.spec.results import Interface, Result

TYPE = "bridge"

_NO_MAC = "00:00:00:00:00:00"
"""The MAC address of a bridge without ports."""
_PORT_TIMEOUT = 2.5
"""Seconds to wait until a port carries traffic."""
_PORT_PAUSE = 0.001
"""Seconds before the second query of a port; the pause doubles each time."""


class Bridge(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a network on a bridge."""

    bridge: str = "cni0"
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    ip_masq: bool = False
    ip_masq_backend: masquerade.Backend | None = None
    mtu: U32 = 0
    """0: the kernel chooses."""
    hairpin_mode: bool = False
    promisc_mode: bool = False
    vlan: int = 0
    vlan_trunk: tuple[Trunk, ...] | None = None
    preserve_default_vlan: bool = True
    macspoofchk: bool = False
    enabledad: bool = False
    disable_container_interface: bool = False
    port_isolation: bool = False

    @property
    def gateway(self) -> bool:
        """Whether the bridge is the gateway of the network."""
        return self.is_gateway or self.is_default_gateway


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text.

    Duplicate address detection (``enabledad``) is such a part: it would block a thread for seconds.
    """
    options = decode_options(config, Bridge)
    if isinstance(options, str):
        return options
    return "enabledad" if options.enabledad else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface, and the bridge if missing, and return the result. Raises NativeError."""
    config = _validated(decode_config(call, Bridge), ipam_result)
    vlans = membership(config.vlan, config.vlan_trunk, keeps_default=config.preserve_default_vlan)
    mac = requested_mac(call, config, {"args.cni.mac": _cni_args_mac(config)})
    assigned = [] if ipam_result is None else assignments(call, ipam_result)
    if ipam_result is not None and config.gateway:
        assigned = with_gateways(assigned)
        ipam_result = _with_gateways(ipam_result, assigned)
    if ipam_result is not None and config.is_default_gateway:
        ipam_result = with_default_routes(ipam_result, assigned)
    with open_endpoints(call, Phase.ADD) as ends:
        bridge = _ensure_bridge(ends.node, config, vlans, find_link(ends.node, config.bridge))
        pair = create_pair(ends, call, mtu=config.mtu, mac=mac)
        if config.macspoofchk:
            mac_filter.install(call, pair.outside.name, pair.inside.mac)
        _make_port(ends.node, pair, bridge, config, vlans)
        _set_up(ends, call, pair, config, ipam_result, assigned)
        on_node = bridge
        if ipam_result is not None and config.gateway:
            bridge, on_node = _make_gateway(ends.node, pair, bridge, config, vlans, assigned)
        if ipam_result is not None and config.ip_masq:
            masquerade.install(call, config.ip_masq_backend, [each.address for each in assigned])
        if config.disable_container_interface:
            outside, bridge = _refresh(ends.node, pair, bridge)
        else:
            outside, bridge = _wait_for_carrier(ends.node, pair, bridge)
            _announce(ends, pair, assigned)
    interfaces = (
        Interface(name=bridge.name, mac=bridge.mac),
        Interface(name=outside.name, mac=outside.mac),
        Interface(name=pair.inside.name, mac=pair.inside.mac, mtu=pair.inside.mtu, sandbox=call.netns),
        *([] if on_node.index == bridge.index else [Interface(name=on_node.name, mac=on_node.mac)]),
    )
    result = Result(cni_version=config.cni_version, interfaces=interfaces, dns=config.dns)
    if ipam_result is None:
        return result
    return replace(
        result,
        ips=with_interface(ipam_result.ips, 2),
        routes=ipam_result.routes,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface and its port are as ``call.prev_result`` says."""
    config, result = decode_config(call, Bridge), recorded_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        inside = check_link(ends, call, result, "veth")
        outer = {each.name: each for each in result.interfaces if not each.sandbox}
        bridge = _recorded_bridge(ends.node, config, outer)
        if bridge.promiscuous != config.promisc_mode:
            raise NativeError(f"bridge {bridge.name} is {'' if bridge.promiscuous else 'not '}promiscuous")
        with error_context(f"look up the port of {call.ifname}"):
            outside = links.find(ends.node, links.by_index(inside.parent))
        if outside is None or outside.name not in outer:
            raise NativeError(f"interface {call.ifname} has lost its veth peer on the node: recreate the pod")
        check_interface(ends.node, outer[outside.name], "veth")
        if outside.master != bridge.index:
            raise NativeError(f"interface {outside.name} is no longer a port of {bridge.name}: recreate the pod")
        member = membership(config.vlan, config.vlan_trunk, keeps_default=config.preserve_default_vlan)
        port_vlans.check(ends.node, outside, bridge, member)
        check_addresses(ends, call, inside, result)
    if config.macspoofchk:
        mac_filter.check(call)
    if config.has_ipam and config.ip_masq:
        masquerade.check(call, config.ip_masq_backend)


def delete(call: Call) -> None:
    """Delete the interface, its port and its rules; they, or the namespace, may be gone. Raises NativeError."""
    remove_link(call)
    config = decode_options(call.config, Bridge)
    if isinstance(config, str):
        return  # an ADD would have failed too, so there are no rules
    if config.macspoofchk:
        mac_filter.remove(call)
    if config.has_ipam and config.ip_masq:
        masquerade.remove(call)


def collect(call: Call, valid: Collection[tuple[str, str]]) -> None:
    """Delete the rules of the network's interfaces that are not in *valid*. Raises NativeError."""
    config = decode_options(call.config, Bridge)
    if isinstance(config, str):
        return
    if config.macspoofchk:
        mac_filter.collect(call, valid)
    if config.has_ipam and config.ip_masq:
        masquerade.collect(call, config.ip_masq_backend, valid)


def _validated(config: Bridge, ipam_result: Result | None) -> Bridge:
    """Return *config*. Raises NativeError if its options exclude each other."""
    if config.hairpin_mode and config.promisc_mode:
        raise NativeError("hairpinMode and promiscMode exclude each other: remove one")
    if config.disable_container_interface and ipam_result is not None:
        raise NativeError("disableContainerInterface leaves the interface down and without addresses: remove ipam")
    return config


def _cni_args_mac(config: Bridge) -> Any:
    cni = config.args.get("cni")
    return cni.get("mac", "") if isinstance(cni, dict) else ""


def _with_gateways(ipam_result: Result, assigned: list[Assignment]) -> Result:
    ips = zip(ipam_result.ips, assigned, strict=True)
    return replace(ipam_result, ips=tuple(replace(ip, gateway=str(each.gateway)) for ip, each in ips))


def _ensure_bridge(node: Netlink, config: Bridge, vlans: Membership, bridge: Link | None) -> Link:
    """Return the bridge, created if missing, and up; of an existing one only *promisc_mode* is changed."""
    if bridge is None:
        data = {"IFLA_BR_VLAN_FILTERING": 1} if vlans.filtering else None
        create = links.create(config.bridge, "bridge", data=data, mtu=config.mtu)
        # If another ADD created it first, ``create_link`` returns None.
        ability = "VLAN filtering" if vlans.filtering else ""
        bridge = create_link(node, config.bridge, "bridge", create, ability=ability) or find_link(node, config.bridge)
    if bridge is None:
        raise NativeError(f"bridge {config.bridge} disappeared while the worker created it")
    if bridge.kind != "bridge":
        raise NativeError(f"interface {config.bridge} of the node is not a bridge: set bridge to another name")
    sysctl.try_ensure(f"ipv6/conf/{bridge.name}/accept_ra", "0")
    promiscuous = config.promisc_mode and not bridge.promiscuous
    if promiscuous or not bridge.up:
        with error_context(f"set bridge {bridge.name} up"):
            node.do(links.change(bridge.index, up=True, promiscuous=True if promiscuous else None))
    return bridge


def _recorded_bridge(node: Netlink, config: Bridge, outer: Mapping[str, Interface]) -> Link:
    """Return the bridge, which must be in *outer*, the recorded interfaces of the node. Raises NativeError.

    The configuration may use an alternative name; the result has the primary name at the time of the ADD.
    """
    existing = find_link(node, config.bridge)
    names = (config.bridge, *((existing.name, *existing.altnames) if existing is not None else ()))
    wanted = next((outer[name] for name in names if name in outer), None)
    if wanted is None:
        raise NativeError(f"prevResult has no bridge {config.bridge}: recreate the pod")
    return check_interface(node, wanted, "bridge")


def _make_port(node: Netlink, pair: Pair, bridge: Link, config: Bridge, vlans: Membership) -> None:
    port = pair.outside.index
    requests: list[Request] = [links.change(port, up=True, master=bridge.index)]
    if config.hairpin_mode or config.port_isolation:
        requests.append(bridge_ports.change(port, hairpin=config.hairpin_mode, isolated=config.port_isolation))
    requests += joined(port, bridge, vlans)
    with error_context(f"add {pair.outside.name} to bridge {bridge.name}"):
        node.do(*requests)


def _set_up(
    ends: Endpoints, call: Call, pair: Pair, config: Bridge, ipam_result: Result | None, assigned: list[Assignment]
) -> None:
    if ipam_result is not None:
        # No duplicate address detection for the link-local address either, which the kernel assigns.
        ends.netns.run_inside(lambda: sysctl.try_ensure(f"ipv6/conf/{call.ifname}/accept_dad", "0", is_another=True))
        configure(ends, call, pair.inside, assigned, ipam_result, dad=True, notify=True)
    elif not config.disable_container_interface:
        with error_context(f"set {call.ifname} up"):
            ends.container.do(links.change(pair.inside.index, up=True))


def _make_gateway(
    node: Netlink, pair: Pair, bridge: Link, config: Bridge, vlans: Membership, assigned: list[Assignment]
) -> tuple[Link, Link]:
    """Assign the gateways' addresses on the node; return the bridge, and the interface that has the addresses."""
    if bridge.mac == _NO_MAC:
        _, bridge = _refresh(node, pair, bridge)
    on_node = node_interface(node, bridge, vlans) if vlans.untagged else bridge
    ensure_addresses(node, on_node, assigned, force=config.force_address)
    enable_forwarding(assigned)
    return bridge, on_node


def _wait_for_carrier(node: Netlink, pair: Pair, bridge: Link) -> tuple[Link, Link]:
    """Return the port and the bridge when the port carries traffic. Raises NativeError on timeout."""
    pause, until = _PORT_PAUSE, time.monotonic() + _PORT_TIMEOUT
    while True:
        outside, bridge = _refresh(node, pair, bridge)
        if outside.operstate == links.OPERSTATE_UP:
            return outside, bridge
        if time.monotonic() > until:
            raise NativeError(
                f"{outside.name}, the port of bridge {bridge.name}, did not come up within {_PORT_TIMEOUT:g} s"
            )
        time.sleep(pause)
        pause *= 2


def _announce(ends: Endpoints, pair: Pair, assigned: list[Assignment]) -> None:
    """Announce the addresses again: the port dropped the announcement that the kernel sent when the link came up."""
    if assigned:
        with error_context(f"announce the addresses of {pair.inside.name}"):
            # With ``arp_notify`` set, a MAC address set to its current value makes the kernel announce.
            ends.container.do(links.change(pair.inside.index, mac=pair.inside.mac))
        announce_ipv6(ends, pair.inside, assigned)


def _refresh(node: Netlink, pair: Pair, bridge: Link) -> tuple[Link, Link]:
    """Return the current port and bridge: the first port may have changed the bridge's MAC address."""
    with error_context(f"look up {pair.outside.name} and bridge {bridge.name}"):
        outside, now = node.ask_all(links.by_index(pair.outside.index), links.by_index(bridge.index))
    return links.decode(outside), links.decode(now)
