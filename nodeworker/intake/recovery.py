"""What the worker does without being asked: bring every open matter to its end.

Intents that lost the ledger half way are continued, requests on disk become intents, detaches that failed are repeated
with growing pauses, and what is long over is forgotten.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

import structlog

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.forgetting import Forgetting
from events.ledger.ledger import Ledger, LedgerError
from events.schema import DetachRequested, RequestId, unix_ns
from nodeworker.errors import RequestFailedError
from nodeworker.intake.requests import intent_of
from nodeworker.intake.spool import Spool, Spooled
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.dispatcher import Dispatcher

log = structlog.get_logger(__name__)

_INTERVAL = 1.0
_FIRST_RETRY = 1.0
_LAST_RETRY = 3600.0
_RETENTION_INTERVAL = 3600.0


class _Retry(NamedTuple):
    attempts: int
    due: float


class Recovery:
    """The worker's housekeeping."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        answers: Answers,
        spool: Spool,
        metrics: WorkerMetrics,
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._answers = answers
        self._spool = spool
        self._metrics = metrics
        self._retries: dict[SandboxKey, _Retry] = {}
        self._draining = asyncio.Lock()

    async def run(self) -> None:
        """Look after everything about once a second, without end."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                self.resume()
                await self.drain_spool()
                await self._repeat_detaches()
            except (LedgerError, OSError) as error:
                log.warning("upkeep_postponed", error=str(error))

    def resume(self) -> list[RequestId]:
        """Take up the intents that nobody is at work on; return their requests."""
        if not self._journal.settled:
            return []
        taken_up: list[RequestId] = []
        for intent in sorted(self._journal.state.pending.values(), key=lambda pending: pending.sequence):
            if not self._dispatcher.under_way(intent.event.id):
                log.info("intent_resumed", type=intent.event.type, sandbox=intent.event.sandbox[:12])
                self._dispatcher.dispatch(intent, resumed=True)
                taken_up.append(intent.event.data.request)  # type: ignore[union-attr]  # every intent has one
        return taken_up

    async def drain_spool(self) -> list[RequestId]:
        """Make intents of the requests on disk; return the requests. Raises LedgerError, OSError."""
        async with self._draining:  # or who asks for it meanwhile would make each of them twice
            drained: list[RequestId] = []
            for spooled in self._spool.requests():
                drained += await self._drain(spooled)
                self._spool.remove(spooled)
        self._metrics.spooled.set(len(self._spool))
        return drained

    async def _drain(self, spooled: Spooled) -> list[RequestId]:
        """Make an intent of one request, unless it is none; return it."""
        frame = spooled.frame
        try:
            intent, sandbox = intent_of(frame.env.get("CNI_COMMAND", ""), frame, spooled=True)
        except RequestFailedError as error:
            log.warning("spooled_request_refused", file=spooled.path.name, error=error.failure.message)
            return []
        # Again, where that is not confirmed: DEL is idempotent.
        await self._journal.request(self._journal.event(intent, sandbox))
        self._answers.open(frame.request)
        return [frame.request]

    async def _repeat_detaches(self) -> None:
        now = asyncio.get_running_loop().time()
        failed = {key: box for key, box in self._journal.state.sandboxes.items() if _needs_detach(box)}
        self._retries = {key: retry for key, retry in self._retries.items() if key in self._journal.state.sandboxes}
        self._metrics.detach_retries.set(len(failed))
        for key, sandbox in failed.items():
            retry = self._retries.setdefault(key, _Retry(0, now + _FIRST_RETRY))
            if retry.due > now:
                continue
            pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** (retry.attempts + 1))
            self._retries[key] = _Retry(retry.attempts + 1, now + pause)
            await self._repeat_detach(sandbox, retry.attempts + 1)

    async def _repeat_detach(self, sandbox: Sandbox, count: int) -> None:
        intent = DetachRequested(
            request=RequestId(secrets.token_hex(16)),
            ifname=sandbox.key.ifname,
            netns=sandbox.netns,
            pod=sandbox.pod,
            retry=count,
        )
        await self._journal.request(self._journal.event(intent, sandbox.key.container_id, sandbox.intent))


def _needs_detach(sandbox: Sandbox) -> bool:
    """Return whether *sandbox* holds something that nobody is going to ask for again."""
    return sandbox.phase is SandboxPhase.DETACH_FAILED or (
        sandbox.phase is SandboxPhase.ATTACH_FAILED and sandbox.holds_resources
    )


class Retention:
    """Forgets what is long over, and what the hub has of it, where there is one.

    *copied* returns up to which sequence the hub has the ledger.
    """

    def __init__(
        self, ledger: Ledger, journal: Journal, hours: float, copied: Callable[[], float] = lambda: math.inf
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._hours = hours
        self._copied = copied

    async def run(self) -> None:
        """Forget about once an hour, without end."""
        while True:
            await asyncio.sleep(_RETENTION_INTERVAL)
            try:
                await self.forget(time.time_ns() - int(self._hours * 3600e9))
            except LedgerError as error:
                log.warning("retention_postponed", error=str(error))

    async def forget(self, before: int) -> int:
        """Purge what was over before *before*, in ns since 1970; return of how many containers.

        A container ID can come back (podman restarts a container under its ID): while it holds something, nothing of it
        goes. Raises LedgerUnavailableError.
        """
        live = frozenset(key.container_id for key in self._journal.state.sandboxes)
        forgetting, copied = Forgetting(self._journal.node, live), self._copied()
        async with aclosing(self._ledger.read()) as events:
            async for stored in events:
                if unix_ns(stored.event.at) >= before or stored.sequence > copied:
                    break
                forgetting.add(stored)
        purged = [await self._ledger.purge(*purge) for purge in forgetting.purges()]
        log.info("retention_done", sandboxes=forgetting.containers, events=sum(purged))
        return forgetting.containers
