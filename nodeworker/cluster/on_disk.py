"""Networks that are files on the node: what a NAD without configuration, or the node's own configuration, refers to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from nodeworker.resolve.grammar import decode_json

SUFFIXES = frozenset({".conf", ".json", ".conflist"})


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
    """Return the configuration in the file *path*, or in the first file by name if *path* is a folder."""
    skipped: list[str] = []
    if path.is_dir():
        first = next(iter(_candidates(path, skipped)), None)
        return Found(_read(first, skipped) if first else None, tuple(skipped))
    return Found(_read(path, skipped), tuple(skipped))


def _candidates(folder: Path, skipped: list[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
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
