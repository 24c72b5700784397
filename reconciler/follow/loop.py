"""Follow the ledger, update the projection, and notify the listeners.

At first the loop projects everything in the ledger, then each batch as it comes. While this replica is the leader
(``reconciler.follow.leadership``), the listeners take up the open work and get every later batch. One task reads and
one projects, with a queue of one batch between them. A slow or absent database stops the reading: the queue is full.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

import structlog

from events.ledger.ledger import Ledger, LedgerUnavailableError
from events.process.backoff import delays
from events.schema import Stored
from reconciler.follow.listeners import Bootstrap, Leadership, Listener, Maintenance
from reconciler.metrics import Metrics
from reconciler.projection.batching import BATCH_SIZE, in_batches
from reconciler.projection.fold.batch import Changes
from reconciler.projection.sql.engine import DatabaseUnavailableError, ProjectionError, ReplacedError
from reconciler.projection.store import Store

log = structlog.get_logger(__name__)

METRICS_INTERVAL = 5.0
"""Seconds between two updates of the lag metric."""

T = TypeVar("T")


class Reconciler:
    """The reconciler of one ledger. *maintenance* runs for as long as this process writes to the projection.

    *shared*: the replicas use the same database, so only the leader writes to it. Otherwise every replica keeps its own
    database up to date, and a term starts without catch-up.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        leadership: Leadership,
        metrics: Metrics,
        *,
        shared: bool = False,
        bootstrap: Bootstrap | None = None,
        maintenance: Sequence[Maintenance] = (),
        metrics_interval: float = METRICS_INTERVAL,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._leadership = leadership
        self._metrics = metrics
        self._shared = shared
        self._bootstrap = bootstrap
        self._maintenance = maintenance
        self._metrics_interval = metrics_interval
        self._listeners: Sequence[Listener] = ()
        self._projecting = asyncio.Lock()
        """Its owner sees no change of the projection."""
        self._advanced = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="projection")
        self._phases: Counter[str] = Counter()
        self.sequence = 0
        """Sequence of the last projected event."""
        self._end = 0
        """Sequence of the last event in the ledger, when it was last looked up."""
        metrics.applied_sequence.set_function(lambda: self.sequence)
        metrics.lag.set_function(lambda: max(0, self._end - self.sequence))

    async def run(self) -> None:
        """Run until cancelled. Raises ProjectionError."""
        try:
            if self._shared:
                await self._in_database(self._store.prepare)
                await self._leadership.run(self._follow_and_serve)
            else:
                await self._catch_up()
                async with asyncio.TaskGroup() as tasks:
                    self._follow(tasks)
                    tasks.create_task(self._leadership.run(self._serve), name="leadership")
        finally:
            self._thread.shutdown()

    def _follow(self, tasks: asyncio.TaskGroup) -> None:
        arrived: asyncio.Queue[Stored] = asyncio.Queue(BATCH_SIZE)
        tasks.create_task(self._read(arrived), name="read")
        tasks.create_task(self._project(arrived), name="project")
        tasks.create_task(self._measure(), name="measure")
        for each in self._maintenance:
            tasks.create_task(each.run(self._query), name=type(each).__name__)

    async def _follow_and_serve(self, election: int, listeners: Sequence[Listener]) -> None:
        await self._catch_up(election=election)
        async with asyncio.TaskGroup() as tasks:
            self._follow(tasks)
            tasks.create_task(self._serve(election, listeners), name="serve")

    async def _serve(self, election: int, listeners: Sequence[Listener]) -> None:
        while self.sequence < election:  # the work of the previous leader must not be repeated
            self._advanced.clear()
            await self._advanced.wait()
        async with self._projecting:
            for listener in listeners:
                await listener.caught_up(self._query)
            self._listeners = listeners
        log.info("reconciler_ready", sequence=self.sequence)
        try:
            async with asyncio.TaskGroup() as tasks:
                for listener in listeners:
                    tasks.create_task(listener.run(), name=type(listener).__name__)
                await asyncio.Event().wait()  # also without listeners
        finally:
            self._listeners = ()

    async def _catch_up(self, *, election: int = 0) -> None:
        await self._in_database(self._store.prepare)
        if election:
            await self._in_database(lambda: self._store.claim(election))
        for delay in delays():
            try:
                await self._begin()
                await self._read_all()
                break
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)

    async def _begin(self) -> None:
        self.sequence = await self._in_database(self._store.position)
        if self.sequence == 0 and self._bootstrap is not None:
            await self._bootstrap.bootstrap(self._query)
            self.sequence = await self._in_database(self._store.position)
        await self._count_sandboxes()
        log.info("projection_resumed", sequence=self.sequence)

    async def _read_all(self) -> None:
        end = await self._ledger.last_sequence()
        _check_ledger(self.sequence, end)
        async with aclosing(self._ledger.read(after=self.sequence)) as events:
            await in_batches(events, self._apply)
        if end > self.sequence:  # the last messages were purged, or are not events
            await self._in_database(lambda: self._store.skip_to(end))
            self._advance(end)

    async def _read(self, arrived: asyncio.Queue[Stored]) -> None:
        async with aclosing(self._ledger.follow(after=self.sequence)) as events:
            async for stored in events:
                await arrived.put(stored)

    async def _project(self, arrived: asyncio.Queue[Stored]) -> None:
        while True:
            batch = [await arrived.get()]
            while len(batch) < BATCH_SIZE and not arrived.empty():
                batch.append(arrived.get_nowait())
            async with self._projecting:
                changes = await self._apply(batch)
                if changes is not None:
                    for listener in self._listeners:
                        listener.changed(changes)

    async def _measure(self) -> None:
        while True:
            projected = self.sequence
            try:
                end = await self._ledger.last_sequence()
                _check_ledger(projected, end)
                self._end = end if await self._is_behind(end) else self.sequence
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=self._metrics_interval)
            await asyncio.sleep(self._metrics_interval)

    async def _is_behind(self, end: int) -> bool:
        """Return whether an event up to *end* is not projected: not every message is an event."""
        if self.sequence >= end:
            return False
        async with aclosing(self._ledger.read(after=self.sequence)) as events:
            return await anext(events, None) is not None

    async def _count_sandboxes(self) -> None:
        self._phases = await self._in_database(self._store.live_phases)
        self._metrics.set_sandboxes(self._phases)

    async def _apply(self, batch: Sequence[Stored]) -> Changes | None:
        if not batch:
            return None
        for_listeners = bool(self._listeners)
        with self._metrics.batch.time():
            changes = await self._in_database(lambda: self._store.apply(batch, for_listeners=for_listeners))
        self._metrics.count(Counter(stored.event.type for stored in batch))
        self._advance(batch[-1].sequence)
        if changes is None:  # another process wrote these rows, and may have written more
            await self._count_sandboxes()
        else:
            self._phases.update(changes.phases)
            self._metrics.set_sandboxes(self._phases)
            self._metrics.anomalies.inc(len(changes.anomalies))
            for row in changes.anomalies:
                log.warning("event_odd", sequence=row["sequence"], type=row["type"], reason=row["reason"])
        log.debug("batch_projected", events=len(batch), sequence=self.sequence)
        return changes

    async def _query(self, work: Callable[[Store], T]) -> T:
        return await self._in_database(lambda: work(self._store))

    async def _in_database(self, work: Callable[[], T]) -> T:
        """Return the result of *work*. Retries while the database is unavailable or fenced."""
        for delay in delays():
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except DatabaseUnavailableError as error:
                log.warning("database_away", error=str(error), retry_in=delay)
            except ReplacedError as error:  # the leadership sees the new election soon, and ends this term
                log.warning("projection_fenced", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    def _advance(self, sequence: int) -> None:
        self.sequence = sequence
        self._advanced.set()


def _check_ledger(projected: int, end: int) -> None:
    if end < projected:
        raise ProjectionError(
            f"the database has {projected} events of the ledger, but the ledger has only {end}: it is another ledger, "
            "or it lost its end; rename the database, and the reconciler builds a new one"
        )
