"""The ipvlan plugin: an interface with its own addresses on a network card, whose MAC address it shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.codec import Values
from nodeworker.kernel.layouts import ipvlan
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints
from nodeworker.plugins.native.kit.parent_link import create_on_parent, find_parent, has_data, is_child_of
from nodeworker.plugins.native.kit.plugin_config import U32, PluginConfig, decode_config, decode_options
from nodeworker.plugins.spec.results import Result

TYPE = "ipvlan"

_MODES = {"l2": ipvlan.modes["IPVLAN_MODE_L2"], "l3": ipvlan.modes["IPVLAN_MODE_L3"], "l3s": 2}
"""By name. (pyroute2 has none for l3s.)"""


class Ipvlan(PluginConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of an ipvlan network."""

    master: str = ""
    """The parent, usually a card; empty: the one interface of the previous plugin, else that of the default route."""
    mode: str = ""
    mtu: U32 = 0
    """0: that of the parent."""
    link_in_container: bool = False
    """Whether the parent is in the container."""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, Ipvlan)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Make the interface and return the result. Raises NativeError.

    Without *ipam_result* it gets the addresses and routes that an earlier plugin in the chain assigned.
    """
    config = decode_config(call, Ipvlan)
    addressing = ipam_result if ipam_result is not None else _of_chain(call)
    return add_link(
        call,
        lambda ends: _create(ends, call, config),
        addressing,
        version=config.cni_version,
        dns=config.dns,
        arp_notify=True,
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config = decode_config(call, Ipvlan)
    with check_of(call) as check:
        link = check.link(TYPE)
        if config.master:
            parent = find_parent(check.ends, call, config.master, in_container=config.link_in_container)
            if not is_child_of(link, parent, TYPE):
                raise NativeError(f"interface {call.ifname} no longer has the parent {config.master}")
        if not has_data(link, _data(config)):
            raise NativeError(f"interface {call.ifname} is no longer in mode {config.mode or 'l2'}: recreate the pod")
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _of_chain(call: Call) -> Result:
    if call.prev_result is None or not call.prev_result.ips:
        raise NativeError(
            f"an ipvlan interface needs addresses: add ipam to {call.network}, or a plugin before it that assigns some"
        )
    return call.prev_result


def _create(ends: Endpoints, call: Call, config: Ipvlan) -> Link:
    """Return the interface, new or from an interrupted ADD."""
    data = _data(config)
    parent = find_parent(ends, call, config.master or _before(call), in_container=config.link_in_container)
    return create_on_parent(ends, call, parent, TYPE, data, mtu=config.mtu)


def _before(call: Call) -> str:
    """Return the name of the previous plugin's interface, empty if this plugin is the first."""
    if call.prev_result is None:
        return ""
    names = [each.name for each in call.prev_result.interfaces]
    if len(names) != 1 or not names[0]:
        raise NativeError(
            f"network {call.network} has no master, and the plugin before ipvlan created "
            f"{', '.join(names) or 'none'} instead of one: set master"
        )
    return names[0]


def _data(config: Ipvlan) -> Values:
    mode = _MODES.get(config.mode or "l2")
    if mode is None:
        raise NativeError(f"ipvlan has no mode {config.mode!r}: use l2, l3 or l3s")
    return {"IFLA_IPVLAN_MODE": mode}
