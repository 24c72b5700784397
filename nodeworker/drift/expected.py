"""Derive the state that the node must have for a sandbox, from its recorded plan and results.

Pure. A property that the ledger does not record (a result that was lost before the sandbox was adopted, or its MTU)
may have any value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from events.fold import Attachment, Sandbox
from events.process import decoding
from events.schema import IfName, NetworkName
from nodeworker.drift.expected_rules import Address, ExpectedRules, rules_of
from nodeworker.planning.resolve.route_claims import adjusted_result
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kit.vlan_membership import Membership, Trunk, membership
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.addresses import network, optional, with_prefix
from nodeworker.plugins.spec.results import IP, Result
from nodeworker.plugins.spec.versions import at_least

Gateway: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

OF_THE_NODE = frozenset({"macvlan", "ipvlan", "vlan"})
"""Plugins whose interface rests on a link of the node that they do not create."""
PLAIN = frozenset({"bridge", "dummy", "host-device", "ipvlan", "macvlan", "ptp", "tap", "vlan"})
"""Plugins that configure exactly the addresses and routes of their result."""
_LEAVE_MTU = frozenset({"bandwidth", "firewall", "passthru", "portmap", "sbr", "tuning", "vrf"})
"""Plugins that change the MTU only if their configuration has one."""
_DEFAULT_BRIDGE = "cni0"
_SCOPE_LINK = 253


class ExpectedRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the container."""

    destination: Network
    gateway: Gateway | None = None
    """None: any."""
    source: Gateway | None = None
    metric: int = 0
    table: int | None = None
    """None: any."""
    scope: int = 0
    mtu: int = 0
    advmss: int = 0
    own: bool = True
    """Whether it must leave through the attachment's interface."""
    by_kernel: bool = False
    """The kernel creates it together with the address."""

    def replaces_kernels(self, address: Address) -> bool:
        """Return whether it replaces the prefix route that the kernel creates with *address*."""
        return not self.by_kernel and (self.destination, self.source) == (address.network, address.ip)

    def __str__(self) -> str:
        return f"{self.destination} via {self.gateway}" if self.gateway else str(self.destination)


class ExpectedLink(msgspec.Struct, frozen=True, kw_only=True):
    """The interface of an attachment, with its addresses, routes, bridge port and packet filter rules."""

    network: NetworkName
    ifname: IfName
    kind: str
    """Type of the plugin that created it."""
    mac: str = ""
    """Empty: any."""
    mtu: int = 0
    """0: the MTU that the worker saw first."""
    up: bool = True
    optional: bool = False
    """It may be a device without a network driver, so it may be absent."""
    addresses: tuple[Address, ...] = ()
    """If there are any, every other address is drift."""
    routes: tuple[ExpectedRoute, ...] = ()
    parent: str = ""
    """The link of the node that it rests on, or the bridge that its node end is a port of; empty: not known."""
    node_ends: frozenset[str] = frozenset()
    """Names of the node's links in the result; the other end of a veth pair is one of them."""
    planned: frozenset[str] = frozenset()
    """Names of all interfaces that the sandbox was given."""
    vlans: Membership = Membership()
    """The VLANs that its bridge port belongs to."""
    hairpin: bool = False
    """Whether the bridge sends frames back to the port that they came from."""
    isolated: bool = False
    """Whether the bridge keeps the port apart from other isolated ports."""
    rules: ExpectedRules | None = None
    """Its packet filter rules; None: none, or not known."""

    @property
    def is_port(self) -> bool:
        """Whether its node end is a port of ``parent``."""
        return self.kind == "bridge"

    def has_room(self, parent_mtu: int, mtu: int) -> bool:
        """Return whether the interface can have *mtu* on a parent with *parent_mtu*."""
        return self.kind not in OF_THE_NODE or mtu <= parent_mtu


class _Vlans(msgspec.Struct, frozen=True, rename="camel"):
    vlan: int = 0
    vlan_trunk: tuple[Trunk, ...] | None = None
    preserve_default_vlan: bool = True


def expected_links(sandbox: Sandbox, policy: Callable[[str], str]) -> tuple[ExpectedLink, ...]:
    """Return the interfaces of *sandbox*, which is attached, except networks whose *policy* is ``off``."""
    return tuple(
        link
        for attachment in sandbox.attachments
        if policy(attachment.plan.network) != "off" and (link := _link(sandbox, attachment)) is not None
    )


