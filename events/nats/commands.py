"""Commands on NATS JetStream: the stream ``COMMANDS``, beside the node ledger on one machine, at the hub in a cluster.

No node has a consumer: servers cap them, and thousands cost more than all events. The server tells of each command
that it stored (``republish``), but not for sure, so that is only a bell: what is received is always read from the
stream, one after the other, whenever it rings, after every new connection, and from time to time for a bell that was
not heard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import structlog

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerUnavailableError
from events.nats.client.connection import RETRY, Connection
from events.nats.client.consumer import Subscription
from events.nats.client.nats_py import Msg
from events.nats.ledger import JetStreamLedger
from events.nats.streams import Stream, StreamConfig, command_stream, no_expiry
from events.schema import (
    Event,
    MalformedEventError,
    NodeName,
    Stored,
    decode,
    encode,
)

log = structlog.get_logger(__name__)

_REMAKE = 5.0
_LOOK = 60.0
"""Seconds until a node looks for commands that it was not told of: a broken route between two servers loses notices."""


class JetStreamCommands:
    """The ``Commands`` protocol over the connection of a ledger, which outlives it."""

    def __init__(self, ledger: JetStreamLedger, stream: str = "COMMANDS", *, look: float = _LOOK) -> None:
        self._stream = Stream(ledger.connection, stream)
        self._look = look

    async def make(self, config: StreamConfig) -> None:
        """Make the stream what *config* says. Raises LedgerError.

        A node remembers how far it has come, so a stream made in the place of one that was lost begins behind all that
        was ever sent: its first sequence is the time in milliseconds.
        """
        await self._stream.ensure(config, first=time.time_ns() // 1_000_000)

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        """See ``Commands.send``."""
        subject = subjects.command(command.node, command.type)
        headers = {"Nats-Msg-Id": command.id, **no_expiry(command.type)}
        try:
            return await self._stream.store(subject, encode(command), what=command.type, headers=headers, expect=expect)
        except ConflictError:
            last = await self.last(subject)  # one server alone checks what is expected before it looks for duplicates
            if last is not None and last.event.id == command.id:
                return last.sequence
            raise

    async def last(self, subject: str) -> Stored | None:
        """See ``Commands.last``."""
        kept = await self._stream.message(last_by_subj=subject)
        return None if kept is None else _command(kept.sequence, kept.payload)

    async def receive(self, node: NodeName, after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Commands.receive``."""
        bell, pattern = _Bell(self._stream.connection, subjects.down_pattern(node)), subjects.command_pattern(node)
        try:
            while True:
                try:
                    await bell.hang()
                    after = await self._resumed(after)
                    while not bell.lost:
                        bell.silence()
                        while (kept := await self._stream.message(seq=after + 1, next_by_subj=pattern)) is not None:
                            after = kept.sequence
                            if (command := _command(kept.sequence, kept.payload)) is not None:
                                yield command
                            if after == bell.newest:
                                break
                        await bell.rung(self._look)
                except LedgerUnavailableError as error:
                    log.info("commands_not_received", error=str(error), after=after, retry_in=RETRY)
                    await asyncio.sleep(RETRY)
        finally:
            await bell.take_down()

    async def _resumed(self, after: int) -> int:
        """Return behind which sequence to go on; what is received twice for it is one to the node's ledger."""
        last = (await self._stream.info()).state.last_seq
        if last >= after:
            return after
        log.warning("commands_started_over", after=after, last=last, reason="the hub has lost commands that were sent")
        return 0


class _Bell:
    """Rings when the server has stored a command."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self.lost = True
        """Whether it hangs on a connection that is no more."""
        self.newest = 0
        """Sequence of the command that it rang for last."""

    async def hang(self) -> None:
        """Listen, on the connection that there is now. Raises LedgerUnavailableError."""
        await self.take_down()
        self.lost = False
        self._subscription = await self._connection.subscribe(self._subject, self._deliver, self._on_lost)

    async def take_down(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def silence(self) -> None:
        """Forget that it has rung."""
        self._wake.clear()

    async def rung(self, patience: float) -> None:
        """Return when it has rung since it was silenced, when it is lost, or after *patience*."""
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            return

    def _deliver(self, msg: Msg, /) -> None:
        sequence = (msg.headers or {}).get("Nats-Sequence")
        if sequence is not None:  # else it is some other word to the node
            self.newest = int(sequence)
            self._wake.set()

    def _on_lost(self) -> None:
        self.lost = True
        self._wake.set()


def _command(sequence: int, payload: bytes) -> Stored | None:
    """Return the command, or None for bytes that are none: one torn command must not hide those behind it."""
    try:
        return Stored(sequence, decode(payload))
    except MalformedEventError as error:
        log.warning("command_malformed", sequence=sequence, error=str(error))
        return None


async def ensure_commands(ledger: JetStreamLedger, replicas: int = 1) -> JetStreamCommands:
    """Return the commands beside *ledger*, their stream made where it is not there, for as long as that takes."""
    commands = JetStreamCommands(ledger)
    while True:
        try:
            await commands.make(command_stream(replicas))
        except LedgerError as error:
            log.warning("commands_not_made", error=str(error), retry_in=_REMAKE)
            await asyncio.sleep(_REMAKE)
        else:
            return commands
