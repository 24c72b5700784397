"""Find the configuration of the node's default network, which other programs write, change and remove at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from nodeworker.host.install import InstallError, NotYetError
from nodeworker.planning.cluster.node_files import SUFFIXES
from nodeworker.plugins.spec import conflist
from nodeworker.plugins.spec.conflist import NetworkConfig
from nodeworker.plugins.spec.names import decode_json
from nodeworker.plugins.spec.versions import ConfigError

OWN = ("00-plumbline.conf", "00-plumbline.conflist")
"""The names of our configuration in the runtime's folder: a single plugin, or a list, which CNI 1.0 and later need."""
MULTUS = ("00-multus.conf", "00-multus.conflist")
MULTUS_TYPES = frozenset({"multus", "multus-shim"})

_META = MULTUS_TYPES | {"plumbline"}


class Primary(NamedTuple):
    """The default network's configuration."""

    path: Path
    config: Mapping[str, Any]
    """The configuration as written."""
    parsed: NetworkConfig
    """The configuration with the plugins that are in separate files now."""


def find(folder: Path, file_name: str = "") -> Primary:
    """Return the default network: the file *file_name* of *folder*, else the first by name.

    Configurations of Plumbline, Multus and the loopback are skipped, whatever their names. A file that can't be read is
    not skipped: pods on another network, until the file is complete, would be worse than no default network.

    Raises NotYetError if there is none, InstallError for one that can't be used.
    """
    if file_name:
        path = folder / file_name
        config = read(path)
        if _META.intersection(_types(config)):
            raise InstallError(f"{path} runs Plumbline or Multus itself: name the default network's own configuration")
        return _primary(path, config)
    for path in files_in(folder):
        if path.name in OWN or path.name.startswith(MULTUS[0]):
            continue
        config = read(path)
        types = set(_types(config))
        if types != {"loopback"} and not types & _META:
            return _primary(path, config)
    raise NotYetError(f"{folder} has no configuration of a default network: install one, or configure another folder")


def files_in(folder: Path) -> list[Path]:
    """Return the configurations in *folder* in the order in which runtimes read them. Raises NotYetError."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    except OSError as error:
        raise NotYetError(f"{folder} can't be listed: {error.strerror}") from error


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in *path*. Raises NotYetError for other content, which may be half-written."""
    try:
        config = decode_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotYetError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise NotYetError(f"{path} is not JSON: {error}; complete it, or remove it") from error
    if not isinstance(config, dict):
        raise NotYetError(f"{path} is not a JSON object; complete it, or remove it")
    return cast("dict[str, Any]", config)


def parts(config: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the JSON objects in the list *key* of *config*, without its other elements."""
    found = config.get(key)
    entries = cast("list[object]", found) if isinstance(found, list) else []
    return [cast("Mapping[str, Any]", entry) for entry in entries if isinstance(entry, dict)]


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types of all plugins in *config*, also nested ones."""
    plugin_type = config.get("type")
    if isinstance(plugin_type, str):
        yield plugin_type
    for part in (*parts(config, "plugins"), *parts(config, "delegates")):
        yield from _types(part)


def _primary(path: Path, config: dict[str, Any]) -> Primary:
    complete = config if config.get("type") else _with_chained(path, config)
    try:
        return Primary(path, config, conflist.parse(complete))
    except ConfigError as error:
        raise InstallError(f"{path} is not a usable configuration: {error}") from error


def _with_chained(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Add the plugins in the folder of the network's name, as runtimes do for a list."""
    name, inlined = config.get("name"), config.get("plugins") or []
    if config.get("loadOnlyInlinedPlugins") or not isinstance(name, str) or not isinstance(inlined, list):
        return config
    # A name with a path in it is refused later, by the parser.
    folder = path.parent / name
    if not name or "/" in name or not folder.is_dir():
        return config
    chained = [read(file) for file in files_in(folder) if file.suffix == ".conf"]
    return {**config, "plugins": [*cast("list[Any]", inlined), *chained]}
