"""Store sandboxes that do not fit into memory, during a fold of a whole ledger.

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

MAX_IN_MEMORY = 4096
"""Maximum number of sandboxes in memory."""
_BATCH = 512

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sandbox).decode


class SpilledSandbox(NamedTuple):
    """A sandbox and the sequence at which it was added."""

    sandbox: Sandbox
    created: int


class SpillStore(MutableMapping[SandboxKey, Sandbox]):
    """Sandboxes by key, for ``events.fold.State``."""

    def __init__(self, in_memory: int = MAX_IN_MEMORY) -> None:
        self._recent: dict[SandboxKey, SpilledSandbox] = {}
        """Least recently used first."""
        self._limit = in_memory
        self._count = 0
        self.sequence = 0
        """Sequence of the event that is being applied."""
        self._file = _anonymous(
            "CREATE TABLE sandboxes (id TEXT, name TEXT, created INTEGER, fold BLOB, compared INTEGER DEFAULT 0, "
            "PRIMARY KEY (id, name))"
        )

    def entry(self, key: SandboxKey) -> SpilledSandbox | None:
        """Return the entry of *key*."""
        found = self._recent.pop(key, None) or self._fetch(key)
        if found is not None:
            self._recent[key] = found
        return found

    def mark_compared(self, key: SandboxKey) -> SpilledSandbox | None:
        """Return the entry of *key*, and mark it as compared."""
        self._spill(len(self._recent))
        found = self._fetch(key)
        if found is not None:
            self._file.execute("UPDATE sandboxes SET compared = 1 WHERE id = ? AND name = ?", key)
        return found

    def unmarked(self) -> Iterator[SpilledSandbox]:
        """Yield the entries that are not marked as compared."""
        return self._all("WHERE compared = 0")

    def all(self) -> Iterator[SpilledSandbox]:
        """Yield all entries: those of a container together, oldest first."""
        return self._all("")

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def __getitem__(self, key: SandboxKey) -> Sandbox:
        found = self.entry(key)
        if found is None:
            raise KeyError(key)
        return found.sandbox

    def __setitem__(self, key: SandboxKey, sandbox: Sandbox) -> None:
        known = self.entry(key)
        if known is None:
            self._count += 1
        self._recent[key] = SpilledSandbox(sandbox, self.sequence if known is None else known.created)
        if len(self._recent) > self._limit:
            self._spill(min(_BATCH, self._limit))

    def __delitem__(self, key: SandboxKey) -> None:
        if self.entry(key) is None:
            raise KeyError(key)
        del self._recent[key]
        self._file.execute("DELETE FROM sandboxes WHERE id = ? AND name = ?", key)
        self._count -= 1

    def __iter__(self) -> Iterator[SandboxKey]:
        self._spill(len(self._recent))
        for container_id, name in self._file.execute("SELECT id, name FROM sandboxes ORDER BY created"):
            yield SandboxKey(ContainerId(container_id), IfName(name))

    def __len__(self) -> int:
        return self._count

    def _fetch(self, key: SandboxKey) -> SpilledSandbox | None:
        row = self._file.execute("SELECT fold, created FROM sandboxes WHERE id = ? AND name = ?", key).fetchone()
        return None if row is None else _decoded(*row)

    def _spill(self, count: int) -> None:
        oldest = list(islice(self._recent.items(), count))
        rows = [(*key, each.created, zlib.compress(_encode(each.sandbox), 1)) for key, each in oldest]
        for key, _ in oldest:
            del self._recent[key]
        self._file.executemany(
            "INSERT INTO sandboxes (id, name, created, fold) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET fold = excluded.fold",
            rows,
        )

    def _all(self, where: str) -> Iterator[SpilledSandbox]:
        self._spill(len(self._recent))
        for row in self._file.execute(f"SELECT fold, created FROM sandboxes {where} ORDER BY id, created"):  # noqa: S608
            yield _decoded(*row)


class StatusRows:
    """The last ``reconciler.projection.fold.rows.status_row`` of each pod."""

    def __init__(self) -> None:
        self._file = _anonymous(
            "CREATE TABLE status_rows (namespace TEXT, pod TEXT, status_row BLOB, compared INTEGER DEFAULT 0, "
            "PRIMARY KEY (namespace, pod))"
        )

    def put(self, row: Row) -> None:
        """Replace the row of a pod by *row*."""
        values = (row["namespace"], row["pod"], msgspec.msgpack.encode(row))
        self._file.execute("INSERT OR REPLACE INTO status_rows (namespace, pod, status_row) VALUES (?, ?, ?)", values)

    def get(self, pod: PodName) -> Row | None:
        """Return the row of *pod*."""
        row = self._file.execute("SELECT status_row FROM status_rows WHERE namespace = ? AND pod = ?", pod).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0])

    def mark_compared(self, pod: PodName) -> Row | None:
        """Return the row of *pod*, and mark it as compared."""
        self._file.execute("UPDATE status_rows SET compared = 1 WHERE namespace = ? AND pod = ?", pod)
        return self.get(pod)

    def unmarked(self) -> Iterator[PodName]:
        """Yield the pods whose rows are not marked as compared."""
        for row in self._file.execute(
            "SELECT namespace, pod FROM status_rows WHERE compared = 0 ORDER BY namespace, pod"
        ):
            yield PodName(*row)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def _anonymous(table: str) -> sqlite3.Connection:
    file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", table, "BEGIN"):
        file.execute(statement)
    return file


def _decoded(fold: bytes, created: int) -> SpilledSandbox:
    return SpilledSandbox(_decode(zlib.decompress(fold)), created)
