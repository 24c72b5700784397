"""Generate the configuration with which the runtime calls Plumbline, from the default network's or from Multus'.

The default network is embedded instead of named by its path. So an attach does not depend on a file that another
program may be rewriting, and an invalid configuration never reaches the runtime. ``plumbline install --watch``
generates it again within a second of a change. Other programs add plugins to the network, each as a file in the folder
of its name: the worker reads that folder at every attach, and the whole network only if ``clusterNetwork`` is a path.
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
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_defaults, parse_netconf
from nodeworker.plugins.spec.versions import ConfigError, at_least

_TYPE = "plumbline"
_STATUS_SINCE = "1.1.0"
_NEED_CLUSTER_NETWORK = frozenset({"defaultNetworks", "auxiliaryCNIChainName"})
_OF_NETWORK = frozenset({"type", "name", "cniversion"})
"""Keys, in lower case, that come from the network: Multus' files have them, and they have no effect."""


class Generated(NamedTuple):
    """A configuration for the runtime."""

    file_name: str
    content: bytes
    question: bytes
    """The configuration for STATUS, which needs a newer CNI version than most configurations have."""


def from_primary(primary: Primary, section: InstallSection) -> Generated:
    """Return the configuration that wraps *primary*, with the keys of *section*. Raises InstallError."""
    keys = _keys(section)
    default: dict[str, Any] = {}
    if not keys.keys() & {"clusterNetwork", "delegates"}:
        by_path = keys.keys() & _NEED_CLUSTER_NETWORK
        default = {"clusterNetwork": str(primary.path)} if by_path else {"delegates": [primary.config]}
    declared = {
        name for plugin in primary.parsed.plugins for name, on in (plugin.get("capabilities") or {}).items() if on
    }
    offered = {**dict.fromkeys(sorted(declared), True), **keys.pop("capabilities", {})}
    folder = {"chainDir": str(primary.path.parent)}  # the worker reads a chain's folder at every attach
    plugin = {"type": _TYPE, **({"capabilities": offered} if offered else {}), **folder, **keys, **default}
    head = {"cniVersion": primary.parsed.cni_version, "name": section.network_name or primary.parsed.name}
    return _generated(head, [plugin], str(primary.path), as_list=at_least(primary.parsed.cni_version, "1.0.0"))


def from_multus(path: Path, section: InstallSection) -> Generated:
    """Return Multus' configuration in *path* with Plumbline instead of Multus, and the keys of *section*.

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
        raise InstallError(f"{path} does not run Multus, and sorts before {OWN[0]}: rename it or remove it")
    keys = _keys(section)
    for index, plugin in enumerate(plugins):
        if plugin.get("type") in MULTUS_TYPES:
            ours = {**plugin, **keys, "type": _TYPE}
            plugins[index] = {**ours, **_cluster_network(ours, path, section)}
    if section.network_name:
        head["name"] = section.network_name
    return _generated(head, plugins, str(path), as_list=not single or _wants_list(head, path))


def check_keys(section: InstallSection) -> NodeDefaults:
    """Return the keys of *section*. Raises InstallError if no configuration could be generated with them."""
    keys = {"chainDir": section.cni_autoconf_dir or section.cni_conf_dir, **_keys(section)}
    try:
        return parse_defaults(keys)
    except ValueError as error:
        raise InstallError(str(error)) from error


def _keys(section: InstallSection) -> dict[str, Any]:
    keys = {key: value for key, value in section.network.items() if key.casefold() not in _OF_NETWORK}
    if "plugins" in keys:
        raise InstallError("plugins can't be one of the configured keys: write the list as an element of delegates")
    if not isinstance(keys.get("capabilities", {}), dict):
        raise InstallError("the configured key capabilities is not a JSON object")
    return keys


def _wants_list(head: Mapping[str, Any], path: Path) -> bool:
    try:
        return at_least(str(head.get("cniVersion") or ""), "1.0.0")
    except ConfigError as error:
        raise InstallError(f"{path} is not a usable configuration: {error}") from error


def _cluster_network(plugin: Mapping[str, Any], path: Path, section: InstallSection) -> dict[str, str]:
    """Return ``clusterNetwork`` with its path on the host: Multus' daemon writes the path in its own container."""
    named = plugin.get("clusterNetwork")
    if not isinstance(named, str) or "/" not in named or Path(named).exists():
        return {}
    here = Path(section.cni_autoconf_dir or section.cni_conf_dir) / Path(named).name
    if not here.exists():
        raise InstallError(
            f"clusterNetwork of {path} is {named}, and neither it nor {here} exists: correct clusterNetwork"
        )
    return {"clusterNetwork": str(here)}


def _generated(head: Mapping[str, Any], plugins: list[dict[str, Any]], source: str, *, as_list: bool) -> Generated:
    ours = next({**head, **plugin, **head} for plugin in plugins if plugin.get("type") == _TYPE)
    _check(ours, source)
    question = msgspec.json.encode({**ours, "cniVersion": _STATUS_SINCE})
    if not as_list:
        return Generated(OWN[0], _text(ours), question)
    # Without that key runtimes add plugins from the folder of the network's name; the default network has them already.
    inlined = {"loadOnlyInlinedPlugins": True} if len(plugins) == 1 else {}
    return Generated(OWN[1], _text({**head, **inlined, "plugins": plugins}), question)


def _check(config: Mapping[str, Any], source: str) -> None:
    """Parse it as the worker does. Raises InstallError."""
    try:
        parse_netconf(msgspec.json.encode(config).decode(), NodeDefaults())
    except RequestFailedError as error:
        raise InstallError(f"{source} with the configured keys is refused: {error}") from error


def _text(config: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
