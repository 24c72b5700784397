"""The macvlan plugin: an interface with its own MAC address on a network card of the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints
from nodeworker.plugins.native.kit.parent_link import create_on_parent, find_parent
from nodeworker.plugins.native.kit.plugin_config import PluginConfig, decode_config, decode_options, requested_mac
from nodeworker.plugins.spec.results import Result

TYPE = "macvlan"

_MODES = ("bridge", "private", "vepa", "passthru")


class Macvlan(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a macvlan network."""

    master: str = ""
    """The parent, usually a network card; empty: the interface of the node's default route."""
    mode: str = ""
    """One of the kernel's modes; empty: bridge."""
    mtu: int = 0
    """0: that of the parent."""
    mac: str = ""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Macvlan)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface and return the result. Raises NativeError."""
    options = decode_config(call, Macvlan)
    mac = requested_mac(call, options, {"mac": options.mac})
    return add_link(
        call,
        lambda ends: _create(ends, call, options, mac),
        ipam_result,
        version=options.cni_version,
        dns=options.dns,
        arp_notify=True,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    options = decode_config(call, Macvlan)
    with check_of(call) as check:
        parent = find_parent(check.ends, call, options.master)
        link = check.link(TYPE)
        if link.parent != parent.link.index:
            raise NativeError(f"interface {call.ifname} no longer has the parent {parent.link.name}")
        if link.data.get("IFLA_MACVLAN_MODE") != (mode := options.mode or "bridge"):
            raise NativeError(f"interface {call.ifname} is no longer in mode {mode}: recreate the pod")
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _create(ends: Endpoints, call: Call, options: Macvlan, mac: str) -> Link:
    mode = options.mode or "bridge"
    if mode not in _MODES:
        raise NativeError(f"macvlan has no mode {options.mode!r}: use bridge, private, vepa or passthru")
    parent = find_parent(ends, call, options.master)
    if not 0 <= options.mtu <= parent.link.mtu:
        raise NativeError(f"mtu {options.mtu} is not between 0 and the {parent.link.mtu} of {parent.link.name}")
    return create_on_parent(ends, call, parent, TYPE, {"IFLA_MACVLAN_MODE": mode}, mtu=options.mtu, mac=mac)
