"""Hold more sandboxes than memory has room for, during a fold of a whole ledger.

Recently used sandboxes stay in memory. The others spill to an anonymous SQLite file, which disappears with the process.
Events of one sandbox are close together in a ledger, so few are read back.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, MutableMapping
from itertools import islice
from typing import NamedTuple

import msgspec

from events.fold import Sandbox, SandboxKey
from events.schema import ContainerId, IfName
from reconciler.projection.fold.published import PodName
from reconciler.projection.fold.rows import Row

WARM = 4096
"""Maximum number of sandboxes in memory."""
_BATCH = 512

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sandbox).decode


class Kept(NamedTuple):
    """A sandbox and the sequence at which it was added."""

    sandbox: Sandbox
    created: int


class SpillStore(MutableMapping[SandboxKey, Sandbox]):
    """Sandboxes by key, for ``events.fold.State``."""

    def __init__(self, warm: int = WARM) -> None:
        self._warm: dict[SandboxKey, Kept] = {}
        """Least recently used first."""
        self._limit = warm
        self._count = 0
        self.at = 0
        """Sequence of the event that is being applied."""
        self._file = _nameless(
            "CREATE TABLE boxes (id TEXT, name TEXT, created INTEGER, fold BLOB, seen INTEGER DEFAULT 0, "
            "PRIMARY KEY (id, name))"
        )

    def kept(self, key: SandboxKey) -> Kept | None:
        """Return the entry of *key*."""
        found = self._warm.pop(key, None) or self._fetch(key)
        if found is not None:
            self._warm[key] = found
        return found

    def look(self, key: SandboxKey) -> Kept | None:
        """Return the entry of *key*, and mark it as compared."""
        self._put_away(len(self._warm))
        found = self._fetch(key)
        if found is not None:
            self._file.execute("UPDATE boxes SET seen = 1 WHERE id = ? AND name = ?", key)
        return found

    def unlooked(self) -> Iterator[Kept]:
        """Yield the entries that are not marked as compared."""
        return self._all("WHERE seen = 0")

    def all(self) -> Iterator[Kept]:
        """Yield all entries: those of a container together, oldest first."""
        return self._all("")

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def __getitem__(self, key: SandboxKey) -> Sandbox:
        found = self.kept(key)
        if found is None:
            raise KeyError(key)
        return found.sandbox

    def __setitem__(self, key: SandboxKey, sandbox: Sandbox) -> None:
        known = self.kept(key)
        if known is None:
            self._count += 1
        self._warm[key] = Kept(sandbox, self.at if known is None else known.created)
        if len(self._warm) > self._limit:
            self._put_away(min(_BATCH, self._limit))

    def __delitem__(self, key: SandboxKey) -> None:
        if self.kept(key) is None:
            raise KeyError(key)
        del self._warm[key]
        self._file.execute("DELETE FROM boxes WHERE id = ? AND name = ?", key)
        self._count -= 1

    def __iter__(self) -> Iterator[SandboxKey]:
        self._put_away(len(self._warm))
        for container_id, name in self._file.execute("SELECT id, name FROM boxes ORDER BY created"):
            yield SandboxKey(ContainerId(container_id), IfName(name))

    def __len__(self) -> int:
        return self._count

    def _fetch(self, key: SandboxKey) -> Kept | None:
        row = self._file.execute("SELECT fold, created FROM boxes WHERE id = ? AND name = ?", key).fetchone()
        return None if row is None else _kept(*row)

    def _put_away(self, count: int) -> None:
        oldest = list(islice(self._warm.items(), count))
        rows = [(*key, kept.created, zlib.compress(_encode(kept.sandbox), 1)) for key, kept in oldest]
        for key, _ in oldest:
            del self._warm[key]
        self._file.executemany(
            "INSERT INTO boxes (id, name, created, fold) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET fold = excluded.fold",
            rows,
        )

    def _all(self, where: str) -> Iterator[Kept]:
        self._put_away(len(self._warm))
        for row in self._file.execute(f"SELECT fold, created FROM boxes {where} ORDER BY id, created"):  # noqa: S608
            yield _kept(*row)


class StatusRows:
    """The last ``reconciler.projection.fold.rows.status_row`` of each pod."""

    def __init__(self) -> None:
        self._file = _nameless(
            "CREATE TABLE words (namespace TEXT, pod TEXT, word BLOB, seen INTEGER DEFAULT 0, "
            "PRIMARY KEY (namespace, pod))"
        )

    def put(self, row: Row) -> None:
        """Replace the row of a pod by *row*."""
        values = (row["namespace"], row["pod"], msgspec.msgpack.encode(row))
        self._file.execute("INSERT OR REPLACE INTO words (namespace, pod, word) VALUES (?, ?, ?)", values)

    def get(self, pod: PodName) -> Row | None:
        """Return the row of *pod*."""
        row = self._file.execute("SELECT word FROM words WHERE namespace = ? AND pod = ?", pod).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0])

    def look(self, pod: PodName) -> Row | None:
        """Return the row of *pod*, and mark it as compared."""
        self._file.execute("UPDATE words SET seen = 1 WHERE namespace = ? AND pod = ?", pod)
        return self.get(pod)

    def unlooked(self) -> Iterator[PodName]:
        """Yield the pods whose rows are not marked as compared."""
        for row in self._file.execute("SELECT namespace, pod FROM words WHERE seen = 0 ORDER BY namespace, pod"):
            yield PodName(*row)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def _nameless(table: str) -> sqlite3.Connection:
    file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", table, "BEGIN"):
        file.execute(statement)
    return file


def _kept(fold: bytes, created: int) -> Kept:
    return Kept(_decode(zlib.decompress(fold)), created)
