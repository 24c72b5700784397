"""Restore a pod's network-status after a foreign edit or removal.

Programs in pods trust the annotation, and everything with write access to the pod can change it. The guard watches all
pods, and keeps two digests per pod: of the observed status and of the published one. If they differ for longer than
``SETTLE_TIME``, it reads pod and ledger again, records the difference (``DriftObserved``), and asks
``reconciler.status.publishing``, the only writer, to publish again. If another controller keeps writing the same key,
restores get rarer, and the pod gets a warning Event.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import time
from collections.abc import Callable
from contextlib import aclosing

import structlog

from events.ledger.ledger import Ledger, LedgerError
from events.schema import (
    Drift,
    DriftKind,
    DriftObserved,
    IfName,
    NetworkName,
    StatusPublished,
)
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.store import Store
from reconciler.status.guard.policy import verdict
from reconciler.status.guard.restore_backoff import CONTESTED, RestoreBackoff
from reconciler.status.kubernetes.pod_events import MESSAGE_LIMIT, WARNING, PodEvent
from reconciler.status.pending import PendingStatus, current_status
from reconciler.status.publishing import StatusPublisher, event_of
from reconciler.status.sink import LISTED, ObservedStatus, PublishError, StatusSink

log = structlog.get_logger(__name__)

SETTLE_TIME = 0.5
"""Seconds for which a difference is normal: the watch may be ahead of the ledger, or behind it."""
_RETRY_AFTER = 5.0
"""Seconds until a retry after an error."""
_TEXT_LIMIT = 4096
_NO_STATUS = 0
"""Digest of a missing status."""


class StatusGuard:
    """Guards the statuses of *publisher*. A ``reconciler.follow.listeners.Listener``.

    *policy* returns the drift policy of a network: restore, only record, or ignore (see
    ``reconciler.status.guard.policy``). *warn* writes a Kubernetes Event.
    """

    def __init__(
        self,
        sink: StatusSink,
        publisher: StatusPublisher,
        ledger: Ledger,
        metrics: Metrics,
        policy: Callable[[str], str],
        *,
        warn: Callable[[PodEvent], None] = lambda event: None,
    ) -> None:
        self._sink = sink
        self._publisher = publisher
        self._ledger = ledger
        self._metrics = metrics
        self._policy = policy
        self._warn = warn
        self._query: Query | None = None
        self._published: dict[str, int] = {}
        """Digest of the published status by the pod's UID."""
        self._observed: dict[str, int] = {}
        """Digest of the observed status by the pod's UID."""
        self._suspects = _DelayQueue()
        self._backoff = RestoreBackoff()
        metrics.status_contested.set_function(lambda: self._backoff.contested(time.monotonic()))
        self._recorded: dict[str, int] = {}
        """Digest of the last recorded difference of pods that are not restored, by UID."""

    async def caught_up(self, query: Query) -> None:
        """Load the published statuses of live pods."""
        self._query = query
        for _, published in await query(Store.live_pods):
            uid, digest = _published_digest(published)
            if uid:
                self._published[uid] = digest

    def changed(self, changes: Changes) -> None:
        """Record new publications, and forget pods without attachments."""
        for event, sandbox in changes.events:
            if isinstance(event.data, StatusPublished) and event.data.pod.uid:
                pod = event.data.pod
                self._published[pod.uid] = _digest(event.data.text)
                name = PodName(pod.namespace, pod.name)
                if pod.uid in self._observed:
                    self._compare(name, pod.uid)
                else:
                    self._suspects.add(name, SETTLE_TIME)
            if sandbox is not None and PodName(sandbox.pod.namespace, sandbox.pod.name) in changes.detached_pods:
                self._forget(sandbox.plan.pod.uid if sandbox.plan is not None else sandbox.pod.uid)

    async def run(self) -> None:
        """Watch and restore until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="watch-statuses")
            tasks.create_task(self._examine(), name="restore-statuses")

    async def _watch(self) -> None:
        async with aclosing(self._sink.watch()) as statuses:
            async for found in statuses:
                if found is LISTED:
                    await self._suspect_missing()
                else:
                    self._observe(found)

    async def _suspect_missing(self) -> None:
        """Suspect pods that the sink did not list: their status, or the pod itself, is gone."""
        assert self._query is not None
        known = await self._query(Store.live_pods)
        for pod, published in known:
            if published is not None and not published.refused and published.uid not in self._observed:
                self._suspects.add(pod, SETTLE_TIME)

    def _observe(self, found: ObservedStatus) -> None:
        if found.deleted:
            self._forget(found.uid)
        elif found.uid:
            self._observed[found.uid] = _digest(found.text)
            self._compare(found.pod, found.uid)
        else:
            # The sink does not know which pod of that name the status belongs to.
            self._suspects.add(found.pod, SETTLE_TIME)

    def _compare(self, pod: PodName, uid: str) -> None:
        published, observed = self._published.get(uid), self._observed.get(uid)
        if published is not None and observed is not None and published != observed:
            self._suspects.add(pod, SETTLE_TIME)

    def _forget(self, uid: str) -> None:
        for digests in (self._published, self._observed, self._recorded):
            digests.pop(uid, None)

    async def _examine(self) -> None:
        """Examine one suspect at a time: a mass edit of thousands of pods waits in the queue."""
        while True:
            pod = await self._suspects.next()
            try:
                pause = await self._check(pod)
            except (PublishError, LedgerError) as error:
                log.warning("status_not_examined", pod=str(pod), error=str(error), retry_in=_RETRY_AFTER)
                pause = _RETRY_AFTER
            if pause is not None:
                self._suspects.add(pod, pause)

    async def _check(self, pod: PodName) -> float | None:
        """Restore the status of *pod* if necessary; return the seconds until the next check, None: no check."""
        if self._publisher.busy(pod):
            return SETTLE_TIME
        found = await self._sink.read(pod)
        assert self._query is not None
        boxes, published = await self._query(lambda store: store.live_pod(pod))
        wanted = current_status(boxes, published)
        if wanted is None or wanted.problem or published is None or published.intent != wanted.intent:
            return None  # no status, or none published yet
        uid, text = wanted.status.pod.uid, None if found is None else found.text
        if found is None or published.refused or found.uid not in ("", uid):
            return None  # the pod is gone
        if uid:
            self._published[uid], self._observed[uid] = _digest(wanted.status.text), _digest(text)
        if (found.uid, text) == (uid, wanted.status.text):
            self._recorded.pop(uid, None)
            return None
        policy = verdict(wanted.status.text, text, self._policy)
        if policy == "off":
            return None
        if policy == "observe":
            if self._recorded.get(uid) != _digest(text):
                await self._record(wanted, text)
                self._recorded[uid] = _digest(text)
            return None
        if (pause := self._backoff.wait(uid, time.monotonic())) > 0:
            return pause
        await self._record(wanted, text)
        times = self._backoff.restored(uid, time.monotonic())
        self._metrics.status_restored.inc()
        log.warning("status_changed", pod=str(pod), found=(text or "")[:200], times=times, action="restore")
        if times == CONTESTED:
            self._warn(_contested(wanted))
        self._publisher.restore(wanted)
        return None

    async def _record(self, wanted: PendingStatus, text: str | None) -> None:
        """Append the difference to the ledger."""
        data = DriftObserved(
            ifname=wanted.sandbox.ifname,
            pod=wanted.status.pod,
            node=wanted.node,
            drifts=(
                Drift(
                    kind=DriftKind.STATUS_CHANGED,
                    network=NetworkName(""),
                    ifname=IfName(""),
                    expected=wanted.status.text[:_TEXT_LIMIT],
                    found=(text or "")[:_TEXT_LIMIT],
                ),
            ),
        )
        await self._ledger.append(event_of(wanted, data))


class _DelayQueue:
    """A queue of pods with delays. A pod is in it at most once."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int, PodName]] = []
        self._due: dict[PodName, float] = {}
        self._count = itertools.count()
        self._added = asyncio.Event()

    def add(self, pod: PodName, seconds: float) -> None:
        at = asyncio.get_running_loop().time() + seconds
        if pod not in self._due:
            self._due[pod] = at
            heapq.heappush(self._order, (at, next(self._count), pod))
            self._added.set()

    async def next(self) -> PodName:
        loop = asyncio.get_running_loop()
        while True:
            left = self._order[0][0] - loop.time() if self._order else None
            if left is not None and left <= 0:
                _, _, pod = heapq.heappop(self._order)
                del self._due[pod]
                return pod
            self._added.clear()
            try:
                async with asyncio.timeout(left):
                    await self._added.wait()
            except TimeoutError:
                continue


def _published_digest(published: Published | None) -> tuple[str, int]:
    return ("", _NO_STATUS) if published is None or published.refused else (published.uid, _digest(published.text))


def _digest(text: str | None) -> int:
    if text is None:
        return _NO_STATUS
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=7).digest(), "big") or 1


def _contested(wanted: PendingStatus) -> PodEvent:
    message = (
        f"another writer keeps changing the network-status of pod {wanted.pod}, so it is restored ever more rarely: "
        "look for another controller that writes the annotation k8s.v1.cni.cncf.io/network-status"
    )
    return PodEvent(wanted.status.pod, wanted.node, WARNING, "NetworkStatusContested", message[:MESSAGE_LIMIT])
