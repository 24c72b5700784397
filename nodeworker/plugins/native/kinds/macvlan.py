"""An interface with a MAC address of its own on a network card of the node.

It is asked for on the container's side of the wall, which names the card by the number that it has for the node's
namespace: so the name is looked for among the container's, on every kernel, and not among the node's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from events.schema import Phase
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import assignments
from nodeworker.plugins.native.kit.container_link import build_result, configure_link
from nodeworker.plugins.native.kit.endpoints import (
    Endpoints,
    create_link,
    find_link,
    name_taken,
    open_endpoints,
    remove_link,
)
from nodeworker.plugins.native.kit.parent_link import Parent, find_parent, is_child_of
from nodeworker.plugins.native.kit.plugin_config import NetConf, decode_options, load, requested_mac
from nodeworker.plugins.native.kit.verify import check_addresses, check_link, recorded_result
from nodeworker.plugins.spec.results import Result

TYPE = "macvlan"

_MODES = ("bridge", "private", "vepa", "passthru")


class Macvlan(NetConf, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The configuration of a macvlan network."""

    master: str = ""
    """The card; empty for the one that the node's default route leaves through."""
    mode: str = ""
    mtu: int = 0
    """0 for the card's."""
    mac: str = ""


def unsupported(config: Mapping[str, Any]) -> str:
    """Return what *config* asks for that only the reference plugin knows, or an empty text."""
    options = decode_options(config, Macvlan)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam: Result | None) -> Result:
    """Make the interface and return the result. Raises NativeError."""
    config = load(call, Macvlan)
    mac = requested_mac(call, config, config.mac)
    given = [] if ipam is None else assignments(call, ipam)
    with open_endpoints(call, Phase.ADD) as ends:
        link = _link(ends, call, config, mac)
        configure_link(ends, call, link, given, ipam, arp_notify=True)
    return build_result(call, config.cni_version, link, ipam, config.dns)


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config, expected = load(call, Macvlan), recorded_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        card = find_parent(ends, call, config.master)
        link = check_link(ends, call, expected, TYPE)
        if link.parent != card.link.index:
            raise NativeError(f"interface {call.ifname} no longer rests on {card.link.name}")
        if link.data.get("IFLA_MACVLAN_MODE") != (mode := config.mode or "bridge"):
            raise NativeError(f"interface {call.ifname} is no longer in mode {mode}")
        check_addresses(ends, call, link, expected)


def delete(call: Call) -> None:
    """Take the interface away; it and its namespace may be gone. Raises NativeError."""
    remove_link(call)


def _link(ends: Endpoints, call: Call, config: Macvlan, mac: str) -> Link:
    """Return the interface, made now or by an ADD that was cut."""
    mode = config.mode or "bridge"
    if mode not in _MODES:
        raise NativeError(f"macvlan has no mode {config.mode!r}: use bridge, private, vepa or passthru")
    card = find_parent(ends, call, config.master)
    if not 0 <= config.mtu <= card.link.mtu:
        raise NativeError(f"mtu {config.mtu} is not between 0 and the {card.link.mtu} of {card.link.name}")
    create = links.create(
        call.ifname,
        TYPE,
        data={"IFLA_MACVLAN_MODE": mode},
        parent=card.link.index,
        parent_netnsid=card.netnsid,
        mtu=config.mtu,
        mac=mac,
        queue_length=0,
    )
    link = create_link(ends.container, call.ifname, TYPE, create) or find_link(ends.container, call.ifname)
    if link is None or not _ours(link, card, mode) or (mac and link.mac != mac):
        raise name_taken(call)
    return link


def _ours(link: Link, card: Parent, mode: str) -> bool:
    return is_child_of(link, card, TYPE) and link.data.get("IFLA_MACVLAN_MODE") == mode
