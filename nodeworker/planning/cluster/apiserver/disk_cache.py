"""A copy of the cached objects on disk, for a worker that starts while the API server is down.

The copy is written whole and renamed, but not synced: a sync would delay the ledger's writes to the same disk. After a
power cut the copy may be torn. Its last line has a checksum; a torn copy is ignored, and the API server is asked.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Generic

import msgspec
import structlog

from nodeworker.planning.cluster.apiserver.decode import UNREADABLE, Kind, ObjectT

FORMAT = 1

log = structlog.get_logger(__name__)


class _Head(msgspec.Struct, frozen=True):
    """The first line."""

    format: int
    scope: str
    """The contents: which kind, and of which node."""


class _Tail(msgspec.Struct, frozen=True):
    """The last line."""

    crc32: int
    """Of all other lines."""


class _UnusableError(Exception):
    """The copy can't be used; the text says why."""


class DiskCache(Generic[ObjectT]):
    """The file *path* with the objects of *kind* in *scope*. Only its owner may read it."""

    def __init__(self, path: Path, kind: Kind[ObjectT], scope: str) -> None:
        self._path = path
        self._kind = kind
        self._head = _Head(FORMAT, scope)
        self._write_lock = threading.Lock()
        self._closed = False

    def load(self) -> list[ObjectT]:
        """Return the objects; none if there is no usable copy. An unusable one is logged."""
        try:
            return self._read()
        except FileNotFoundError:
            return []
        except (OSError, _UnusableError, *UNREADABLE) as error:
            log.warning("cluster_copy_unusable", file=str(self._path), error=str(error))
            return []

    def save(self, objects: Collection[ObjectT]) -> None:
        """Replace the copy, unless ``close`` was called. Raises OSError. Thread-safe."""
        draft = self._path.with_name(f".{self._path.name}.tmp")
        with self._write_lock:
            if self._closed:
                return
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(draft, objects)
                draft.replace(self._path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise

    def close(self) -> None:
        """Ignore later calls of ``save``: a thread may still come with objects that are older than the copy."""
        with self._write_lock:
            self._closed = True

    def _write(self, draft: Path, objects: Collection[ObjectT]) -> None:
        """Write line by line: a copy of all networks in memory could be large."""
        encoder = msgspec.json.Encoder()
        crc32 = 0
        # A draft of a killed worker may have the wrong permissions.
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            for part in (self._head, *objects):
                line = encoder.encode(part) + b"\n"
                crc32 = zlib.crc32(line, crc32)
                file.write(line)
            file.write(encoder.encode(_Tail(crc32)) + b"\n")

    def _read(self) -> list[ObjectT]:
        objects: list[ObjectT] = []
        decoder = msgspec.json.Decoder(self._kind.type)
        with self._path.open("rb") as file:
            line = file.readline()
            head = msgspec.json.decode(line, type=_Head)
            if head != self._head:
                raise _UnusableError(f"it has {head.scope} in format {head.format}, not {self._head.scope} in {FORMAT}")
            crc32 = zlib.crc32(line)
            line = file.readline()
            for following in file:
                objects.append(decoder.decode(line))
                crc32 = zlib.crc32(line, crc32)
                line = following
        if msgspec.json.decode(line, type=_Tail).crc32 != crc32:
            raise _UnusableError("its content is damaged")
        return objects
