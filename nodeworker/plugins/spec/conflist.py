"""Network configurations for plugins: what an administrator wrote, and what a runtime adds.

Pure. A plugin's own keys are passed on in their order, and their values as written except for space: only the plugin
knows what they mean (CNI specification 1.1, section 1, "Plugin configuration objects"). Of a key that is there twice,
the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import msgspec

from events.process.setting_keys import nearest
from nodeworker.plugins.spec import versions
from nodeworker.plugins.spec.names import raw_members, shown
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
    """Decoded, in chain order."""
    written: tuple[dict[str, msgspec.Raw], ...]
    """The same, with the bytes of each key."""
    disable_check: bool
    disable_gc: bool


class _Typed(msgspec.Struct, frozen=True):
    type: str


_typed = msgspec.json.Decoder(_Typed)
_written = msgspec.json.Decoder(tuple[dict[str, msgspec.Raw], ...])


def parse(
    text: str | Mapping[str, Any], *, default_name: str = "", own_types: frozenset[str] = frozenset({"plumbline"})
) -> NetworkConfig:
    """Return the configuration in *text*: a single plugin configuration or a list, as JSON or its members.

    *default_name* stands in for a missing ``name``. A plugin whose type is in *own_types* is refused, as it would call
    itself. Raises ConfigError.
    """
    text = text if isinstance(text, str) else msgspec.json.encode(text).decode()
    config = _decode(text)
    name = _string(config, "name", "the configuration") or default_name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {shown(name)} of the configuration is not usable: "
            "start it with a letter or digit and go on with letters, digits, '_', '.' and '-'"
            if name
            else "the configuration has no name"
        )
    if len(name) > _LONGEST_FILE_NAME:
        raise ConfigError(f"name {shown(name)} of the configuration is longer than {_LONGEST_FILE_NAME} characters")
    plugins = tuple(_plugin(plugin, label, own_types) for label, plugin in _plugins(config))
    members = raw_members(text)
    return NetworkConfig(
        name=name,
        cni_version=_version(config),
        plugins=plugins,
        written=(members,) if config.get("type") else _written.decode(members["plugins"]),
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
    return tuple(_render(config, index, offered, cni_args, device) for index in range(len(config.plugins)))


def declared_capabilities(plugin: Mapping[str, Any]) -> set[str]:
    """Return the capabilities that the configuration *plugin* declares."""
    return {name for name, declared in (plugin.get("capabilities") or {}).items() if declared}


def ipam_type(plugin: Mapping[str, Any]) -> str:
    """Return the type of the IPAM plugin that *plugin* names, or an empty text."""
    ipam = plugin.get("ipam")
    kind = cast("dict[str, Any]", ipam).get("type") if isinstance(ipam, dict) else ""
    return kind if isinstance(kind, str) else ""


def unsupported_capabilities(config: NetworkConfig, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return those of *wanted*, in their order, that no plugin of the chain declares."""
    declared = {name for plugin in config.plugins for name in declared_capabilities(plugin)}
    return tuple(name for name in wanted if name not in declared)


def with_prev_result(config: str, prev_result: str | None) -> bytes:
    """Return the rendered *config* with *prev_result* spliced in unchanged; None leaves ``prevResult`` out."""
    if prev_result is None:
        return config.encode()
    return f'{config.rstrip()[:-1]},"prevResult":{prev_result}}}'.encode()


def type_of(config: str) -> str:
    """Return the ``type`` in the rendered *config*."""
    return _typed.decode(config).type


def is_file_name(plugin_type: str) -> bool:
    """Tell whether *plugin_type* is the bare name of a file, so that it can't point out of the plugin folders."""
    if len(plugin_type) > _LONGEST_FILE_NAME:
        return False
    return plugin_type not in {"", ".", ".."} and "/" not in plugin_type and "\0" not in plugin_type


def without_runtime_config(config: str, keys: Mapping[str, Any]) -> bytes:
    """Return the rendered *config* for a verb about the network: with *keys*, and without what is for an attachment."""
    members = raw_members(config)
    members.pop("runtimeConfig", None)
    return msgspec.json.encode({**members, **keys})


