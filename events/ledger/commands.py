"""Commands: the reconciler, or a person, asks a node to do something.

A command is an event of a type in ``events.schema.COMMANDS``, addressed to a node. Before it acts, the node's worker
appends the command to its own ledger as an intent. The command's ID is the intent's ``request``, so a command that
comes twice is one request. Two implementations pass one contract suite
(``tests/integration/events/ledger/test_commands_contract.py``): ``MemoryCommands`` here, and ``events.nats.commands``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerUnavailableError
from events.schema import (
    Event,
    EventId,
    NodeName,
    Stored,
    decode,
    encode,
)


class Commands(Protocol):
    """The stream of commands. Sequences rise, with gaps. A node's ledger records the sequences of its commands."""

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        """Return the sequence of *command*, addressed to its ``node``, once it is durable.

        A command that is sent again (same id) returns the sequence that it has. Raises LedgerUnavailableError,
        LedgerFullError, and ConflictError if *expect*, on a subject of commands, does not hold: another reconciler was
        elected since (see ``events.ledger.election``).
        """
        ...

    async def last(self, subject: str) -> Stored | None:
        """Return the newest command on *subject*. Raises LedgerUnavailableError."""
        ...

    def receive(self, node: NodeName, after: int = 0) -> AsyncGenerator[Stored, None]:
        """Yield the commands for *node* after sequence *after* without end, each once and in order, over reconnects.

        If the stream lost commands (its last sequence is below *after*), it yields all that the stream has again.
        """
        ...


class MemoryCommands:
    """The ``Commands`` protocol on a list, for tests."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._sequences: dict[EventId, int] = {}
        self._changed = asyncio.Condition()
        self.available = True

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        """See ``Commands.send``."""
        self._check()
        async with self._changed:
            if (known := self._sequences.get(command.id)) is not None:
                return known
            if expect is not None:
                last = await self.last(expect.subject)
                if (last.sequence if last is not None else 0) != expect.sequence:
                    raise ConflictError(f"the last command on {expect.subject} is not {expect.sequence}")
            self._entries.append(encode(command))
            self._sequences[command.id] = len(self._entries)
            self._changed.notify_all()
            return len(self._entries)

    async def last(self, subject: str) -> Stored | None:
        """See ``Commands.last``."""
        self._check()
        for sequence in range(len(self._entries), 0, -1):
            command = decode(self._entries[sequence - 1])
            if subjects.matches(subjects.command(command.node, command.type), subject):
                return Stored(sequence, command)
        return None

    async def receive(self, node: NodeName, after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Commands.receive``."""
        after = after if after <= len(self._entries) else 0
        while True:
            async with self._changed:
                while len(self._entries) <= after:
                    await self._changed.wait()
                fresh = list(enumerate(self._entries[after:], after + 1))
                after = len(self._entries)
            for sequence, text in fresh:
                command = decode(text)
                if command.node == node:
                    yield Stored(sequence, command)

    def _check(self) -> None:
        if not self.available:
            raise LedgerUnavailableError("the commands are unavailable")
