"""Follow the ledger, keep the projection, publish what it says.

First everything that the ledger has is projected, then all pods' statuses are compared with what is published, then
each batch is projected and published as it comes. One task reads, one projects; between them is a queue of one batch,
and a database that is slow or away stops the reading, because nothing pulls the next events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

import structlog

from events.ledger import Ledger, LedgerUnavailableError, Stored
from reconciler.metrics import Metrics
from reconciler.projection.engine import DatabaseAwayError, ProjectionError
from reconciler.projection.store import Store
from reconciler.publish import Publisher
from reconciler.status import PodName

log = structlog.get_logger(__name__)

BATCH = 500
"""Events projected in one transaction, at most."""
_PULSE = 5.0
_FIRST_DELAY = 0.2
_LAST_DELAY = 30.0

T = TypeVar("T")


class Reconciler:
    """One ledger's reconciler. *publisher* is None where there is nowhere to publish to."""

    def __init__(self, ledger: Ledger, store: Store, publisher: Publisher | None, metrics: Metrics) -> None:
        self._ledger = ledger
        self._store = store
        self._publisher = publisher
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="projection")
        self._unpublished: set[PodName] = set()
        self.sequence = 0
        """Up to where the ledger is projected."""

    async def run(self) -> None:
        """Run without end. Raises ProjectionError."""
        try:
            await self._catch_up()
            await self._publish_all()
            log.info("reconciler_ready", sequence=self.sequence)
            arrived: asyncio.Queue[Stored] = asyncio.Queue(BATCH)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(arrived), name="read")
                tasks.create_task(self._project(arrived), name="project")
                tasks.create_task(self._measure_lag(), name="measure-lag")
        finally:
            self._thread.shutdown()

    async def _catch_up(self) -> None:
        await self._in_database(self._store.prepare)
        self.sequence = await self._in_database(self._store.position)
        log.info("projection_resumed", sequence=self.sequence)
        for delay in delays():
            try:
                await self._read_all()
                break
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)

    async def _read_all(self) -> None:
        end = await self._ledger.last_sequence()
        _check_ledger(self.sequence, end)
        batch: list[Stored] = []
        async with aclosing(self._ledger.read(after=self.sequence)) as events:
            async for stored in events:
                batch.append(stored)
                if len(batch) == BATCH:
                    await self._apply(batch)
                    batch = []
        await self._apply(batch)
        if end > self.sequence:  # the last events were purged, or are none
            await self._in_database(lambda: self._store.skip_to(end))
            self._advance(end)

    async def _read(self, arrived: asyncio.Queue[Stored]) -> None:
        async with aclosing(self._ledger.follow(after=self.sequence)) as events:
            async for stored in events:
                await arrived.put(stored)

    async def _project(self, arrived: asyncio.Queue[Stored]) -> None:
        while True:
            batch: list[Stored] = []
            try:
                async with asyncio.timeout(_PULSE):
                    batch.append(await arrived.get())
            except TimeoutError:
                pass  # time to try again what could not be published
            while len(batch) < BATCH and not arrived.empty():
                batch.append(arrived.get_nowait())
            await self._apply(batch)
            await self._publish()

    async def _measure_lag(self) -> None:
        while True:
            done = self.sequence
            try:
                end = await self._ledger.last_sequence()
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=_PULSE)
            else:
                _check_ledger(done, end)
                self._metrics.lag.set(max(0, end - self.sequence))
            await asyncio.sleep(_PULSE)

    async def _apply(self, batch: Sequence[Stored]) -> None:
        if not batch:
            return
        with self._metrics.batch.time():
            changes = await self._in_database(lambda: self._store.apply(batch))
        for stored in batch:
            self._metrics.count(stored.event)
        self._advance(batch[-1].sequence)
        if changes is not None:
            self._unpublished |= changes.pods
            self._metrics.anomalies.inc(len(changes.anomalies))
            for row in changes.anomalies:
                log.warning("event_odd", sequence=row["sequence"], type=row["type"], reason=row["reason"])
        self._metrics.set_sandboxes(await self._in_database(self._store.live_phases))
        log.debug("batch_projected", events=len(batch), sequence=self.sequence)

    async def _publish_all(self) -> None:
        """Publish what is live and withdraw what is not, whatever was published before."""
        if self._publisher is not None:
            live, published = self._store.live_pods, self._publisher.published
            self._unpublished = await self._in_database(lambda: live() | published())
        await self._publish()
        self._metrics.set_sandboxes(await self._in_database(self._store.live_phases))

    async def _publish(self) -> None:
        if self._publisher is None:
            self._unpublished.clear()
        elif self._unpublished:
            publish, pods = self._publisher.publish, self._unpublished
            self._unpublished = await self._in_database(lambda: publish(pods))

    async def _in_database(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, for which it is repeated until the database does it."""
        for delay in delays():
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except DatabaseAwayError as error:
                log.warning("database_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    def _advance(self, sequence: int) -> None:
        self.sequence = sequence
        self._metrics.applied_sequence.set(sequence)


def _check_ledger(done: int, end: int) -> None:
    if end < done:
        raise ProjectionError(
            f"the database has {done} events of the ledger, which has but {end}: it is another ledger, or one that "
            "lost its end; move the database away to have it made again"
        )


def delays() -> Iterator[float]:
    """Yield the seconds to wait between attempts, without end."""
    delay = _FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, _LAST_DELAY)