def _link(sandbox: Sandbox, attachment: Attachment) -> ExpectedLink | None:
    """Return the interface of *attachment*; None: its result is not known, or names no interface."""
    plan = attachment.plan
    if not attachment.result:
        return None
    try:
        result = results.decode(adjusted_result(sandbox.attachments, attachment), plan.cni_version)
    except results.ResultError:
        return None
    recorded = next((each for each in result.interfaces if each.sandbox and each.name == plan.ifname), None)
    if recorded is None and at_least(plan.cni_version, "0.3.0"):
        return None  # results of older versions list no interface, and describe exactly one
    native = plan.native[:1] == (True,)
    configs = [cast("dict[str, Any]", msgspec.json.decode(plugin)) for plugin in plan.plugins]
    kind = str(configs[0].get("type", ""))
    ips = result.ips_of(plan.ifname)
    addresses = tuple(with_prefix(ip.address) for ip in ips)
    mac = recorded.mac.lower() if recorded is not None else ""
    return ExpectedLink(
        network=plan.network,
        ifname=plan.ifname,
        kind=kind,
        mac=mac,
        mtu=(recorded.mtu if recorded is not None else 0) or _mtu(configs, attachment.mtus),
        up=not configs[0].get("disableContainerInterface", False),
        optional=bool(plan.device) and not (recorded is not None and recorded.mac),
        addresses=addresses,
        routes=tuple(_routes(kind, result, ips)),
        parent=_parent(kind, configs[0]),
        node_ends=frozenset(each.name for each in result.interfaces if not each.sandbox),
        planned=frozenset(each.plan.ifname for each in sandbox.attachments),
        vlans=_vlans(configs[0], native=native) if kind == "bridge" else Membership(),
        hairpin=configs[0].get("hairpinMode") is True,
        isolated=native and configs[0].get("portIsolation") is True,
        rules=rules_of(configs[0], sandbox.key.container_id, plan.ifname, addresses, mac) if native else None,
    )


def _mtu(configs: list[dict[str, Any]], recorded: tuple[int, ...]) -> int:
    """Return the MTU that the last plugin which sets one gave the interface; 0: not known.

    *recorded* has the MTU after each plugin. It is invalid if a later plugin may have changed the MTU unasked.
    """
    after_each = recorded if len(recorded) == len(configs) else (0,) * len(configs)
    valid = True
    for config, mtu in zip(reversed(configs), reversed(after_each), strict=True):
        if known := (mtu if valid else 0) or _asked_mtu(config):
            return known
        valid = valid and config.get("type") in _LEAVE_MTU
    return 0


def _asked_mtu(config: Mapping[str, Any]) -> int:
    args = cast("dict[str, dict[str, Any] | None]", config.get("args") or {})
    in_args = (args.get("cni") or {}).get("mtu") if config.get("type") == "tuning" else None
    asked = config.get("mtu") if in_args is None else in_args
    return asked if isinstance(asked, int) and asked > 0 else 0


def _parent(kind: str, config: Mapping[str, Any]) -> str:
    if kind == "bridge":
        return str(config.get("bridge") or _DEFAULT_BRIDGE)
    if kind in OF_THE_NODE and not config.get("linkInContainer"):
        return str(config.get("master") or "")
    return ""


def _vlans(config: Mapping[str, Any], *, native: bool) -> Membership:
    """Return the VLANs in the configuration of a bridge plugin; none if the configuration is invalid.

    An executed plugin may be of a version that knows the key ``vlan`` only, so its other keys are ignored.
    """
    keys = ("vlan", "vlanTrunk", "preserveDefaultVlan") if native else ("vlan",)
    try:
        asked = decoding.convert({key: config[key] for key in keys if config.get(key) is not None}, _Vlans)
        return membership(asked.vlan, asked.vlan_trunk, keeps_default=asked.preserve_default_vlan)
    except (msgspec.ValidationError, NativeError):
        return Membership()


def _routes(kind: str, result: Result, ips: list[IP]) -> list[ExpectedRoute]:
    plain = kind in PLAIN
    gateways: dict[int, Gateway] = {}
    routes: list[ExpectedRoute] = []
    for ip in ips:
        address = with_prefix(ip.address)
        gateway = _gateway(ip.gateway)
        if gateway is not None:
            gateways.setdefault(gateway.version, gateway)
        if kind == "ptp" and gateway is not None:
            beside = ipaddress.ip_network(gateway)
            routes.append(ExpectedRoute(destination=beside, source=address.ip, scope=_SCOPE_LINK))
            routes.append(ExpectedRoute(destination=address.network, gateway=gateway, source=address.ip))
        elif plain and address.network.prefixlen < address.max_prefixlen:
            routes.append(ExpectedRoute(destination=address.network, source=address.ip, by_kernel=True))
    for each in result.routes:
        destination = network(each.dst)
        fallback = gateways.get(destination.version) if plain else None
        routes.append(
            ExpectedRoute(
                destination=destination,
                gateway=_gateway(each.gw) or fallback,
                metric=each.priority,
                table=each.table or None,
                scope=each.scope or 0,
                mtu=each.mtu,
                advmss=each.advmss,
                own=plain,
            )
        )
    return routes


def _gateway(text: str) -> Gateway | None:
    try:
        return optional(text)
    except ValueError:
        return None
