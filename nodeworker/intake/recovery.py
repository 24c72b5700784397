"""Finish what is open: intents without outcome, requests on disk, detaches that failed.

At its start the worker learns from the ledger what is open. After that it looks about once a second: intents that lost
the ledger halfway are resumed, spooled requests become intents, and detaches that failed are retried with backoff.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import NamedTuple

import structlog

from events.fold import Sandbox, SandboxKey, SandboxPhase, request_of
from events.ledger.ledger import LedgerError
from events.schema import INTENTS, DetachRequested, Event, EventId, RequestId, WorkerStarted
from nodeworker.deadline import seconds_until
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Journal
from nodeworker.journal.worker_lock import version
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.scanner import node_link_names
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins.orphans import end_orphans
from nodeworker.sandboxes.answers import Answers, reply_of
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.scheduler import Scheduler

log = structlog.get_logger(__name__)

_INTERVAL = 1.0
_ORPHAN_TIMEOUT = 5.0
"""Seconds that plugins of an earlier worker get to finish."""
_FIRST_RETRY = 1.0
_LAST_RETRY = 3600.0


class _Retry(NamedTuple):
    attempts: int
    due: float


async def take_over(journal: Journal, answers: Answers, spool: Spool, footprint: Footprint) -> None:
    """Become the node's worker: read the ledger, end what an earlier worker left running, and open an epoch.

    Raises LedgerError, OSError.
    """
    links = await asyncio.to_thread(node_link_names)
    await _load(journal, answers, lambda event: footprint.learn(event, links))
    killed = await end_orphans(journal.node, _ORPHAN_TIMEOUT)
    pending = len(journal.state.pending)
    await journal.open_epoch(WorkerStarted(version=version(), pid=os.getpid(), pending=pending, spooled=len(spool)))
    log.info("worker_started", node=journal.node, pending=pending, orphans_killed=killed)


async def _load(journal: Journal, answers: Answers, learn: Callable[[Event], None]) -> None:
    """Read the ledger into *journal* and give *learn* its events; keep answers that entry points may come back for."""
    open_requests: dict[EventId, Event] = {}
    async for stored in journal.load():
        event, request = stored.event, request_of(stored.event)
        learn(event)
        if request is None:
            continue
        if event.type in INTENTS:
            if seconds_until(getattr(event.data, "deadline", "")) > 0:
                open_requests[event.id] = event
        elif (intent := open_requests.pop(event.cause, None)) is not None:
            answers.give(request, reply_of(event.data, getattr(intent.data, "config", "")))


class Recovery:
    """Resumes, drains and retries."""

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        dispatcher: Dispatcher,
        spool: Spool,
        answers: Answers,
        metrics: WorkerMetrics,
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._spool = spool
        self._answers = answers
        self._retries: dict[SandboxKey, _Retry] = {}
        metrics.detach_retries.set_function(
            lambda: sum(map(_needs_detach, tuple(journal.state.sandboxes.values())))  # on a thread of its own
        )

    async def catch_up(self) -> None:
        """Finish what an earlier worker and the spool left open. Raises LedgerError, OSError."""
        for request in [*self.resume(), *await self._spool.drain()]:
            await self._answers.wait(request)

    async def run(self) -> None:
        """Finish what is open, about once a second, without end."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                self.resume()
                await self._spool.drain()
                await self._retry_detaches()
            except (LedgerError, OSError) as error:
                log.warning("upkeep_postponed", error=str(error))

    def resume(self) -> list[RequestId]:
        """Dispatch the open intents that are neither queued nor in progress; return their requests."""
        if not self._journal.nothing_postponed:
            return []
        resumed: list[RequestId] = []
        for pending in sorted(self._journal.state.pending.values(), key=lambda each: each.sequence):
            if not self._scheduler.has(pending.event.id):
                pod = getattr(pending.event.data, "pod", "-")
                log.info("intent_resumed", type=pending.event.type, pod=str(pod), sandbox=pending.event.sandbox[:12])
                self._dispatcher.dispatch(pending, resumed=True)
                resumed.append(pending.event.data.request)  # type: ignore[union-attr]  # every intent has one
        return resumed

    async def _retry_detaches(self) -> None:
        now = asyncio.get_running_loop().time()
        failed = {key: box for key, box in self._journal.state.sandboxes.items() if _needs_detach(box)}
        self._retries = {key: retry for key, retry in self._retries.items() if key in self._journal.state.sandboxes}
        for key, sandbox in failed.items():
            retry = self._retries.setdefault(key, _Retry(0, now + _FIRST_RETRY))
            if retry.due > now:
                continue
            pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** (retry.attempts + 1))
            self._retries[key] = _Retry(retry.attempts + 1, now + pause)
            await self._retry_detach(sandbox, retry.attempts + 1)

    async def _retry_detach(self, sandbox: Sandbox, count: int) -> None:
        request = DetachRequested(
            request=RequestId(secrets.token_hex(16)),
            ifname=sandbox.key.ifname,
            netns=sandbox.netns,
            pod=sandbox.pod,
            retry=count,
        )
        await self._journal.append_intent(self._journal.event(request, sandbox.key.container_id, sandbox.intent))


def _needs_detach(sandbox: Sandbox) -> bool:
    """Return whether *sandbox* holds something although the runtime will not send another DEL."""
    return sandbox.phase is SandboxPhase.DETACH_FAILED or (
        sandbox.phase is SandboxPhase.ATTACH_FAILED and sandbox.holds_resources
    )
