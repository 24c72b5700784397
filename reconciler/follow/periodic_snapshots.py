"""Write snapshots of the projection periodically, and start an empty database from the newest one.

The ledger forgets old events, so only the database has the older rows. After a loss of the database, the snapshot has
them.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from pathlib import Path

import structlog

from events.ledger.ledger import Ledger
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.projection.rebuild.snapshot import Origin, fill, inspect, save
from reconciler.projection.sql.engine import DatabaseUnavailableError, ProjectionError

log = structlog.get_logger(__name__)

_FIRST = 60.0
"""Seconds before the first snapshot: a new leader has more urgent work."""
_SUFFIX = ".snapshot"


class SnapshotFolder:
    """The snapshots in *folder*. Only the newest *keep* remain."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def newest_first(self) -> list[Path]:
        """Return the paths of all snapshots."""
        return sorted(self._folder.glob(f"*{_SUFFIX}"), reverse=True)  # their names are sequences of equal length

    def age(self) -> float:
        """Return the seconds since the newest snapshot was written; infinity if there is none."""
        newest = self.newest_first()
        return max(0.0, time.time() - newest[0].stat().st_mtime) if newest else float("inf")

    def write(self, url: str) -> int:
        """Add a snapshot of the projection at *url*; return its sequence.

        Raises ProjectionError, DatabaseUnavailableError, OSError.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._folder / "new"
        sequence = save(url, new)
        os.replace(new, self._folder / f"{sequence:020}{_SUFFIX}")
        for old in self.newest_first()[self._keep :]:
            old.unlink(missing_ok=True)
        return sequence


class SnapshotBootstrap:
    """Fills an empty projection from a snapshot of the ledger with the stream *name*.

    Implements ``reconciler.follow.listeners.Bootstrap``.
    """

    def __init__(self, folder: SnapshotFolder, ledger: Ledger, name: str) -> None:
        self._folder = folder
        self._ledger = ledger
        self._name = name

    async def bootstrap(self, query: Query) -> None:
        """Use the newest snapshot that is complete and of this ledger, if any. Raises LedgerUnavailableError."""
        for path in await asyncio.to_thread(self._folder.newest_first):
            try:
                origin = await asyncio.to_thread(inspect, path)
                await self._refuse_foreign(path, origin)
                await query(lambda store, path=path: store.fill_if_empty(lambda connection: fill(path, connection)))
            except ProjectionError as error:
                log.warning("snapshot_refused", path=str(path), error=str(error))
            else:
                log.info("snapshot_used", path=str(path), sequence=origin.sequence)
                return

    async def _refuse_foreign(self, path: Path, origin: Origin) -> None:
        """Raise ProjectionError for a snapshot of another ledger, as far as this ledger still has the evidence."""
        if origin.ledger != self._name:
            raise ProjectionError(f"the snapshot {path} is of the ledger {origin.ledger}, not of {self._name}")
        end = await self._ledger.last_sequence()
        if end < origin.sequence:
            raise ProjectionError(
                f"the snapshot {path} has {origin.sequence} events of the ledger, but the ledger has only {end}: "
                "it is of another ledger"
            )
        if not origin.node_sequence:
            return
        async with aclosing(self._ledger.read(after=origin.node_sequence - 1)) as events:
            async for sequence, event in events:
                if sequence == origin.node_sequence and (event.node, event.at) != (origin.node, origin.at):
                    raise ProjectionError(f"the snapshot {path} is of another ledger: event {sequence} is not the same")
                return


class PeriodicSnapshots:
    """Writes a snapshot of the projection at *url* every *interval* seconds. A ``Listener``: only the leader does."""

    def __init__(
        self, folder: SnapshotFolder, url: str, interval: float, metrics: Metrics, *, first: float = _FIRST
    ) -> None:
        self._folder = folder
        self._url = url
        self._interval = interval
        self._metrics = metrics
        self._first = first

    async def caught_up(self, query: Query) -> None:
        """Do nothing: a snapshot covers all rows."""

    def changed(self, changes: Changes) -> None:
        """Do nothing: a snapshot covers all rows."""

    async def run(self) -> None:
        """Write snapshots until cancelled, on a separate thread: the projection continues meanwhile."""
        age = await asyncio.to_thread(self._folder.age)
        if age < float("inf"):
            self._metrics.snapshot_at.set(time.time() - age)
        await asyncio.sleep(max(min(self._first, self._interval), self._interval - age))
        while True:
            await self._write()
            await asyncio.sleep(self._interval)

    async def _write(self) -> None:
        started = time.monotonic()
        try:
            sequence = await asyncio.to_thread(self._folder.write, self._url)
        except (ProjectionError, DatabaseUnavailableError, OSError) as error:
            log.warning("snapshot_failed", error=str(error), retry_in=self._interval)
            self._metrics.snapshots_failed.inc()
            return
        self._metrics.snapshot_at.set(time.time())
        log.info("snapshot_written", sequence=sequence, seconds=round(time.monotonic() - started, 1))
