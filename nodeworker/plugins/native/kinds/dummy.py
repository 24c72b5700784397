"""An interface that leads nowhere: a place in the container for addresses that others route to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from events.schema import Phase
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import assignments
from nodeworker.plugins.native.kit.container_link import result, set_up
from nodeworker.plugins.native.kit.endpoints import Endpoints, made, name_taken, opened, present, taken_away
from nodeworker.plugins.native.kit.plugin_config import NetConf, load, misfit
from nodeworker.plugins.native.kit.verify import addressed, container_link, recorded
from nodeworker.plugins.spec.results import Result

TYPE = "dummy"


def unsupported(config: Mapping[str, Any]) -> str:
    """Return what *config* asks for that only the reference plugin knows, or an empty text."""
    options = misfit(config, NetConf)
    if isinstance(options, str):
        return options
    return "" if options.has_ipam else "no ipam"


def add(call: Call, ipam: Result | None) -> Result:
    """Make the interface and return the result, whose resolver configuration is that of *ipam*. Raises NativeError."""
    config = load(call, NetConf)
    if ipam is None:
        raise NativeError(f"a dummy interface is there for its addresses: {call.network} has no ipam")
    given = assignments(call, ipam)
    with opened(call, Phase.ADD) as ends:
        link = _link(ends, call)
        set_up(ends, call, link, given, ipam)
    return result(call, config.cni_version, link, ipam, ipam.dns)


def check(call: Call) -> None:
    """Raise NativeError unless the interface is up and as ``call.prev_result`` says."""
    load(call, NetConf)
    before = recorded(call)
    with opened(call, Phase.CHECK) as ends:
        link = container_link(ends, call, before, TYPE)
        if not link.up:
            raise NativeError(f"interface {call.ifname} is down")
        addressed(ends, call, link, before)


def delete(call: Call) -> None:
    """Take the interface away; it and its namespace may be gone. Raises NativeError."""
    taken_away(call)


def _link(ends: Endpoints, call: Call) -> Link:
    """Return the interface, made now or by an ADD that was cut."""
    create = links.create(call.ifname, TYPE)
    link = made(ends.container, call.ifname, TYPE, create) or present(ends.container, call.ifname)
    if link is None or link.kind != TYPE:
        raise name_taken(call)
    return link
