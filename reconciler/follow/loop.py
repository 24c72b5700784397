"""Follow the ledger, keep the projection, and tell whoever acts on it.

First everything that the ledger has is projected, and then each batch as it comes. Where this reconciler is the one
that acts (``reconciler.follow.leadership``), listeners take up what is open, and are told of each batch from there on.
One task reads, one projects; between them is a queue of one batch, and a database that is slow or away stops the
reading, because nothing pulls the next events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Protocol, TypeAlias, TypeVar

import structlog

from events.ledger.ledger import Ledger, LedgerUnavailableError
from events.process.backoff import delays
from events.schema import Stored
from reconciler.follow.batching import BATCH, in_batches
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.projection.sql.engine import DatabaseAwayError, ProjectionError, ReplacedError
from reconciler.projection.store import Store

log = structlog.get_logger(__name__)

PULSE = 5.0
"""Seconds between two looks at what only metrics tell."""

T = TypeVar("T")


class Query(Protocol):
    """Asks the projection, on its own thread, until the database answers."""

    async def __call__(self, work: Callable[[Store], T]) -> T:
        """Return what *work* returns."""
        ...


class Listener(Protocol):
    """Somebody who acts on what the ledger says."""

    async def caught_up(self, query: Query) -> None:
        """The projection has all there was at the start: what is open is to be taken up. Of that no batch tells."""
        ...

    def changed(self, changes: Changes) -> None:
        """A batch that came since then was projected. This must not block: everything waits for it."""
        ...

    async def run(self) -> None:
        """Act, without end."""
        ...


Serve: TypeAlias = Callable[[int, Sequence[Listener]], Awaitable[None]]
"""Has listeners act, without end, from the sequence on at which they were appointed."""


class Leadership(Protocol):
    """Who may act, and when: of several reconcilers one."""

    async def run(self, serve: Serve) -> None:
        """Call *serve* whenever it is this reconciler's turn, and cancel it when it no longer is; without end."""
        ...


class Upkeep(Protocol):
    """Somebody who looks after the projection itself, beside the work."""

    async def run(self, query: Query) -> None:
        """Look after it, without end."""
        ...


class Begin(Protocol):
    """Knows what an empty projection can begin with."""

    async def begin(self, query: Query) -> None:
        """Put it there, if there is anything. Raises LedgerUnavailableError."""
        ...