def _decode(text: str) -> Mapping[str, Any]:
    try:
        config = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError("the configuration is not a JSON object")
    return cast("dict[str, Any]", config)


def _plugins(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the plugins, each with its place for error messages.

    A configuration with a type is a single plugin's, whatever else it has: the plugin may own the key plugins.
    """
    if _string(config, "type", "the configuration"):
        return [("the configuration", dict(config))]
    plugins = config.get("plugins")
    if plugins is None:
        raise ConfigError(f"the configuration has neither type nor plugins: {_given(config, ('type', 'plugins'))}")
    if not isinstance(plugins, list) or not plugins:
        raise ConfigError("plugins of the configuration is not a list with at least one plugin")
    return [(f"plugins[{index}]", plugin) for index, plugin in enumerate(cast("list[Any]", plugins))]


def _given(owner: Mapping[str, Any], missing: Collection[str]) -> str:
    """Return the keys of *owner*, and which of them is probably one of *missing*."""
    if present := [key for key in missing if key in owner]:
        return f"its {present[0]} is empty"
    for key in owner:
        if near := nearest(key, missing):
            return f"it has the key {shown(key)}; did you mean {near}?"
    return f"its keys are {shown(', '.join(owner))}" if owner else "it is empty"


def _version(config: Mapping[str, Any]) -> str:
    offered = config.get("cniVersions") or []
    if not isinstance(offered, list) or not all(isinstance(each, str) for each in cast("list[Any]", offered)):
        raise ConfigError("cniVersions of the configuration is not a list of strings")
    return versions.highest(_string(config, "cniVersion", "the configuration"), cast("list[str]", offered))


def _plugin(plugin: object, place: str, own_types: frozenset[str]) -> dict[str, Any]:
    """Return the configuration *plugin*. *place* is where it is, for the message of the ConfigError."""
    if not isinstance(plugin, dict):
        raise ConfigError(f"{place} is {shown(msgspec.json.encode(plugin).decode())}, which is not a JSON object")
    plugin = cast("dict[str, Any]", plugin)
    plugin_type = _string(plugin, "type", place)
    if not plugin_type:
        raise ConfigError(f"{place} has no type: {_given(plugin, ('type',))}")
    _check_type(plugin_type, f"type of {place}", own_types)
    place = f"{place} ({shown(plugin_type)})"
    if ipam := _string(_object(plugin, "ipam", place), "type", f"ipam of {place}"):
        _check_type(ipam, f"ipam.type of {place}", own_types)
    for name, declared in _object(plugin, "capabilities", place).items():
        if not isinstance(declared, bool):
            raise ConfigError(f"capabilities.{name} of {place} is neither true nor false")
    _object(_object(plugin, "args", place), "cni", f"args of {place}")
    return plugin


def _check_type(plugin_type: str, key: str, own_types: frozenset[str]) -> None:
    if not is_file_name(plugin_type):
        raise ConfigError(f"{key} is {shown(plugin_type)}, which is not the bare name of a plugin")
    if plugin_type in own_types:
        raise ConfigError(f"{key} is {shown(plugin_type)}, which would call itself")


def _object(owner: Mapping[str, Any], key: str, owner_name: str) -> dict[str, Any]:
    value = owner.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} of {owner_name} is not a JSON object")
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
    index: int,
    offered: Mapping[str, Any],
    cni_args: Mapping[str, Any],
    device: str,
) -> str:
    plugin, written = config.plugins[index], config.written[index]
    rendered: dict[str, Any] = {**written, "name": config.name, "cniVersion": config.cni_version}
    rendered.pop("prevResult", None)
    if device:
        rendered |= {"deviceID": device, "pciBusID": device}
    if cni_args:
        args = raw_members(written["args"]) if plugin.get("args") else {}
        cni = raw_members(args["cni"]) if args and plugin["args"].get("cni") else {}
        rendered["args"] = {**args, "cni": {**cni, **cni_args}}
    declared = declared_capabilities(plugin)
    if runtime_config := {name: value for name, value in offered.items() if name in declared}:
        rendered["runtimeConfig"] = runtime_config
    return msgspec.json.format(msgspec.json.encode(rendered), indent=-1).decode()  # no space between values
