"""The vxlan plugin, one of Plumbline's own: an interface in a network that UDP packets carry between nodes (RFC 7348).

The node sends the packets: the kernel creates the interface in the container, bound to the node's namespace. So the
container needs neither a route to the other nodes nor a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.codec import Values
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.routes import Gateway
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, create_or_find, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints, name_taken
from nodeworker.plugins.native.kit.parent_link import Parent, find_parent, has_data
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options, requested_mac
from nodeworker.plugins.spec.addresses import optional
from nodeworker.plugins.spec.results import Result

TYPE = "vxlan"

_IDS = range(1, 2**24)
_PORTS = range(1, 2**16)
_TTLS = range(2**8)
_OVERHEAD = {4: 50, 6: 70}
"""Bytes that the outer headers take of the parent's MTU, by IP version."""


class Vxlan(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a VXLAN network."""

    vxlan_id: U32
    """The network identifier (VNI)."""
    master: str = ""
    """The parent: packets leave through this network card; empty: through the one of the node's default route."""
    group: str = ""
    """Multicast address that all nodes of the network listen to."""
    remote: str = ""
    """Address of the one other node."""
    local: str = ""
    """Address that the packets leave from; empty for the kernel's choice."""
    port: U32 = 4789
    ttl: U32 = 0
    """Of the packets; 0 for the kernel's choice, which is 1 for multicast."""
    mtu: U32 = 0
    """0 for what the parent leaves room for."""
    learning: bool = True
    """Whether it learns from packets which node an address is on."""
    mac: str = ""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only another plugin of this name supports, or an empty text.

    A configuration with ``vxlanId`` is for this plugin: a mistake in it is an error, not a reason to execute a binary.
    """
    options = decode_options(config, Vxlan)
    return options if isinstance(options, str) and "vxlanId" not in config else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface and return the result. Raises NativeError."""
    config = decode_config(call, Vxlan)
    mac = requested_mac(call, config, {"mac": config.mac})
    return add_link(
        call,
        lambda ends: _create(ends, call, config, mac),
        ipam_result,
        version=config.cni_version,
        dns=config.dns,
        arp_notify=True,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config = decode_config(call, Vxlan)
    with check_of(call) as check:
        parent = find_parent(check.ends, call, config.master)
        link = check.link(TYPE)
        if not _ours(link, parent, config):
            raise NativeError(
                f"interface {call.ifname} is no longer in VXLAN {config.vxlan_id} over {parent.link.name}: "
                "recreate the pod"
            )
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _create(ends: Endpoints, call: Call, config: Vxlan, mac: str) -> Link:
    """Return the interface, new or from an interrupted ADD."""
    parent = find_parent(ends, call, config.master)
    data = _data(config, parent)
    room = parent.link.mtu - _OVERHEAD[_version(config)]
    if config.mtu > room:
        raise NativeError(
            f"mtu {config.mtu} is more than the {room} that {parent.link.name} leaves room for: lower mtu"
        )
    create = links.create(call.ifname, TYPE, data=data, parent_netnsid=parent.netnsid, mtu=config.mtu, mac=mac)
    link = create_or_find(ends, call, TYPE, create)
    if link is None:
        raise NativeError(
            f"this node has an interface in VXLAN {config.vxlan_id} on port {config.port} already, "
            "and the kernel allows only one: attach pods to that interface with a bridge or macvlan network"
        )
    if not _ours(link, parent, config) or (mac and link.mac != mac):
        raise name_taken(call)
    return link


def _ours(link: Link, parent: Parent, config: Vxlan) -> bool:
    return (link.kind, link.parent_netnsid) == (TYPE, parent.netnsid) and has_data(link, _data(config, parent))


def _data(config: Vxlan, parent: Parent) -> Values:
    """Return the attributes of the interface. Raises NativeError."""
    for key, value, known in (
        ("vxlanId", config.vxlan_id, _IDS),
        ("port", config.port, _PORTS),
        ("ttl", config.ttl, _TTLS),
    ):
        if value not in known:
            raise NativeError(f"{key} {value} is not between {known.start} and {known.stop - 1}")
    peer, local = _peer(config), _address("local", config.local)
    if peer and local and peer.version != local.version:
        raise NativeError(f"local {local} and {peer} are of different families: use IPv4 or IPv6 for both")
    return {
        "IFLA_VXLAN_ID": config.vxlan_id,
        "IFLA_VXLAN_LINK": parent.link.index,
        "IFLA_VXLAN_TTL": config.ttl,
        "IFLA_VXLAN_LEARNING": config.learning,
        "IFLA_VXLAN_PORT": config.port,
        **_named("IFLA_VXLAN_GROUP", peer),
        **_named("IFLA_VXLAN_LOCAL", local),
    }


def _named(name: str, address: Gateway | None) -> Values:
    """Return the attribute *name*, in the form for the family of *address*; none without an address."""
    if address is None:
        return {}
    return {name if address.version == 4 else f"{name}6": address.packed}


def _peer(config: Vxlan) -> Gateway | None:
    """Return the destination of packets to unknown MAC addresses. Raises NativeError."""
    if config.group and config.remote:
        raise NativeError("group and remote exclude each other: remove one")
    group, remote = _address("group", config.group), _address("remote", config.remote)
    if group and not group.is_multicast:
        raise NativeError(f"group {group} is not a multicast address: put the address of another node into remote")
    if remote and remote.is_multicast:
        raise NativeError(f"remote {remote} is a multicast address: put it into group")
    return group or remote


def _version(config: Vxlan) -> int:
    address = _peer(config) or _address("local", config.local)
    return address.version if address else 4


def _address(key: str, text: str) -> Gateway | None:
    try:
        return optional(text)
    except ValueError as error:
        raise NativeError(f"{key}: {error}") from None
