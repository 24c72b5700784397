"""Take the commands of the reconciler, and give each an outcome.

A command becomes an intent in the node's own ledger before anything is done for it, like a runtime's request, and comes
back through the same consumer. It may be out of date when its turn comes: its handler checks that again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import structlog
from msgspec.structs import replace

from events.fold import Sandbox, SandboxKey
from events.ledger.commands import Commands
from events.ledger.ledger import LedgerError
from events.process import logs
from events.schema import (
    Command,
    ComparisonRequested,
    DriftRepairFailed,
    ErrorClass,
    Event,
    Failure,
    LeakReclaimFailed,
    NodeCompared,
    Outcome,
    Phase,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
)
from nodeworker.deadline import seconds_since
from nodeworker.errors import RequestFailedError, about, failed, internal, subject_of
from nodeworker.journal.effect_log import confirm
from nodeworker.journal.journal import Journal
from nodeworker.sandboxes.answers import OK, Reply, error_reply

log = structlog.get_logger(__name__)

_RETRY = 1.0

_PHASES: Mapping[type[Command], Phase] = {
    RepairRequested: Phase.REPAIR,
    ReclaimRequested: Phase.RECLAIM,
    ComparisonRequested: Phase.CHECK,
}
"""The phase of each type, for its failures."""

Handler: TypeAlias = Callable[[Event, Any], Awaitable[Outcome]]
"""Fulfils one type of command, given the intent and its data. Raises RequestFailedError if it can't."""


class CommandHandler:
    """Makes intents of commands, and fulfils them with one handler for each type."""

    def __init__(self, journal: Journal, handlers: Mapping[type[Command], Handler]) -> None:
        self._journal = journal
        self._handlers = handlers

    async def run(self, commands: Commands) -> None:
        """Make intents of *commands*, without end."""
        after = self._journal.state.commands.get(self._journal.node, 0)
        async with aclosing(commands.receive(self._journal.node, after)) as received:
            async for command in received:
                await self._take(command)

    async def _take(self, stored: Stored) -> None:
        """Append the intent of the command *stored*, however often the ledger must be asked."""
        event, command = stored.event, stored.event.data
        if not isinstance(command, Command):
            log.warning("command_unknown", type=event.type, sandbox=event.sandbox[:12], sequence=stored.sequence)
            return
        request = replace(command, request=RequestId(event.id), command=stored.sequence)
        while True:
            try:
                await self._journal.append_intent(self._journal.event(request, event.sandbox, event.cause))
            except LedgerError as error:
                log.warning("command_postponed", type=event.type, sandbox=event.sandbox[:12], error=str(error))
                await asyncio.sleep(_RETRY)
            else:
                return

    async def fulfil(self, intent: Event, command: Command) -> Reply:
        """Fulfil *intent* and record its outcome, also after an unexpected error."""
        with logs.about(self._pod_of(intent), intent.sandbox):
            return await self._fulfil(intent, command)

    def _pod_of(self, intent: Event) -> Pod:
        boxes = (box for key, box in self._journal.state.sandboxes.items() if key.container_id == intent.sandbox)
        return next((box.pod for box in boxes), Pod())

    async def _fulfil(self, intent: Event, command: Command) -> Reply:
        try:
            outcome = await self._outcome(intent, command)
        except RequestFailedError as error:
            outcome = self._failed(intent, command, error.failure)
        except Exception as error:  # rule: one bad command never stops the others
            log.exception("order_broke", type=intent.type)
            outcome = self._failed(intent, command, internal(_PHASES[type(command)], error))
        try:
            await confirm(self._journal.record(outcome, intent.sandbox, intent.id))
        except RequestFailedError as error:
            log.warning("order_outcome_not_recorded", type=intent.type, error=error.failure.message)
            return error_reply(error.failure, "")
        return OK

    async def _outcome(self, intent: Event, command: Command) -> Outcome:
        handler = self._handlers.get(type(command))
        if handler is None:
            message = f"the worker of node {intent.node} is configured not to: see drift and leaks in its configuration"
            raise failed(ErrorClass.NOT_REPAIRABLE, _PHASES[type(command)], message)
        return await handler(intent, command)

    def _failed(self, intent: Event, command: Command, failure: Failure) -> Outcome:
        seconds = seconds_since(intent.at)
        match command:
            case RepairRequested(request=request, ifname=ifname):
                # The last observation counts: it may be more than the command asks for, or something else by now.
                sandbox = self._journal.state.sandboxes.get(SandboxKey(intent.sandbox, ifname))
                left = command.drifts if sandbox is None else sandbox.drifts
                failure = about(_subject(intent, sandbox), failure)
                return DriftRepairFailed(request=request, ifname=ifname, failure=failure, left=left, seconds=seconds)
            case ReclaimRequested(request=request, leak=leak):
                sandbox = self._journal.state.sandboxes.get(SandboxKey(intent.sandbox, leak.ifname))
                failure = about(_subject(intent, sandbox), failure)
                return LeakReclaimFailed(request=request, leak=leak, failure=failure, seconds=seconds)
            case ComparisonRequested(request=request):
                return NodeCompared(request=request, unseen=(failure.message,), seconds=seconds)
            case _:
                raise TypeError(f"{intent.type} has no outcome for a failure")


def _subject(intent: Event, sandbox: Sandbox | None) -> str:
    return subject_of(Pod() if sandbox is None else sandbox.pod, intent.sandbox)
