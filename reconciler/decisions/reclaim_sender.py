"""Send the reclaim commands that ``reconciler.decisions.leaks`` decides on."""

from __future__ import annotations

import asyncio
import time

import structlog
from msgspec.structs import replace

from events.fold import Leaked
from events.ledger.commands import Commands
from events.ledger.ledger import ConflictError, LedgerError
from events.ledger.new_event import new_event
from events.process.backoff import delays
from events.schema import (
    Event,
    LeakReclaimed,
    LeakReclaimFailed,
    ReclaimRequested,
    RequestId,
)
from reconciler.decisions import leaks
from reconciler.decisions.leaks import LastReclaim, LeakKey, Reclaim
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes

log = structlog.get_logger(__name__)


class ReclaimSender:
    """Sends ``ReclaimRequested``. A ``reconciler.follow.listeners.Listener``."""

    def __init__(self, commands: Commands, metrics: Metrics) -> None:
        self._commands = commands
        self._metrics = metrics
        self._leaks: dict[LeakKey, Leaked] = {}
        self._sent: dict[LeakKey, LastReclaim] = {}
        self._changed = asyncio.Event()
        metrics.leaks_open.set_function(lambda: len(self._leaks))

    async def caught_up(self, query: Query) -> None:
        """Take up the open leaks."""
        self._sent.clear()
        open_leaks = await query(lambda store: store.leaks())
        self._leaks = {LeakKey(node, leaked.observed.leak.id): leaked for node, leaked in open_leaks}
        self._changed.set()

    def changed(self, changes: Changes) -> None:
        """Record new, observed and closed leaks, and refusals."""
        now = time.monotonic()
        for node, leaked in changes.leaks:
            self._leaks[LeakKey(node, leaked.observed.leak.id)] = leaked
        freed = [LeakKey(*key) for key in changes.freed]
        for key in freed:
            self._leaks.pop(key, None)
        self._sent = leaks.without_freed(self._sent, freed)
        answered = False
        for event, _ in changes.events:
            match event.data:
                case LeakReclaimFailed(leak=leak, request=request, failure=failure):
                    key = LeakKey(event.node, leak.id)
                    if (last := self._sent.get(key)) is not None and last.command == request:
                        self._sent[key] = leaks.after_refusal(last, failure.error_class, now)
                    answered = True
                case LeakReclaimed():
                    answered = True
                case _:
                    pass
        if changes.leaks or answered:
            self._changed.set()

    async def run(self) -> None:
        """Send commands until cancelled. Raises ConflictError when another reconciler was elected."""
        while True:
            remaining = leaks.next_retry(self._leaks, self._sent, time.monotonic())
            try:
                async with asyncio.timeout(remaining):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            for reclaim in leaks.reclaims(self._leaks, self._sent, time.monotonic()):
                await self._request(reclaim)

    async def _request(self, reclaim: Reclaim) -> None:
        """Send the command for *reclaim*. Retries while the command still rests on the newest observation."""
        request, key = command(reclaim), LeakKey(reclaim.node, reclaim.leak.id)
        before = self._sent.get(key)
        # Recorded before it is sent: the answer may arrive first.
        self._sent[key] = record = leaks.after_sending(self._sent, reclaim, request.id, time.monotonic())
        sent = await self._send(request, key)
        if self._sent.get(key) is not record:
            return
        if sent:
            self._sent[key] = record._replace(at=time.monotonic())
        elif before is None:
            del self._sent[key]
        else:
            self._sent[key] = before

    async def _send(self, command: Event, key: LeakKey) -> bool:
        """Return True if *command* was sent, False if it became obsolete first."""
        for delay in delays():
            if (leaked := self._leaks.get(key)) is None or leaked.event != command.cause:
                return False
            try:
                await self._commands.send(command)
            except ConflictError:
                raise
            except LedgerError as error:
                log.warning("command_not_sent", type=command.type, node=command.node, error=str(error))
                await asyncio.sleep(delay)
            else:
                self._metrics.reclaims_asked.inc()
                return True
        raise AssertionError("unreachable")


def command(reclaim: Reclaim) -> Event:
    """Return the command for *reclaim*."""
    event = new_event(
        ReclaimRequested(request=RequestId(""), leak=reclaim.leak),
        node=reclaim.node,
        sandbox=reclaim.sandbox,
        cause=reclaim.cause,
    )
    return replace(event, data=ReclaimRequested(request=RequestId(event.id), leak=reclaim.leak))
