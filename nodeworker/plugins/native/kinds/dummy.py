"""An interface that leads nowhere: a place in the container for addresses that others route to it."""

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
from nodeworker.plugins.native.kit.plugin_config import NetConf, decode_options, load
from nodeworker.plugins.native.kit.verify import check_addresses, check_link, recorded_result
from nodeworker.plugins.spec.results import Result

TYPE = "dummy"


def unsupported(config: Mapping[str, Any]) -> str:
    """Return what *config* asks for that only the reference plugin knows, or an empty text."""
    options = decode_options(config, NetConf)
    if isinstance(options, str):
        return options
    return "" if options.has_ipam else "no ipam"


def add(call: Call, ipam: Result | None) -> Result:
    """Make the interface and return the result, whose resolver configuration is that of *ipam*. Raises NativeError."""
    config = load(call, NetConf)
    if ipam is None:
        raise NativeError(f"a dummy interface is there for its addresses: {call.network} has no ipam")
    given = assignments(call, ipam)
    with open_endpoints(call, Phase.ADD) as ends:
        link = _link(ends, call)
        configure_link(ends, call, link, given, ipam)
    return build_result(call, config.cni_version, link, ipam, ipam.dns)


def check(call: Call) -> None:
    """Raise NativeError unless the interface is up and as ``call.prev_result`` says."""
    load(call, NetConf)
    before = recorded_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        link = check_link(ends, call, before, TYPE)
        if not link.up:
            raise NativeError(f"interface {call.ifname} is down")
        check_addresses(ends, call, link, before)


def delete(call: Call) -> None:
    """Take the interface away; it and its namespace may be gone. Raises NativeError."""
    remove_link(call)


def _link(ends: Endpoints, call: Call) -> Link:
    """Return the interface, made now or by an ADD that was cut."""
    create = links.create(call.ifname, TYPE)
    link = create_link(ends.container, call.ifname, TYPE, create) or find_link(ends.container, call.ifname)
    if link is None or link.kind != TYPE:
        raise name_taken(call)
    return link
