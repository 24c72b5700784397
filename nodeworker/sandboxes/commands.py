"""Take commands from above, and see that each has an outcome.

A command becomes an intent in the node's own ledger before anything is done for it, like a runtime's request, and comes
back through the same consumer. What it rests on may be out of date when its turn comes: whoever fulfils it looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import structlog
from msgspec.structs import replace

from events.fold import SandboxKey
from events.ledger.commands import Commands
from events.ledger.ledger import LedgerError
from events.schema import (
    ComparisonRequested,
    DriftRepaired,
    DriftRepairFailed,
    ErrorClass,
    Event,
    Failure,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeCompared,
    Phase,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
)
from nodeworker.deadline import seconds_since
from nodeworker.errors import RequestFailedError, failed, internal
from nodeworker.journal.effect_log import record
from nodeworker.journal.journal import Journal
from nodeworker.sandboxes.answers import OK, Reply, refusal

log = structlog.get_logger(__name__)

_RETRY = 1.0

Order: TypeAlias = RepairRequested | ReclaimRequested | ComparisonRequested
Outcome: TypeAlias = DriftRepaired | DriftRepairFailed | LeakReclaimed | LeakReclaimFailed | NodeCompared


Handler: TypeAlias = Callable[[Event, Any], Awaitable[Outcome]]
"""Fulfils one type of order, given the intent and its data. Raises RequestFailedError where it can't."""


class Orders:
    """Takes commands in, and has them fulfilled."""

    def __init__(self, journal: Journal, handlers: Mapping[type[Order], Handler]) -> None:
        self._journal = journal
        self._handlers = handlers

    async def run(self, commands: Commands) -> None:
        """Make intents of the *commands* that come, without end."""
        after = self._journal.state.commands.get(self._journal.node, 0)
        async with aclosing(commands.receive(self._journal.node, after)) as received:
            async for command in received:
                await self._take(command)

    async def _take(self, command: Stored) -> None:
        """Append the intent that *command* asks for, for as long as it takes."""
        event, order = command.event, command.event.data
        if not isinstance(order, Order):
            log.warning("command_unknown", type=event.type, sequence=command.sequence)
            return
        intent = replace(order, request=RequestId(event.id), command=command.sequence)
        while True:
            try:
                await self._journal.request(self._journal.event(intent, event.sandbox, event.cause))
            except LedgerError as error:
                log.warning("command_postponed", type=event.type, error=str(error))
                await asyncio.sleep(_RETRY)
            else:
                return

    async def fulfil(self, event: Event, order: Order) -> Reply:
        """Fulfil the intent *event* and record its outcome. What nobody foresaw is an outcome too."""
        try:
            outcome = await self._outcome(event, order)
        except RequestFailedError as error:
            outcome = self._failed(event, order, error.failure)
        except Exception as error:  # rule: one bad order never stops the others
            log.exception("order_broke", type=event.type, sandbox=event.sandbox[:12])
            outcome = self._failed(event, order, internal(_phase(order), error))
        try:
            await record(self._journal, outcome, event)
        except RequestFailedError as error:
            log.warning("order_outcome_not_recorded", type=event.type, error=error.failure.message)
            return refusal(error.failure, "")
        return OK

    async def _outcome(self, event: Event, order: Order) -> Outcome:
        handler = self._handlers.get(type(order))
        if handler is None:
            message = f"the worker of node {event.node} was told not to: see drift and leaks in its configuration"
            raise failed(ErrorClass.NOT_REPAIRABLE, _phase(order), message)
        return await handler(event, order)

    def _failed(self, event: Event, order: Order, failure: Failure) -> Outcome:
        seconds = seconds_since(event.at)
        match order:
            case RepairRequested(request=request, ifname=ifname):
                # Nobody has looked since: what was seen last may be more than was ordered, or something else by now.
                sandbox = self._journal.state.sandboxes.get(SandboxKey(event.sandbox, ifname))
                left = order.drifts if sandbox is None else sandbox.drifts
                return DriftRepairFailed(request=request, ifname=ifname, failure=failure, left=left, seconds=seconds)
            case ReclaimRequested(request=request, leak=leak):
                return LeakReclaimFailed(request=request, leak=leak, failure=failure, seconds=seconds)
            case ComparisonRequested(request=request):
                return NodeCompared(request=request, unseen=(failure.message,), seconds=seconds)


def _phase(order: Order) -> Phase:
    match order:
        case RepairRequested():
            return Phase.REPAIR
        case ReclaimRequested():
            return Phase.RECLAIM
        case ComparisonRequested():
            return Phase.CHECK
