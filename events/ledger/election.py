"""Elect the reconciler that may write, and fence off the others.

``ReconcilerElected`` in the ledger is the election. Its append has the condition that there was no other election
meanwhile, so only one of two candidates succeeds. Each append of the elected reconciler has the condition that there
was no election since. The server checks it with every append, so a reconciler that was frozen for an hour can do no
harm. A lease or a lock could not guarantee that. The same event is also in the stream of commands, because a condition
reaches only its own stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

import structlog

from events import subjects
from events.ledger.commands import Commands
from events.ledger.ledger import ConflictError, Expect, Ledger
from events.ledger.new_event import new_event
from events.schema import (
    NO_NODE,
    NO_SANDBOX,
    Event,
    NodeName,
    ReconcilerElected,
    Stored,
)

log = structlog.get_logger(__name__)

ELECTION = subjects.subject(NO_NODE, NO_SANDBOX, ReconcilerElected.__name__)
"""Subject of the elections in the ledger."""
COMMAND_MARK = subjects.command(NO_NODE, ReconcilerElected.__name__)
"""Subject of the elections in the stream of commands."""


class Mandate(NamedTuple):
    """The conditions that the elected reconciler passes with each append."""

    event: Event
    """Its ``ReconcilerElected``; the ``epoch`` is the number of the election."""
    ledger: Expect
    commands: Expect


async def last_election(ledger: Ledger) -> Stored | None:
    """Return the newest election, or None if there never was one. Raises LedgerUnavailableError."""
    return await ledger.last(ELECTION)


async def elect(ledger: Ledger, commands: Commands, replica: str, version: str = "") -> Mandate:
    """Elect *replica* in place of the current reconciler.

    Raises ConflictError if another is elected at the same time, LedgerUnavailableError, LedgerFullError.
    """
    last, mark = await last_election(ledger), await commands.last(COMMAND_MARK)
    event = new_event(
        ReconcilerElected(replica=replica, version=version),
        epoch=1 + max(stored.event.epoch if stored is not None else 0 for stored in (last, mark)),
    )
    in_ledger = await ledger.append(event, Expect(ELECTION, _sequence(last)))
    # Fails if another reconciler was elected since and has already marked the stream: then the mark is a newer one.
    in_commands = await commands.send(event, Expect(COMMAND_MARK, _sequence(mark)))
    log.info("reconciler_elected", replica=replica, epoch=event.epoch, sequence=in_ledger)
    return Mandate(event, Expect(ELECTION, in_ledger), Expect(COMMAND_MARK, in_commands))


def _sequence(stored: Stored | None) -> int:
    return 0 if stored is None else stored.sequence


class FencedLedger:
    """The ``Ledger`` protocol for the elected reconciler. Appending raises ConflictError after another election."""

    def __init__(self, ledger: Ledger, mandate: Mandate) -> None:
        self._ledger = ledger
        self._mandate = mandate
        self._lock = asyncio.Lock()  # a cluster takes one event at a time of those with the same condition

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """See ``Ledger.append``. An event can have only one condition, so *expect* must be None."""
        if expect is not None:
            raise ValueError("a fenced event can't expect anything else")
        async with self._lock:
            return await self._ledger.append(event, self._mandate.ledger)

    def read(self, subject: str = f"{subjects.ROOT}.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.read``."""
        return self._ledger.read(subject, after)

    def follow(
        self, patterns: tuple[str, ...] = (f"{subjects.ROOT}.>",), after: int = 0
    ) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.follow``."""
        return self._ledger.follow(patterns, after)

    async def last(self, subject: str) -> Stored | None:
        """See ``Ledger.last``."""
        return await self._ledger.last(subject)

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        return await self._ledger.last_sequence()

    async def purge(self, subject: str, up_to: int) -> int:
        """Raise ConflictError: a purge can have no condition, and the reconciler purges nothing."""
        raise ConflictError("a reconciler does not purge the ledger")

    async def close(self) -> None:
        """See ``Ledger.close``."""
        await self._ledger.close()


class FencedCommands:
    """The ``Commands`` protocol for the elected reconciler. Sending raises ConflictError after another election."""

    def __init__(self, commands: Commands, mandate: Mandate) -> None:
        self._commands = commands
        self._mandate = mandate
        self._lock = asyncio.Lock()  # as in ``FencedLedger``

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        """See ``Commands.send``. A command can have only one condition, so *expect* must be None."""
        if expect is not None:
            raise ValueError("a fenced command can't expect anything else")
        async with self._lock:
            return await self._commands.send(command, self._mandate.commands)

    async def last(self, subject: str) -> Stored | None:
        """See ``Commands.last``."""
        return await self._commands.last(subject)

    def receive(self, node: NodeName, after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Commands.receive``."""
        return self._commands.receive(node, after)
