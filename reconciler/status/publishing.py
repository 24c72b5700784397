"""Publish the network-status of attached pods, and record each publication in the ledger.

A worker may delay its answer to the runtime until the publication, so the path from a batch of events to the request is
short: the batch carries the pending statuses, and each pod with work has its own task. Only the latest status of a pod
counts. Failed publications are retried with backoff.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from events import subjects
from events.fold import Sandbox
from events.ledger.ledger import Ledger, LedgerError
from events.ledger.new_event import new_event
from events.ledger.notices import PRESENCE_INTERVAL, PUBLISHER_PRESENT, Notices
from events.process.backoff import delays
from events.schema import (
    Data,
    ErrorClass,
    Event,
    StatusPublished,
    StatusPublishFailed,
    encode,
    rfc3339,
    unix_ns,
)
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.store import Store
from reconciler.status.pending import PendingStatus, newly_pending, pending_status
from reconciler.status.sink import PublishError, StatusSink

log = structlog.get_logger(__name__)

CONCURRENCY = 16
"""Maximum number of concurrent requests."""
LOOKUP_BATCH = 200
"""Pods per lookup. A lookup blocks the projection for 10 to 20 ms."""


class _Target:
    """The target for a pod: a status to publish, or None to withdraw it."""

    def __init__(self, status: PendingStatus | None) -> None:
        self.status = status
        self.changed = asyncio.Event()

    async def changes_within(self, seconds: float) -> bool:
        """Return True as soon as the target changes, False if it did not within *seconds*."""
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            return False
        return True


class StatusPublisher:
    """Brings *sink* to the state of the ledger. A ``reconciler.follow.listeners.Listener``."""

    def __init__(self, sink: StatusSink, ledger: Ledger, notices: Notices, metrics: Metrics) -> None:
        self._sink = sink
        self._ledger = ledger
        self._notices = notices
        self._metrics = metrics
        self._targets: dict[PodName, _Target] = {}
        self._idle: asyncio.Queue[PodName] = asyncio.Queue()
        """Pods with a target and no task."""
        self._undecided: dict[PodName, None] = {}
        """Pods whose pending work is not looked up yet, oldest first."""
        self._query: Query | None = None
        self._slots = asyncio.Semaphore(CONCURRENCY)
        metrics.status_pending.set_function(lambda: len(self._targets) + len(self._undecided))

    async def caught_up(self, query: Query) -> None:
        """Find the pods without a settled publication, and withdraw the statuses of pods that are gone."""
        self._query = query
        self._undecided = dict.fromkeys(await query(Store.unsettled_pods))
        withdrawable = await self._sink.withdrawable()
        for pod in withdrawable - await query(lambda store: store.live(withdrawable)):
            self._set_target(pod, None)

    def changed(self, changes: Changes) -> None:
        """Publish new statuses, and withdraw those of pods without attachments."""
        for found in newly_pending(changes.events, changes.folded, changes.published):
            self._set_target(found.pod, found)
        for pod in changes.detached_pods:
            self._set_target(pod, None)

    def busy(self, pod: PodName) -> bool:
        """Return True if a publication or withdrawal for *pod* is pending or in progress."""
        return pod in self._targets or pod in self._undecided

    def restore(self, found: PendingStatus) -> None:
        """Publish *found* again after a foreign change, although the ledger has a record of it."""
        self._set_target(found.pod, replace(found, before=None, since=rfc3339(time.time_ns())))

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announce(), name="announce")
            tasks.create_task(self._look_up_undecided(), name="look-up-undecided")
            while True:
                pod = await self._idle.get()
                tasks.create_task(self._settle(pod), name=f"publish-{pod}")

    async def _announce(self) -> None:
        """Announce to the workers, while the sink is ready, that waiting for a publication is worthwhile."""
        while True:
            if await self._sink.ready():
                await self._notices.publish(PUBLISHER_PRESENT)
            await asyncio.sleep(PRESENCE_INTERVAL)

    async def _look_up_undecided(self) -> None:
        """Look up the pods of ``caught_up``. A later event of such a pod sets its target first."""
        assert self._query is not None
        while self._undecided:
            some = tuple(itertools.islice(self._undecided, LOOKUP_BATCH))
            for pod, found in await self._query(
                lambda store, some=some: store.map_some_live_pods(some, _named_pending)
            ):
                if found is not None and pod in self._undecided:
                    self._set_target(pod, found)
            for pod in some:
                self._undecided.pop(pod, None)

    def _set_target(self, pod: PodName, found: PendingStatus | None) -> None:
        self._undecided.pop(pod, None)
        if (target := self._targets.get(pod)) is None:
            self._targets[pod] = _Target(found)
            self._idle.put_nowait(pod)
        else:
            target.status = found
            target.changed.set()

    async def _settle(self, pod: PodName) -> None:
        """Publish or withdraw for *pod* until its target is reached and unchanged."""
        target = self._targets[pod]
        while True:
            target.changed.clear()
            await self._publish_or_withdraw(pod, target)
            if not target.changed.is_set():
                break
        del self._targets[pod]

    async def _publish_or_withdraw(self, pod: PodName, target: _Target) -> None:
        """Do what *target* says. Retries until that succeeds, fails finally, or the target changes."""
        found, recorded = target.status, False
        for delay in delays():
            try:
                async with self._slots:
                    await (self._withdraw(pod) if found is None else self._put(found))
            except PublishError as error:
                self._metrics.status_failed.inc()
                log.warning("status_failed", pod=str(pod), error=error.failure.message, final=error.final)
                if found is not None and not recorded:
                    recorded = True  # one record for all attempts
                    await self._record(found, _failed(found, error), target, until_taken=error.final)
                pause = max(delay * random.uniform(0.5, 1.5), error.retry_after or 0.0)  # noqa: S311
                if error.final or await target.changes_within(pause):
                    return
            else:
                if found is not None:
                    await self._record(found, _published(found), target, until_taken=True)
                return

    async def _put(self, found: PendingStatus) -> None:
        if found.problem:
            raise PublishError(ErrorClass.PLUGIN_OUTPUT, found.problem, final=True)
        try:
            written = await self._sink.put(found.status, found.before)
        except PublishError:
            raise
        except Exception as error:  # a defect with one pod must not stop the others
            log.exception("publisher_broke", pod=str(found.pod))
            raise PublishError(
                ErrorClass.INTERNAL,
                f"pod {found.pod}: Plumbline has a defect ({type(error).__name__}: {error}) in publishing its "
                f"network-status: please report it with the log",
            ) from error
        self._metrics.status_seconds.observe(_seconds_since(found.since))
        if written:
            self._metrics.status_published.inc()
            log.info("status_published", pod=str(found.pod), sandbox=found.sandbox.container_id[:12])

    async def _withdraw(self, pod: PodName) -> None:
        if await self._sink.withdraw(pod):
            self._metrics.status_published.inc()
            log.info("status_withdrawn", pod=str(pod))

    async def _record(self, found: PendingStatus, data: Data, target: _Target, *, until_taken: bool) -> None:
        """Append *data*. *until_taken*: retry until the ledger accepts it or the target changes."""
        event = event_of(found, data)
        for delay in delays():
            try:
                await self._ledger.append(event)
                await self._notices.publish(subjects.down(found.node, event.type), encode(event))
            except LedgerError as error:
                log.warning("status_not_recorded", pod=str(found.pod), type=event.type, error=str(error))
                if until_taken and not await target.changes_within(delay):
                    continue
            return


def _named_pending(
    pod: PodName, sandboxes: Sequence[Sandbox], published: Published | None
) -> tuple[PodName, PendingStatus | None]:
    return pod, pending_status(sandboxes, published)


def _published(found: PendingStatus) -> StatusPublished:
    return StatusPublished(
        node=found.node,
        ifname=found.sandbox.ifname,
        pod=found.status.pod,
        text=found.status.text,
        seconds=_seconds_since(found.since),
    )


def _failed(found: PendingStatus, error: PublishError) -> StatusPublishFailed:
    return StatusPublishFailed(
        node=found.node, ifname=found.sandbox.ifname, pod=found.status.pod, failure=error.failure, final=error.final
    )


def event_of(found: PendingStatus, data: Data) -> Event:
    """Return the reconciler's event with *data* about the sandbox in *found*."""
    return new_event(data, sandbox=found.sandbox.container_id, cause=found.intent)


def _seconds_since(at: str) -> float:
    return max(0.0, (time.time_ns() - unix_ns(at)) / 1e9)
