"""Decide with which configuration and arguments an attachment was made, from one or two files.

Pure. libcni's entry is written after a successful ADD, with the configuration, CNI_ARGS and result of that ADD. So it
goes before the scratch file, which Multus writes before the ADD. If the two contradict each other, the sandbox is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from nodeworker.host.adopt.records import Delegate, Entry, RecordError
from nodeworker.plugins.spec import conflist, results
from nodeworker.plugins.spec.cni_args import delegate_args
from nodeworker.plugins.spec.conflist import ConfigError, NetworkConfig
from nodeworker.plugins.spec.names import decode_json

DEVICE_INFO_FILE = "CNIDeviceInfoFile"
"""The capability with the path of the device information file (Device Information 1.1.0)."""

_DEVICE_INFO_DIR = "/var/run/k8s.cni.cncf.io/devinfo/cni"
_TYPED_KEYS = frozenset({"cniVersion", "name", "type", "capabilities", "ipam", "dns"})
"""The keys of a plugin that survive when a list is rewritten from the specification's types."""
_RUNTIME_KEYS = frozenset({"portMappings", "bandwidth", "ips", "mac", "infinibandGUID", "deviceID", DEVICE_INFO_FILE})
"""The keys of its own ``runtimeConfig`` that Multus passes on."""


class AddArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments with which the plugins of an attachment were called."""

    capability_args: Mapping[str, Any]
    cni_args: str


def configuration(entry: Entry | None, delegate: Delegate | None, *, default: bool) -> NetworkConfig:
    """Return the configuration of the attachment; at least one of *entry* and *delegate* is not None.

    Raises RecordError.
    """
    if entry is None:
        assert delegate is not None
        if default and _may_be_stripped(delegate.config):
            raise RecordError(
                f"libcni has no entry of the default network {delegate.name}, and the scratch file's copy may lack "
                "the plugins' own keys, as Multus 4.3.0 writes it"
            )
        return _parsed(delegate.config, f"the scratch file's configuration of {delegate.name}")
    made = _parsed(entry.config, entry.path, entry.network)
    if made.name != entry.network:
        raise RecordError(f"{entry.path} is of network {entry.network} and holds the configuration of {made.name}")
    return made if delegate is None else _agreed(made, delegate, entry.path)


def recorded_arguments(entry: Entry) -> AddArguments:
    """Return the arguments in libcni's *entry*."""
    args = ";".join(f"{key}={value}" for key, value in entry.args)
    return AddArguments(capability_args=entry.capability_args, cni_args=args)


def rebuilt_arguments(
    delegate: Delegate,
    container_id: str,
    ifname: str,
    pod_args: Mapping[str, str],
    runtime_config: Mapping[str, Any],
    *,
    default: bool,
) -> AddArguments:
    """Return the arguments that Multus passes to the delegate's plugins on DEL if libcni's entry is lost.

    *pod_args* and *runtime_config* are the runtime's arguments to Multus. The pod's own port mappings and bandwidth are
    lost: Multus does not store them either.
    """
    offered: dict[str, Any] = {key: value for key, value in runtime_config.items() if key in _RUNTIME_KEYS}
    requested = {
        "ips": list(delegate.ips),
        "mac": delegate.mac,
        "infinibandGUID": delegate.infiniband_guid,
        "deviceID": delegate.device,
    }
    if not default:
        offered |= {key: value for key, value in requested.items() if value}
    if offered.get("deviceID"):
        file_name = f"{delegate.name}-{container_id}_{ifname}".replace("/", "-")
        offered[DEVICE_INFO_FILE] = f"{_DEVICE_INFO_DIR}/{file_name}"
    args = delegate_args(pod_args, container_id, mac=delegate.mac, ips=delegate.ips, default=default)
    return AddArguments(capability_args=offered, cni_args=args)


def result_of(entry: Entry, version: str) -> str:
    """Return the result in libcni's *entry*, with its version; empty if it has none that can be read."""
    try:
        result = results.stated(entry.result, version)
        results.decode(result, version)
    except ValueError:
        return ""
    return result


def _agreed(made: NetworkConfig, delegate: Delegate, path: str) -> NetworkConfig:
    """Return the configuration *made*, or the scratch file's if that has more plugins.

    libcni stores the list as it read it. Plugins that Multus appended from a folder are in the scratch file only; they
    are used if the scratch file repeats the other plugins exactly.
    """
    try:
        planned = _parsed(delegate.config, "the scratch file's configuration", made.name)
    except RecordError:
        return made
    length = len(made.plugins)
    if planned.name != made.name or _types(planned)[:length] != _types(made):
        raise RecordError(
            f"the scratch file has {planned.name} ({'+'.join(_types(planned))}) where {path} has {made.name} "
            f"({'+'.join(_types(made))})"
        )
    if len(planned.plugins) == length:
        return made
    if planned.plugins[:length] != made.plugins:
        raise RecordError(
            f"the scratch file has plugins of {made.name} that {path} has not, and they may have lost their own keys"
        )
    return planned


def _parsed(config: str, what: str, name: str = "") -> NetworkConfig:
    try:
        return conflist.parse(config, default_name=name)
    except ConfigError as error:
        raise RecordError(f"{what} can't be used: {error}") from error


def _types(config: NetworkConfig) -> list[str]:
    return [str(plugin["type"]) for plugin in config.plugins]


def _may_be_stripped(config: str) -> bool:
    """Return whether *config* may have lost plugin keys: it is a list with keys of the specification's types only."""
    try:
        decoded: Any = decode_json(config)
    except ValueError:
        return False  # the caller refuses it
    if not isinstance(decoded, dict) or "type" in decoded:
        return False
    plugins: Any = cast("dict[str, Any]", decoded).get("plugins")
    return isinstance(plugins, list) and all(_is_typed(plugin) for plugin in cast("list[Any]", plugins))


def _is_typed(plugin: object) -> bool:
    if not isinstance(plugin, dict):
        return False
    plugin = cast("dict[str, Any]", plugin)
    ipam = plugin.get("ipam") or {}
    return plugin.keys() <= _TYPED_KEYS and isinstance(ipam, dict) and cast("dict[str, Any]", ipam).keys() <= {"type"}
