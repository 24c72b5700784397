"""Network configurations for plugins: what an administrator wrote, and what a runtime adds.

Pure. A plugin's own keys are passed on untouched and in their order, because only the plugin knows what they mean
(CNI specification 1.1, section 1, "Plugin configuration objects").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from nodeworker.plugins.spec import versions
from nodeworker.plugins.spec.names import shown
from nodeworker.plugins.spec.versions import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NO_ARGS: Mapping[str, Any] = {}
_LONGEST_FILE_NAME = 255


class NetworkConfig(msgspec.Struct, frozen=True):
    """One network configuration list; a single plugin configuration is a list of one."""

    name: str
    cni_version: str
    """The highest version it offers that is supported."""
    plugins: tuple[dict[str, Any], ...]
    """As written, in chain order."""
    disable_check: bool
    disable_gc: bool


class _Typed(msgspec.Struct, frozen=True):
    type: str


_typed = msgspec.json.Decoder(_Typed)


def parse(
    text: str | Mapping[str, Any], *, default_name: str = "", own_types: frozenset[str] = frozenset({"plumbline"})
) -> NetworkConfig:
    """Return the configuration in *text*: a single plugin configuration or a list, as JSON or already decoded.

    *default_name* stands in for a missing ``name``. A plugin whose type is in *own_types* is refused, as it would call
    itself. Raises ConfigError.
    """
    config = _decode(text) if isinstance(text, str) else text
    name = _string(config, "name", "the configuration") or default_name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {shown(name)} of the configuration is not usable: "
            "start it with a letter or digit and go on with letters, digits, '_', '.' and '-'"
            if name
            else "the configuration has no name"
        )
    return NetworkConfig(
        name=name,
        cni_version=_version(config),
        plugins=tuple(_plugin(plugin, own_types) for plugin in _plugins(config)),
        disable_check=_switch(config, "disableCheck"),
        disable_gc=_switch(config, "disableGC"),
    )


def render(
    config: NetworkConfig,
    *,
    capability_args: Mapping[str, Any] = _NO_ARGS,
    cni_args: Mapping[str, Any] = _NO_ARGS,
    device: str = "",
) -> tuple[str, ...]:
    """Return the JSON text for each plugin of *config*, complete but for ``prevResult``.

    ``runtimeConfig`` gets those *capability_args* that the plugin declares (CNI specification 1.1, section 3, "Deriving
    runtimeConfig"); *cni_args* are merged into ``args.cni`` and win over what is there; *device* becomes ``deviceID``
    and ``pciBusID``, and the capability ``deviceID`` unless *capability_args* has one. Raises ConfigError.
    """
    offered = {"deviceID": device, **capability_args} if device else capability_args
    return tuple(_render(config, plugin, offered, cni_args, device) for plugin in config.plugins)


def declared_capabilities(plugin: Mapping[str, Any]) -> set[str]:
    """Return the capabilities that the configuration *plugin* declares."""
    return {name for name, declared in (plugin.get("capabilities") or {}).items() if declared}


def unsupported_capabilities(config: NetworkConfig, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return those of *wanted*, in their order, that no plugin of the chain declares."""
    declared = {name for plugin in config.plugins for name in declared_capabilities(plugin)}
    return tuple(name for name in wanted if name not in declared)


def with_prev_result(plugin: str, prev_result: str | None) -> bytes:
    """Return the rendered *plugin* with *prev_result* spliced in unchanged; None leaves ``prevResult`` out."""
    if prev_result is None:
        return plugin.encode()
    return f'{plugin.rstrip()[:-1]},"prevResult":{prev_result}}}'.encode()


def type_of(plugin: str) -> str:
    """Return the ``type`` in the rendered configuration *plugin*."""
    return _typed.decode(plugin).type


def is_file_name(plugin_type: str) -> bool:
    """Tell whether *plugin_type* is the bare name of a file, so that it can't point out of the plugin folders."""
    if len(plugin_type) > _LONGEST_FILE_NAME:
        return False
    return plugin_type not in {"", ".", ".."} and "/" not in plugin_type and "\0" not in plugin_type


def _decode(text: str) -> Mapping[str, Any]:
    try:
        config = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError("the configuration is not a JSON object")
    return cast("dict[str, Any]", config)


def _plugins(config: Mapping[str, Any]) -> list[Any]:
    """A configuration with a type is a single plugin's, whatever else it has: the plugin may own the key plugins."""
    if _string(config, "type", "the configuration"):
        return [dict(config)]
    plugins = config.get("plugins")
    if plugins is None:
        raise ConfigError("the configuration has neither type nor plugins")
    if not isinstance(plugins, list) or not plugins:
        raise ConfigError("plugins of the configuration is not a list with at least one plugin")
    return cast("list[Any]", plugins)


def _version(config: Mapping[str, Any]) -> str:
    offered = config.get("cniVersions") or []
    if not isinstance(offered, list) or not all(isinstance(each, str) for each in cast("list[Any]", offered)):
        raise ConfigError("cniVersions of the configuration is not a list of strings")
    return versions.highest(_string(config, "cniVersion", "the configuration"), cast("list[str]", offered))


def _plugin(plugin: object, own_types: frozenset[str]) -> dict[str, Any]:
    if not isinstance(plugin, dict):
        raise ConfigError("a plugin of the configuration is not a JSON object")
    plugin = cast("dict[str, Any]", plugin)
    plugin_type = _string(plugin, "type", "a plugin")
    if not plugin_type:
        raise ConfigError("a plugin of the configuration has no type")
    _check_type(plugin_type, "type", own_types)
    if ipam_type := _string(_object(plugin, "ipam", plugin_type), "type", f"ipam of plugin {plugin_type}"):
        _check_type(ipam_type, "ipam.type", own_types)
    if not all(isinstance(declared, bool) for declared in _object(plugin, "capabilities", plugin_type).values()):
        raise ConfigError(f"capabilities of plugin {plugin_type} is not a map to true or false")
    _object(_object(plugin, "args", plugin_type), "cni", f"{plugin_type}, in args,")
    return plugin


def _check_type(plugin_type: str, key: str, own_types: frozenset[str]) -> None:
    if not is_file_name(plugin_type):
        raise ConfigError(f"{key} {shown(plugin_type)} is not the bare name of a plugin")
    if plugin_type in own_types:
        raise ConfigError(f"{key} {shown(plugin_type)} would call itself")


def _object(owner: Mapping[str, Any], key: str, owner_type: str) -> dict[str, Any]:
    value = owner.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} of plugin {owner_type} is not a JSON object")
    return cast("dict[str, Any]", value)


def _string(owner: Mapping[str, Any], key: str, owner_name: str) -> str:
    value = owner.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{key} of {owner_name} is not a string")
    return value


def _switch(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise ConfigError(f"{key} of the configuration is neither true nor false")


def _render(
    config: NetworkConfig,
    plugin: Mapping[str, Any],
    offered: Mapping[str, Any],
    cni_args: Mapping[str, Any],
    device: str,
) -> str:
    rendered = {**plugin, "name": config.name, "cniVersion": config.cni_version}
    rendered.pop("prevResult", None)
    if device:
        rendered |= {"deviceID": device, "pciBusID": device}
    if cni_args:
        args = plugin.get("args") or {}
        rendered["args"] = {**args, "cni": {**(args.get("cni") or {}), **cni_args}}
    declared = declared_capabilities(plugin)
    if runtime_config := {name: value for name, value in offered.items() if name in declared}:
        rendered["runtimeConfig"] = runtime_config
    return msgspec.json.encode(rendered).decode()
