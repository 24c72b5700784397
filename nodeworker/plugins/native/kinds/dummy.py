"""The dummy plugin: an interface without a link, for addresses that other hosts route to the container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.container_link import add_link, check_of, create_or_find, remove_link
from nodeworker.plugins.native.kit.endpoints import Endpoints, name_taken
from nodeworker.plugins.native.kit.plugin_config import PluginConfig, decode_config, decode_options
from nodeworker.plugins.spec.results import Result

TYPE = "dummy"


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, PluginConfig)
    if isinstance(options, str):
        return options
    return "" if options.has_ipam else "no ipam"


def add(call: Call, ipam_result: Result | None) -> Result:
    """Create the interface and return the result, with the DNS settings of *ipam_result*. Raises NativeError."""
    config = decode_config(call, PluginConfig)
    if ipam_result is None:
        raise NativeError(f"a dummy interface needs addresses: add ipam to {call.network}")
    return add_link(
        call, lambda ends: _create(ends, call), ipam_result, version=config.cni_version, dns=ipam_result.dns
    )


def check(call: Call) -> None:
    """Raise NativeError unless the interface is up and as ``call.prev_result`` says."""
    decode_config(call, PluginConfig)
    with check_of(call) as check:
        link = check.link(TYPE)
        if not link.up:
            raise NativeError(f"interface {call.ifname} is down: recreate the pod")
        check.addresses(link)


def delete(call: Call) -> None:
    """Delete the interface; it, or its namespace, may be gone. Raises NativeError."""
    remove_link(call)


def _create(ends: Endpoints, call: Call) -> Link:
    """Return the interface, new or from an interrupted ADD."""
    link = create_or_find(ends, call, TYPE, links.create(call.ifname, TYPE))
    if link is None or link.kind != TYPE:
        raise name_taken(call)
    return link
