"""Read networks from files of the node, to which a NAD without configuration or the node's configuration refers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from nodeworker.plugins.spec.names import decode_json, is_network_name

SUFFIXES = frozenset({".conf", ".json", ".conflist"})

_INLINED_ONLY = "loadOnlyInlinedPlugins"


class _Head(msgspec.Struct, frozen=True):
    """The keys that decide whether a list continues in a folder."""

    name: str
    type: str | None = None
    inlined_only: Any = msgspec.field(default=None, name=_INLINED_ONLY)


_head = msgspec.json.Decoder(_Head)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Preserves the bytes of other keys: only a plugin can interpret its numbers."""


class FoundConfig(NamedTuple):
    """The result of a search."""

    config: str | None
    """Unchanged text of the configuration file."""
    skipped: tuple[str, ...] = ()
    """Why files were skipped, and the folder if it can't be listed, for error messages."""


def find_config(conf_dir: Path, name: str) -> FoundConfig:
    """Return the first configuration in *conf_dir*, by file name, whose ``name`` is *name*.

    An unusable file is skipped, so that it affects only its own network.
    """
    skipped: list[str] = []
    for path in _candidates(conf_dir, skipped):
        text = _read(path, skipped)
        if text is None:
            continue
        try:
            config = decode_json(text)
        except ValueError as error:
            skipped.append(f"{path}: {error}")
            continue
        if isinstance(config, dict) and config.get("name") == name:
            return FoundConfig(text)
    return FoundConfig(None, tuple(skipped))


def read_config(path: Path) -> FoundConfig:
    """Return the configuration in the file *path*, or in the first file by name if *path* is a folder.

    A list in a file ``*.conflist`` continues in the folder of its name, as for libcni: each ``*.conf`` there is one
    more plugin of the chain, unless ``loadOnlyInlinedPlugins`` is set.
    """
    skipped: list[str] = []
    if path.is_dir():
        first = next(iter(_candidates(path, skipped)), None)
        return FoundConfig(_read(first, skipped) if first else None, tuple(skipped))
    text = _read(path, skipped)
    if text is None or path.suffix != ".conflist":
        return FoundConfig(text, tuple(skipped))
    return _continued(text, path.parent, str(path))


def chain_folder(delegate: Mapping[str, msgspec.Raw], chain_dir: Path) -> Path | None:
    """Return the folder in which the list *delegate* continues; None: it is no such list, or there is no folder."""
    try:
        head = _head.decode(msgspec.json.encode(delegate))
    except (msgspec.MsgspecError, UnicodeError):
        return None  # the parser of the configuration reports the error
    if head.type or head.inlined_only or not is_network_name(head.name):
        return None
    folder = chain_dir / head.name
    return folder if folder.is_dir() else None


def continued(delegate: Mapping[str, msgspec.Raw], chain_dir: Path) -> FoundConfig:
    """Return the list *delegate*, with the plugins in the folder of its name in *chain_dir*."""
    return _continued(msgspec.json.encode(delegate).decode(), chain_dir, "the list")


def auxiliary_chain(beside: Path, name: str, cni_version: str) -> FoundConfig:
    """Return a list of the plugins in the folder *name*, which is in the folder *beside*, or beside that file.

    None if there are no plugins. The first plugin of the list is ``passthru``, so that all others may be plugins that
    change an existing interface.
    """
    skipped: list[str] = []
    plugins = _plugins((beside if beside.is_dir() else beside.parent) / name, skipped)
    if skipped or not plugins:
        return FoundConfig(None, tuple(skipped))
    chain = {"cniVersion": cni_version, "name": name, "plugins": [{"type": "passthru"}, *plugins]}
    return FoundConfig(msgspec.json.encode(chain).decode())


def _continued(text: str, beside: Path, source: str) -> FoundConfig:
    """Return *text* of *source*; if it is a list, with the plugins in the folder of its name in the folder *beside*."""
    try:
        config = _objects.decode(text)
        head = _head.decode(text)
        inlined = msgspec.json.decode(config.get("plugins", b"[]"), type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError):
        return FoundConfig(text)  # the parser of the configuration reports the error
    if not isinstance(head.inlined_only, bool | None):
        return FoundConfig(None, (f"{source}: {_INLINED_ONLY} is neither true nor false",))
    if head.type or head.inlined_only or not is_network_name(head.name):
        return FoundConfig(text)
    skipped: list[str] = []
    plugins = _plugins(beside / head.name, skipped)
    if skipped:
        return FoundConfig(None, tuple(skipped))
    return FoundConfig(msgspec.json.encode({**config, "plugins": [*inlined, *plugins]}).decode() if plugins else text)


def _plugins(folder: Path, skipped: list[str]) -> list[msgspec.Raw]:
    """Return the plugin configurations in *folder*, by file name, as written; none if the folder does not exist."""
    plugins: list[msgspec.Raw] = []
    for path in _candidates(folder, skipped, frozenset({".conf"})) if folder.exists() else ():
        text = _read(path, skipped)
        if text is None:
            continue
        try:
            config = decode_json(text)
        except ValueError as error:
            skipped.append(f"{path}: {error}")
            continue
        if isinstance(config, dict) and cast("dict[str, Any]", config).get("type"):
            plugins.append(msgspec.Raw(text.encode()))
        else:
            skipped.append(f"{path}: is not a plugin's configuration, which has a type")
    return plugins


def _candidates(folder: Path, skipped: list[str], suffixes: frozenset[str] = SUFFIXES) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    except OSError as error:
        skipped.append(f"{folder}: {error.strerror}")
        return []


def _read(path: Path, skipped: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        skipped.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        skipped.append(f"{path}: is not UTF-8 text")
    return None
