"""Networks that are files on the node: what a NAD without configuration, or the node's own configuration, refers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from nodeworker.plugins.spec.names import decode_json, is_network_name

SUFFIXES = frozenset({".conf", ".json", ".conflist"})

_INLINED_ONLY = "loadOnlyInlinedPlugins"


class _Head(msgspec.Struct, frozen=True):
    """What tells whether a list goes on."""

    name: str
    type: str | None = None
    inlined_only: Any = msgspec.field(default=None, name=_INLINED_ONLY)


_head = msgspec.json.Decoder(_Head)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Keeps the bytes of what is not looked at: only a plugin knows what its numbers mean."""


class Found(NamedTuple):
    """The outcome of a look-up."""

    config: str | None
    """Text of the configuration, as it is in the file."""
    skipped: tuple[str, ...] = ()
    """Why candidates were passed over, and the folder if it can't be listed: where a person looks first."""


def find_config(conf_dir: Path, name: str) -> Found:
    """Return the first configuration in *conf_dir*, by file name, whose ``name`` is *name*.

    A file that can't be used is passed over, so that it is nobody's problem but its own network's.
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
            return Found(text)
    return Found(None, tuple(skipped))


def read_config(path: Path) -> Found:
    """Return the configuration in the file *path*, or in the first file by name if *path* is a folder.

    A list that is the file ``*.conflist`` goes on in the folder of its name beside it, as libcni has it for the
    runtime's own: each ``*.conf`` there is one more plugin of the chain, unless ``loadOnlyInlinedPlugins`` is set.
    """
    skipped: list[str] = []
    if path.is_dir():
        first = next(iter(_candidates(path, skipped)), None)
        return Found(_read(first, skipped) if first else None, tuple(skipped))
    text = _read(path, skipped)
    if text is None or path.suffix != ".conflist":
        return Found(text, tuple(skipped))
    return _continued(text, path)


def auxiliary_chain(beside: Path, name: str, cni_version: str) -> Found:
    """Return the list of the plugins in the folder *name* beside the file, or in the folder, *beside*.

    Nothing if there is none. The first plugin of the list is ``passthru``, so that the others may be of the kind that
    works on what is there already.
    """
    skipped: list[str] = []
    plugins = _plugins((beside if beside.is_dir() else beside.parent) / name, skipped)
    if skipped or not plugins:
        return Found(None, tuple(skipped))
    chain = {"cniVersion": cni_version, "name": name, "plugins": [{"type": "passthru"}, *plugins]}
    return Found(msgspec.json.encode(chain).decode())


def _continued(text: str, path: Path) -> Found:
    """Return *text* of the file *path* with the plugins in the folder of its name, if it is a list."""
    try:
        config = _objects.decode(text)
        head = _head.decode(text)
        inlined = msgspec.json.decode(config.get("plugins", b"[]"), type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError):
        return Found(text)  # whoever reads it as a configuration says what is wrong
    if not isinstance(head.inlined_only, bool | None):
        return Found(None, (f"{path}: {_INLINED_ONLY} is neither true nor false",))
    if head.type or head.inlined_only or not is_network_name(head.name):
        return Found(text)
    skipped: list[str] = []
    plugins = _plugins(path.parent / head.name, skipped)
    if skipped:
        return Found(None, tuple(skipped))
    return Found(msgspec.json.encode({**config, "plugins": [*inlined, *plugins]}).decode() if plugins else text)


def _plugins(folder: Path, skipped: list[str]) -> list[msgspec.Raw]:
    """Return the plugin configurations in *folder*, by file name, as written; none if there is no such folder."""
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
            skipped.append(f"{path}: is no configuration of a plugin, which has a type")
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
