"""Write the configuration that makes the runtime call Plumbline: from the default network's, or from Multus'.

The default network is embedded as it is, not named by its path: an attach then depends neither on a file that somebody
rewrites at that moment nor on the worker seeing the host's folder, and what can't be used never gets to the runtime.
``plumbline install --watch`` makes it anew within a second of a change. Only ``clusterNetwork`` of the administrator,
or keys that mean something beside that alone, make it a path, which the worker reads at every attach.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from events.process.settings import InstallSection
from nodeworker.errors import RequestFailedError
from nodeworker.host.install import InstallError
from nodeworker.host.install.primary import MULTUS_TYPES, OWN, Primary, parts, read
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from nodeworker.plugins.spec.versions import ConfigError, at_least

_TYPE = "plumbline"
_STATUS_SINCE = "1.1.0"
_BESIDE_CLUSTER_NETWORK = frozenset({"defaultNetworks", "auxiliaryCNIChainName"})
_NOT_OURS = ("type", "name", "cniVersion", "plugins")


class Generated(NamedTuple):
    """A configuration for the runtime."""

    file_name: str
    content: bytes
    question: bytes
    """What STATUS is asked with; it is younger than most configurations."""


def from_primary(primary: Primary, section: InstallSection) -> Generated:
    """Return the configuration that wraps *primary*, with the keys of *section*. Raises InstallError."""
    given = _given(section)
    default: dict[str, Any] = {}
    if not given.keys() & {"clusterNetwork", "delegates"}:
        by_path = given.keys() & _BESIDE_CLUSTER_NETWORK
        default = {"clusterNetwork": str(primary.path)} if by_path else {"delegates": [primary.config]}
    declared = {
        name for plugin in primary.parsed.plugins for name, on in (plugin.get("capabilities") or {}).items() if on
    }
    offered = {**dict.fromkeys(sorted(declared), True), **given.pop("capabilities", {})}
    plugin = {"type": _TYPE, **({"capabilities": offered} if offered else {}), **given, **default}
    head = {"cniVersion": primary.parsed.cni_version, "name": section.network_name or primary.parsed.name}
    return _generated(head, [plugin], str(primary.path), as_list=at_least(primary.parsed.cni_version, "1.0.0"))


def from_multus(path: Path, section: InstallSection) -> Generated:
    """Return Multus' configuration in *path* with Plumbline in its place, with the keys of *section*.

    Raises InstallError.
    """
    config = read(path)
    single = config.get("type") in MULTUS_TYPES
    if single:
        head, plugins = {key: config.pop(key) for key in ("cniVersion", "name") if key in config}, [config]
    else:
        plugins = [dict(plugin) for plugin in parts(config, "plugins")]
        head = {key: value for key, value in config.items() if key != "plugins"}
    if not any(plugin.get("type") in MULTUS_TYPES for plugin in plugins):
        raise InstallError(f"{path} does not run Multus, and goes before {OWN[0]}: rename it or remove it")
    given = _given(section)
    for index, plugin in enumerate(plugins):
        if plugin.get("type") in MULTUS_TYPES:
            ours = {**plugin, **given, "type": _TYPE}
            plugins[index] = {**ours, **_cluster_network(ours, path, section)}
    if section.network_name:
        head["name"] = section.network_name
    return _generated(head, plugins, str(path), as_list=not single or _wants_list(head, path))


def _given(section: InstallSection) -> dict[str, Any]:
    for key in _NOT_OURS:
        if key in section.network:
            raise InstallError(
                f"{key} can't be among the keys given for the configuration: it follows from the network"
            )
    if not isinstance(section.network.get("capabilities", {}), dict):
        raise InstallError("capabilities among the keys given for the configuration is not a JSON object")
    return dict(section.network)


def _wants_list(head: Mapping[str, Any], path: Path) -> bool:
    try:
        return at_least(str(head.get("cniVersion") or ""), "1.0.0")
    except ConfigError as error:
        raise InstallError(f"{path} is no configuration that can be used: {error}") from error


def _cluster_network(plugin: Mapping[str, Any], path: Path, section: InstallSection) -> dict[str, str]:
    """Return where ``clusterNetwork`` is for us, if it is a path: Multus' daemon writes it as its container has it."""
    named = plugin.get("clusterNetwork")
    if not isinstance(named, str) or "/" not in named or Path(named).exists():
        return {}
    here = Path(section.cni_autoconf_dir or section.cni_conf_dir) / Path(named).name
    if not here.exists():
        raise InstallError(f"clusterNetwork of {path} is {named}, and neither that nor {here} is there: correct it")
    return {"clusterNetwork": str(here)}


def _generated(head: Mapping[str, Any], plugins: list[dict[str, Any]], source: str, *, as_list: bool) -> Generated:
    ours = next({**head, **plugin, **head} for plugin in plugins if plugin.get("type") == _TYPE)
    _check(ours, source)
    question = msgspec.json.encode({**ours, "cniVersion": _STATUS_SINCE})
    if not as_list:
        return Generated(OWN[0], _text(ours), question)
    # Without that key runtimes chain what is in the folder of the network's name; the default network has it already.
    inlined = {"loadOnlyInlinedPlugins": True} if len(plugins) == 1 else {}
    return Generated(OWN[1], _text({**head, **inlined, "plugins": plugins}), question)


def _check(config: Mapping[str, Any], source: str) -> None:
    """Read it as the worker will."""
    try:
        parse_netconf(msgspec.json.encode(config).decode(), NodeDefaults())
    except RequestFailedError as error:
        raise InstallError(f"what {source} and the keys given come to is refused: {error}") from error


def _text(config: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
