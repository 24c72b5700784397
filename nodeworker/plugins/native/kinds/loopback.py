"""The loopback plugin: set up the loopback interface, which every namespace has, down."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from events.schema import Phase
from nodeworker.kernel import namespaces
from nodeworker.kernel.rtnetlink import addresses, links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import PluginConfig, decode_config, decode_options
from nodeworker.plugins.spec.results import IP, Interface, Result

TYPE = "loopback"
_NAME = "lo"
_NO_MAC = "00:00:00:00:00:00"


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, PluginConfig)
    return options if isinstance(options, str) else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Set the loopback interface up and return it with its addresses; *ipam_result* is ignored. Raises NativeError."""
    decode_config(call, PluginConfig)
    with open_endpoints(call, Phase.ADD) as ends:
        link = _loopback(ends)
        with error_context("set lo up"):
            ends.container.do(links.change(link.index, up=True))
            there = [each.address for each in addresses.list_of(ends.container, link.index)]
    strange = [str(each.ip) for each in there if not each.ip.is_loopback]
    if strange:
        raise NativeError(f"lo has {', '.join(strange)}, which are not loopback addresses: remove them")
    if call.prev_result is not None:
        return call.prev_result
    first = [next((each for each in there if isinstance(each, kind)), None) for kind in _KINDS]
    return Result(
        cni_version=str(call.config.get("cniVersion", "")),
        interfaces=(Interface(name=_NAME, mac=_NO_MAC, sandbox=call.netns),),
        ips=tuple(IP(interface=0, address=str(each)) for each in first if each is not None),
    )


def check(call: Call) -> None:
    """Raise NativeError unless the loopback interface is up."""
    with open_endpoints(call, Phase.CHECK) as ends:
        if not _loopback(ends).up:
            raise NativeError("lo is down: recreate the pod")


def delete(call: Call) -> None:
    """Set the loopback interface down, if the namespace exists. Raises NativeError."""
    if not call.netns or not namespaces.is_namespace(call.netns):
        return
    with open_endpoints(call, Phase.DEL) as ends, error_context("set lo down"):
        ends.container.do(links.change(_loopback(ends).index, up=False))


def _loopback(ends: Endpoints) -> Link:
    link = find_link(ends.container, _NAME)
    if link is None:
        raise NativeError("the container has no loopback interface")
    return link


_KINDS = (ipaddress.IPv4Interface, ipaddress.IPv6Interface)
