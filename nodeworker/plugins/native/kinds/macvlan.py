"""An interface with a MAC address of its own on a network card of the node.

It is asked for on the container's side of the wall, which names the card by the number that it has for the node's
namespace: so the name is looked for among the container's, on every kernel, and not among the node's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from events.schema import Phase
from nodeworker.kernel.rtnetlink import links, message
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import assignments
from nodeworker.plugins.native.kit.container_link import result, set_up
from nodeworker.plugins.native.kit.endpoints import Endpoints, made, name_taken, opened, present, taken_away
from nodeworker.plugins.native.kit.parent_link import Parent, parent, rests_on
from nodeworker.plugins.native.kit.plugin_config import NetConf, load, misfit, requested_mac
from nodeworker.plugins.native.kit.verify import addressed, container_link, recorded
from nodeworker.plugins.spec.results import Result

TYPE = "macvlan"

_MODES = {"": 4, "bridge": 4, "private": 1, "vepa": 2, "passthru": 8}
_IFLA_MACVLAN_MODE = 1


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
    options = misfit(config, Macvlan)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam: Result | None) -> Result:
    """Make the interface and return the result. Raises NativeError."""
    config = load(call, Macvlan)
    mac = requested_mac(call, config, config.mac)
    given = [] if ipam is None else assignments(call, ipam)
    with opened(call, Phase.ADD) as ends:
        link = _link(ends, call, config, mac)
        set_up(ends, call, link, given, ipam, arp_notify=True)
    return result(call, config.cni_version, link, ipam, config.dns)


def check(call: Call) -> None:
    """Raise NativeError unless the interface is as ``call.prev_result`` says."""
    config, expected = load(call, Macvlan), recorded(call)
    with opened(call, Phase.CHECK) as ends:
        card = parent(ends, call, config.master)
        link = container_link(ends, call, expected, TYPE)
        if link.parent != card.link.index:
            raise NativeError(f"interface {call.ifname} no longer rests on {card.link.name}")
        if _mode(link) != _MODES.get(config.mode):
            raise NativeError(f"interface {call.ifname} is no longer in mode {config.mode or 'bridge'}")
        addressed(ends, call, link, expected)


def delete(call: Call) -> None:
    """Take the interface away; it and its namespace may be gone. Raises NativeError."""
    taken_away(call)


def _link(ends: Endpoints, call: Call, config: Macvlan, mac: str) -> Link:
    """Return the interface, made now or by an ADD that was cut."""
    mode = _MODES.get(config.mode)
    if mode is None:
        raise NativeError(f"macvlan has no mode {config.mode!r}: use bridge, private, vepa or passthru")
    card = parent(ends, call, config.master)
    if not 0 <= config.mtu <= card.link.mtu:
        raise NativeError(f"mtu {config.mtu} is not between 0 and the {card.link.mtu} of {card.link.name}")
    create = links.create(
        call.ifname,
        TYPE,
        data=message.u32(_IFLA_MACVLAN_MODE, mode),
        parent=card.link.index,
        parent_netnsid=card.netnsid,
        mtu=config.mtu,
        mac=mac,
        queue_length=0,
    )
    link = made(ends.container, call.ifname, TYPE, create) or present(ends.container, call.ifname)
    if link is None or not _ours(link, card, mode) or (mac and link.mac != mac):
        raise name_taken(call)
    return link


def _ours(link: Link, card: Parent, mode: int) -> bool:
    return rests_on(link, card, TYPE) and _mode(link) == mode


def _mode(link: Link) -> int:
    return message.as_int(message.attributes(link.data).get(_IFLA_MACVLAN_MODE))
