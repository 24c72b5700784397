"""Decide which plugins are native, and whether one supports a configuration.

A module is imported when a configuration first needs it, so that only nodes that use a plugin pay for its memory.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import msgspec
import structlog

from nodeworker.plugins.native.api import CollectingPlugin, InterfacePlugin, IpamPlugin
from nodeworker.plugins.spec.conflist import ipam_type

log = structlog.get_logger(__name__)

Switch: TypeAlias = str | tuple[str, ...]
"""``auto``, ``never``, or the plugin types to run natively, those of IPAM plugins among them."""

AUTO, NEVER = "auto", "never"

_INTERFACES = {
    "bridge": "bridge.bridge",
    "dummy": "dummy",
    "host-device": "host_device",
    "ipvlan": "ipvlan",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "passthru": "passthru",
    "ptp": "ptp",
    "sbr": "sbr",
    "tap": "tap",
    "tuning": "tuning.tuning",
    "vlan": "vlan",
    "vrf": "vrf",
    "vxlan": "vxlan",
}
_IPAM = {"host-local": "host_local", "static": "static"}

_ALWAYS = frozenset({"passthru", "vxlan"})
"""Types that run natively even with ``never``: a node need not have a binary for them."""

_LINK_REMOVABLE_FIRST = frozenset({"bridge", "dummy", "ipvlan", "macvlan", "ptp", "tap", "vlan", "vxlan"})
"""Types whose container interface may be removed before their DEL runs, so one kernel request removes several.

The DEL still follows, and removes the rest, such as the rules of bridge and ptp.
"""

_COLLECTING = frozenset({"bridge", "ptp"})
"""Types that take part in GC: their rules stay on the node when the interface disappears without a DEL."""

TYPES = frozenset({*_INTERFACES, *_IPAM})


def interface_plugin(plugin_type: str) -> InterfacePlugin | None:
    """Return the native plugin of that type, None if there is none."""
    module = _interface_module(plugin_type)
    return cast("InterfacePlugin", _module(module)) if module else None


def collecting_plugin(plugin_type: str) -> CollectingPlugin | None:
    """Return the native plugin of that type if it takes part in GC."""
    return cast("CollectingPlugin", interface_plugin(plugin_type)) if plugin_type in _COLLECTING else None


def ipam_plugin(plugin_type: str) -> IpamPlugin | None:
    """Return the native IPAM plugin of that type, None if there is none."""
    module = _ipam_module(plugin_type)
    return cast("IpamPlugin", _module(module)) if module else None


def unloaded(configs: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that the plugins of the rendered *configs* need natively and that are not imported yet."""
    return tuple(name for config in configs for name in _modules(config) if name not in sys.modules)


def import_modules(modules: Iterable[str]) -> None:
    """Import *modules*. It takes up to 50 ms, once."""
    for name in modules:
        _module(name)


@functools.lru_cache(128)
def _modules(config: str) -> tuple[str, ...]:
    decoded = cast("dict[str, Any]", msgspec.json.decode(config))
    found = _interface_module(str(decoded.get("type", ""))), _ipam_module(ipam_type(decoded))
    return tuple(module for module in found if module)


def _interface_module(plugin_type: str) -> str:
    name = _INTERFACES.get(plugin_type)
    return f"nodeworker.plugins.native.kinds.{name}" if name else ""


def _ipam_module(plugin_type: str) -> str:
    name = _IPAM.get(plugin_type)
    return f"nodeworker.plugins.native.ipam.{name}" if name else ""


def enabled(plugin_type: str, switch: Switch) -> bool:
    """Return whether plugins of that type run natively with *switch*; some have no binary, so they always do."""
    return plugin_type in _ALWAYS or (plugin_type in switch if isinstance(switch, tuple) else switch == AUTO)


def link_removable_first(plugin_type: str) -> bool:
    """Return whether the container's interface may be removed before DEL of that plugin type."""
    return plugin_type in _LINK_REMOVABLE_FIRST


def obstacle(plugin_type: str, config: Mapping[str, Any], switch: Switch) -> str:
    """Return why *config* can't run natively, or an empty text; ``off`` if its type is not enabled."""
    plugin = interface_plugin(plugin_type)
    if plugin is None or not enabled(plugin_type, switch):
        return "off"
    return plugin.unsupported(config)


def choose(configs: tuple[str, ...], switch: Switch) -> tuple[bool, ...]:
    """Return for each of a chain's rendered *configs* whether its plugin runs natively; log once why one does not."""
    return tuple(_is_native(config, switch) for config in configs)


@functools.lru_cache(128)
def _is_native(config: str, switch: Switch) -> bool:
    """Return whether the plugin of *config* runs natively. Cached: most pods of a network have the same."""
    decoded = cast("dict[str, Any]", msgspec.json.decode(config))
    plugin_type = str(decoded.get("type", ""))
    if not _INTERFACES.get(plugin_type) or not enabled(plugin_type, switch):
        return False
    reason = obstacle(plugin_type, decoded, switch)
    if reason:
        _log_once(plugin_type, reason)
    return not reason


@functools.lru_cache(1024)
def _log_once(plugin_type: str, reason: str) -> None:
    log.info("plugin_executed", plugin=plugin_type, not_native=reason)


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(name)
