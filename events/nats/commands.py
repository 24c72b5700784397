"""Commands on NATS JetStream: the stream ``COMMANDS``, on the node's server on one machine, at the hub in a cluster.

No node has a consumer: servers limit their number, and thousands cost more than all events. The server announces each
command that it stored (``republish``), but it may lose an announcement. So that only wakes the node, which reads the
commands from the stream one by one: on each announcement, after each reconnect, and once a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import structlog

from events import subjects
from events.ledger.anomalies import Decoder, command_subject
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerUnavailableError
from events.nats.client.connection import RETRY, Connection
from events.nats.client.consumer import Subscription
from events.nats.client.nats_py import Msg
from events.nats.event_stream import EventStream
from events.nats.ledger import JetStreamLedger
from events.nats.streams import Stream, StreamConfig, command_stream, no_expiry
from events.schema import Event, NodeName, Stored, encode

log = structlog.get_logger(__name__)

_RETRY_STREAM = 5.0
_POLL = 60.0
"""Seconds between two reads without an announcement: a broken route between two servers loses announcements."""


class JetStreamCommands:
    """The ``Commands`` protocol over the connection of a ledger, which the ledger closes."""

    def __init__(self, ledger: JetStreamLedger, stream: str = "COMMANDS", *, poll: float = _POLL) -> None:
        self._stream = Stream(ledger.connection, stream)
        self._decoder = Decoder(command_subject, ledger.decoder.observe)
        self._events = EventStream(self._stream, self._decoder)
        self._poll = poll

    async def make(self, config: StreamConfig) -> None:
        """Create or update the stream as *config* says. Raises LedgerError.

        A node remembers its position. So a stream that replaces a lost one begins after all earlier sequences: its
        first sequence is the time in milliseconds.
        """
        await self._stream.ensure(config, first=time.time_ns() // 1_000_000)

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        """See ``Commands.send``."""
        subject = subjects.command(command.node, command.type)
        headers = {"Nats-Msg-Id": command.id, **no_expiry(command.type)}
        try:
            return await self._events.store(
                subject, encode(command), label=command.type, headers=headers, expect=expect
            )
        except ConflictError:
            last = await self.last(subject)  # a single server checks the condition before it looks for duplicates
            if last is not None and last.event.id == command.id:
                return last.sequence
            raise

    async def last(self, subject: str) -> Stored | None:
        """See ``Commands.last``."""
        return await self._events.last(subject)

    async def receive(self, node: NodeName, after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Commands.receive``."""
        announcements = _Announcements(self._stream.connection, subjects.down_pattern(node))
        pattern = subjects.command_pattern(node)
        try:
            while True:
                try:
                    await announcements.subscribe()
                    after = await self._resumed(after)
                    while not announcements.lost:
                        announcements.clear()
                        while (message := await self._stream.message(seq=after + 1, next_by_subj=pattern)) is not None:
                            after = message.sequence
                            command = self._decoder.decode(message.sequence, message.subject, message.payload)
                            if command is not None:
                                yield command
                            if after == announcements.newest:
                                break
                        await announcements.wait(self._poll)
                except LedgerUnavailableError as error:
                    log.info("commands_not_received", error=str(error), after=after, retry_in=RETRY)
                    await asyncio.sleep(RETRY)
        finally:
            await announcements.unsubscribe()

    async def _resumed(self, after: int) -> int:
        """Return the sequence after which to continue. The node's ledger ignores a command that comes twice."""
        last = (await self._stream.info()).state.last_seq
        if last >= after:
            return after
        log.warning("commands_started_over", after=after, last=last, reason="the hub has lost commands that were sent")
        return 0


class _Announcements:
    """The server's announcements of stored commands."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self.lost = True
        """Whether the connection of the subscription was lost."""
        self.newest = 0
        """Sequence of the last announced command."""

    async def subscribe(self) -> None:
        """Subscribe on the current connection. Raises LedgerUnavailableError."""
        await self.unsubscribe()
        self.lost = False
        self._subscription = await self._connection.subscribe(self._subject, self._deliver, self._on_lost)

    async def unsubscribe(self) -> None:
        """End the subscription."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def clear(self) -> None:
        """Forget earlier announcements."""
        self._wake.clear()

    async def wait(self, seconds: float) -> None:
        """Return after an announcement since ``clear``, after the connection was lost, or after *seconds*."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _deliver(self, msg: Msg, /) -> None:
        sequence = (msg.headers or {}).get("Nats-Sequence")
        if sequence is not None:  # else it is another message to the node
            self.newest = int(sequence)
            self._wake.set()

    def _on_lost(self) -> None:
        self.lost = True
        self._wake.set()


async def ensure_commands(ledger: JetStreamLedger, replicas: int = 1) -> JetStreamCommands:
    """Return the commands on the server of *ledger*, after creating their stream; retry until that succeeds."""
    commands = JetStreamCommands(ledger)
    while True:
        try:
            await commands.make(command_stream(replicas))
        except LedgerError as error:
            log.warning("commands_not_made", error=str(error), retry_in=_RETRY_STREAM)
            await asyncio.sleep(_RETRY_STREAM)
        else:
            return commands