class Reconciler:
    """One ledger's reconciler, which has *upkeep* done to its projection for as long as it writes to it.

    *shared*: the database is also that of its replicas, so only the active one writes to it. Otherwise it is kept up to
    date at all times, so that a turn can begin at once.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        office: Leadership,
        metrics: Metrics,
        *,
        shared: bool = False,
        beginning: Begin | None = None,
        upkeep: Sequence[Upkeep] = (),
        pulse: float = PULSE,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._office = office
        self._metrics = metrics
        self._shared = shared
        self._beginning = beginning
        self._upkeep = upkeep
        self._pulse = pulse
        self._listeners: Sequence[Listener] = ()
        self._still = asyncio.Lock()
        """Whoever holds it sees nothing change."""
        self._advanced = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="projection")
        self._phases: Counter[str] = Counter()
        self.sequence = 0
        """Up to where the ledger is projected."""

    async def run(self) -> None:
        """Run without end. Raises ProjectionError."""
        try:
            if self._shared:
                await self._in_database(self._store.prepare)
                await self._office.run(self._follow_and_serve)
            else:
                await self._catch_up()
                async with asyncio.TaskGroup() as tasks:
                    self._follow(tasks)
                    tasks.create_task(self._office.run(self._serve), name="office")
        finally:
            self._thread.shutdown()

    def _follow(self, tasks: asyncio.TaskGroup) -> None:
        arrived: asyncio.Queue[Stored] = asyncio.Queue(BATCH)
        tasks.create_task(self._read(arrived), name="read")
        tasks.create_task(self._project(arrived), name="project")
        tasks.create_task(self._measure(), name="measure")
        for each in self._upkeep:
            tasks.create_task(each.run(self._query), name=type(each).__name__)

    async def _follow_and_serve(self, since: int, listeners: Sequence[Listener]) -> None:
        await self._catch_up(election=since)
        async with asyncio.TaskGroup() as tasks:
            self._follow(tasks)
            tasks.create_task(self._serve(since, listeners), name="serve")

    async def _serve(self, since: int, listeners: Sequence[Listener]) -> None:
        while self.sequence < since:  # what was done by whoever acted before must not be done again
            self._advanced.clear()
            await self._advanced.wait()
        async with self._still:
            for listener in listeners:
                await listener.caught_up(self._query)
            self._listeners = listeners
        log.info("reconciler_ready", sequence=self.sequence)
        try:
            async with asyncio.TaskGroup() as tasks:
                for listener in listeners:
                    tasks.create_task(listener.run(), name=type(listener).__name__)
                await asyncio.Event().wait()  # also where nobody listens
        finally:
            self._listeners = ()

    async def _catch_up(self, *, election: int = 0) -> None:
        await self._in_database(self._store.prepare)
        if election:
            await self._in_database(lambda: self._store.take(election))
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
        if self.sequence == 0 and self._beginning is not None:
            await self._beginning.begin(self._query)
            self.sequence = await self._in_database(self._store.position)
        await self._count_sandboxes()
        log.info("projection_resumed", sequence=self.sequence)

    async def _read_all(self) -> None:
        end = await self._ledger.last_sequence()
        _check_ledger(self.sequence, end)
        async with aclosing(self._ledger.read(after=self.sequence)) as events:
            await in_batches(events, self._apply)
        if end > self.sequence:  # the last events were purged, or are none
            await self._in_database(lambda: self._store.skip_to(end))
            self._advance(end)

    async def _read(self, arrived: asyncio.Queue[Stored]) -> None:
        async with aclosing(self._ledger.follow(after=self.sequence)) as events:
            async for stored in events:
                await arrived.put(stored)

    async def _project(self, arrived: asyncio.Queue[Stored]) -> None:
        while True:
            batch = [await arrived.get()]
            while len(batch) < BATCH and not arrived.empty():
                batch.append(arrived.get_nowait())
            async with self._still:
                changes = await self._apply(batch)
                if changes is not None:
                    for listener in self._listeners:
                        listener.changed(changes)

    async def _measure(self) -> None:
        while True:
            done = self.sequence
            try:
                end = await self._ledger.last_sequence()
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=self._pulse)
            else:
                _check_ledger(done, end)
                self._metrics.lag.set(max(0, end - self.sequence))
            await asyncio.sleep(self._pulse)

    async def _count_sandboxes(self) -> None:
        self._phases = await self._in_database(self._store.live_phases)
        self._metrics.set_sandboxes(self._phases)

    async def _apply(self, batch: Sequence[Stored]) -> Changes | None:
        if not batch:
            return None
        told = bool(self._listeners)
        with self._metrics.batch.time():
            changes = await self._in_database(lambda: self._store.apply(batch, told=told))
        self._metrics.count(Counter(stored.event.type for stored in batch))
        self._advance(batch[-1].sequence)
        if changes is None:  # somebody else put it there, and more perhaps
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
        """Return what *work* returns, for which it is repeated until the database does it."""
        for delay in delays():
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except DatabaseAwayError as error:
                log.warning("database_away", error=str(error), retry_in=delay)
            except ReplacedError as error:  # the office will say the same in a moment, and end this turn
                log.warning("projection_fenced", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    def _advance(self, sequence: int) -> None:
        self.sequence = sequence
        self._advanced.set()
        self._metrics.applied_sequence.set(sequence)


def _check_ledger(done: int, end: int) -> None:
    if end < done:
        raise ProjectionError(
            f"the database has {done} events of the ledger, which has but {end}: it is another ledger, or one that "
            "lost its end; move the database away to have it made again"
        )
