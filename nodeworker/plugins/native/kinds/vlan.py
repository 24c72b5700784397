"""The vlan plugin: an interface for the frames of one VLAN of a network card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.codec import Values
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints
from nodeworker.plugins.native.kit.parent_link import create_on_parent, find_parent, has_data, is_child_of
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options
from nodeworker.plugins.native.kit.vlan_membership import HIGHEST
from nodeworker.plugins.spec.results import Result

TYPE = "vlan"


class Vlan(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a network on a VLAN."""

    master: str = ""
    """The parent, usually a network card."""
    vlan_id: U32 = 0
    mtu: U32 = 0
    """0: that of the parent."""
    link_in_container: bool = False
    """Whether the parent is in the container."""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Vlan)
    if isinstance(options, str):
        return options
    return "" if options.has_ipam else "no ipam"


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface and return the result. Raises NativeError."""
    config = decode_config(call, Vlan)
    if ipam_result is None:
        raise NativeError(f"a VLAN interface needs addresses: add ipam to {call.network}")
    return add_link(
        call, lambda ends: _create(ends, call, config), ipam_result, version=config.cni_version, dns=config.dns
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config = decode_config(call, Vlan)
    with check_of(call) as check:
        parent = find_parent(check.ends, call, config.master, in_container=config.link_in_container)
        link = check.link(TYPE)
        if not is_child_of(link, parent, TYPE):
            raise NativeError(f"interface {call.ifname} no longer has the parent {config.master}")
        if not has_data(link, _data(config)):
            raise NativeError(f"interface {call.ifname} is no longer in VLAN {config.vlan_id}: recreate the pod")
        if config.mtu and link.mtu != config.mtu:
            raise NativeError(f"interface {call.ifname} has mtu {link.mtu}, not {config.mtu}")
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _create(ends: Endpoints, call: Call, config: Vlan) -> Link:
    """Return the interface, new or from an interrupted ADD."""
    if not config.master:
        raise NativeError(f"network {call.network} has no master, which a VLAN needs: set master")
    if config.vlan_id > HIGHEST:
        raise NativeError(f"vlanId {config.vlan_id} is not between 0 and {HIGHEST}")
    parent = find_parent(ends, call, config.master, in_container=config.link_in_container)
    if config.mtu > parent.link.mtu:
        raise NativeError(f"mtu {config.mtu} is more than the {parent.link.mtu} of {config.master}")
    excluded = (
        f"VLAN {config.vlan_id} of {config.master} has an interface elsewhere already, and the kernel allows only one: "
        "attach pods to that interface with a bridge or macvlan network"
    )
    return create_on_parent(ends, call, parent, TYPE, _data(config), mtu=config.mtu, excluded=excluded)


def _data(config: Vlan) -> Values:
    return {"IFLA_VLAN_ID": config.vlan_id}
