"""Follow what nodes hold without an owner, and send them the commands that ``reconciler.decisions.leaks`` decides
on."""

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
    """Has leaks reclaimed. A ``reconciler.follow.listeners.Listener``."""

    def __init__(self, commands: Commands, metrics: Metrics) -> None:
        self._commands = commands
        self._metrics = metrics
        self._leaks: dict[LeakKey, Leaked] = {}
        self._asked: dict[LeakKey, LastReclaim] = {}
        self._changed = asyncio.Event()
        metrics.leaks_open.set_function(lambda: len(self._leaks))

    async def caught_up(self, query: Query) -> None:
        """Take up the leaks that are open."""
        self._asked.clear()
        open_leaks = await query(lambda store: store.leaks())
        self._leaks = {LeakKey(node, leaked.observed.leak.id): leaked for node, leaked in open_leaks}
        self._changed.set()

    def changed(self, changes: Changes) -> None:
        """Take note of leaks that are new, were looked at again, or are none any more; and of refusals."""
        now = time.monotonic()
        for node, leaked in changes.leaks:
            self._leaks[LeakKey(node, leaked.observed.leak.id)] = leaked
        freed = [LeakKey(*key) for key in changes.freed]
        for key in freed:
            self._leaks.pop(key, None)
        self._asked = leaks.only_known(self._asked, freed)
        answered = False
        for event, _ in changes.events:
            match event.data:
                case LeakReclaimFailed(leak=leak, request=request, failure=failure):
                    key = LeakKey(event.node, leak.id)
                    if (last := self._asked.get(key)) is not None and last.by == request:
                        self._asked[key] = leaks.refused(last, failure.error_class, now)
                    answered = True
                case LeakReclaimed():
                    answered = True
                case _:
                    pass
        if changes.leaks or answered:
            self._changed.set()

    async def run(self) -> None:
        """Send commands without end. Raises ConflictError when another reconciler was elected."""
        while True:
            left = leaks.next_look(self._leaks, self._asked, time.monotonic())
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            for reclaim in leaks.reclaims(self._leaks, self._asked, time.monotonic()):
                await self._order(reclaim)

    async def _order(self, reclaim: Reclaim) -> None:
        """Send the command for *reclaim*, for as long as that takes and it rests on the newest observation."""
        order, key = command(reclaim), LeakKey(reclaim.node, reclaim.leak.id)
        before = self._asked.get(key)
        # Before it is: its answer may be here first.
        self._asked[key] = asked = leaks.sent(self._asked, reclaim, order.id, time.monotonic())
        sent = await self._send(order, key)
        if self._asked.get(key) is not asked:
            return
        if sent:
            self._asked[key] = asked._replace(at=time.monotonic())
        elif before is None:
            del self._asked[key]
        else:
            self._asked[key] = before

    async def _send(self, command: Event, key: LeakKey) -> bool:
        """Return whether *command* was sent, and not become void before that."""
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
    said = new_event(
        ReclaimRequested(request=RequestId(""), leak=reclaim.leak),
        node=reclaim.node,
        sandbox=reclaim.sandbox,
        cause=reclaim.cause,
    )
    return replace(said, data=ReclaimRequested(request=RequestId(said.id), leak=reclaim.leak))
