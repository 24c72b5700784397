"""The ledger and the notices on NATS JetStream: on the node's own server, or on a cluster's hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

import structlog

from events import subjects
from events.ledger.anomalies import Decoder, Observe, event_subject, log_anomaly
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerUnavailableError
from events.ledger.notices import Notice
from events.nats.client.connection import RETRY, Connection
from events.nats.client.consumer import Consumer, ConsumerLostError, Message
from events.nats.client.subscriptions import subscribed
from events.nats.event_stream import EventStream
from events.nats.streams import NODE_STREAM, Stream, StreamConfig, no_expiry
from events.process.settings import LedgerAddress
from events.schema import Event, Stored, encode

log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT = 5.0
_MAX_SUBJECT_BYTES = 1024
"""The server ends a connection after a line of 4096 bytes, and a consumer's request has a longer line."""


class JetStreamLedger:
    """The ``Ledger`` and ``Notices`` protocols on one stream and its server. ``connect`` makes one.

    A call is retried for *patience* seconds before it raises LedgerUnavailableError. A restart of a node's own server
    takes less than one second.
    """

    def __init__(
        self, connection: Connection, config: StreamConfig, observe: Callable[[float], None], decoder: Decoder
    ) -> None:
        self.stream = config.name
        self.connection = connection
        self.decoder = decoder
        self._stream = Stream(connection, config.name)
        self._events = EventStream(self._stream, decoder)
        self._has_max_age = config.max_age > 0
        self._observe = observe

    @classmethod
    async def connect(
        cls,
        address: LedgerAddress,
        *,
        config: StreamConfig = NODE_STREAM,
        ensure_stream: bool = True,
        name: str = "plumbline",
        patience: float = 4.0,
        observe_ack: Callable[[float], None] = lambda seconds: None,
        observe_anomaly: Observe = log_anomaly,
    ) -> JetStreamLedger:
        """Connect, without a time limit; with *ensure_stream* create or update the stream as *config* says.

        *observe_ack* gets the seconds that each append took, *observe_anomaly* each message that is no event. Raises
        LedgerError if the server refuses the credentials or the stream.
        """
        connection = Connection(address, name, patience)
        ledger = cls(connection, config, observe_ack, Decoder(event_subject, observe_anomaly))
        try:
            await connection.open()
            if ensure_stream:
                await ledger._stream.ensure(config)
        except BaseException:
            await connection.close()
            raise
        return ledger

    @property
    def generation(self) -> int:
        """Number of connections made so far."""
        return self.connection.generation

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self.connection.connected

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """See ``Ledger.append``."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        subject = subjects.subject(event.node, event.sandbox, event.type)
        if len(subject) > _MAX_SUBJECT_BYTES:
            raise LedgerError(
                f"the ledger can't confirm {event.type}: the subject exceeds {_MAX_SUBJECT_BYTES} bytes: the name of "
                "the node or sandbox is too long"
            )
        headers = {"Nats-Msg-Id": event.id, **(no_expiry(event.type) if self._has_max_age else {})}
        try:
            sequence = await self._events.store(
                subject, encode(event), label=event.type, headers=headers, expect=expect
            )
        except ConflictError:
            if expect is None:
                raise
            # A retried append conflicts with its own event: a single server checks the condition before it looks for
            # duplicates. Others may have been appended since, so search all later events.
            async with aclosing(self.read(subject, expect.sequence)) as later:
                async for stored in later:
                    if stored.event.id == event.id:
                        return stored.sequence
            raise
        self._observe(loop.time() - started)
        return sequence

    async def read(self, subject: str = f"{subjects.ROOT}.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.read``."""
        async with aclosing(self.read_messages(subject, after)) as batches:
            async for messages in batches:
                for message in messages:
                    if (stored := self.decoder.decode(*message)) is not None:
                        yield stored

    async def read_messages(
        self, subject: str = f"{subjects.ROOT}.>", after: int = 0
    ) -> AsyncGenerator[list[Message], None]:
        """Yield the messages of the same events, undecoded, in batches."""
        end = await self.last_sequence()
        while after < end:
            consumer = Consumer(self.connection, self.stream, (subject,), after, endless=False)
            try:
                async with aclosing(consumer.pull()) as batches:
                    async for messages in batches:
                        if messages and messages[-1].sequence > end:
                            yield [message for message in messages if message.sequence <= end]
                            return
                        if messages:
                            after = messages[-1].sequence
                            yield messages
            except ConsumerLostError as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(RETRY)
            else:
                return

    async def follow(
        self, patterns: tuple[str, ...] = (f"{subjects.ROOT}.>",), after: int = 0
    ) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.follow``."""
        while True:
            consumer = Consumer(self.connection, self.stream, patterns, after, endless=True)
            try:
                async with aclosing(consumer.pull()) as batches:
                    async for messages in batches:
                        for message in messages:
                            after = message.sequence
                            if (stored := self.decoder.decode(*message)) is not None:
                                yield stored
            except (ConsumerLostError, LedgerUnavailableError) as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(RETRY)

    async def last(self, subject: str) -> Stored | None:
        """See ``Ledger.last``."""
        return await self._events.last(subject)

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        return (await self._stream.info()).state.last_seq

    async def purge(self, subject: str, up_to: int) -> int:
        """See ``Ledger.purge``."""
        return await self._stream.purge(subject, up_to)

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """See ``Notices.publish``."""
        await self.connection.publish(subject, payload)

    def subscribe(self, *subjects: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """See ``Notices.subscribe``."""
        return subscribed(self.connection, subjects)

    async def close(self) -> None:
        """See ``Ledger.close``."""
        await self.connection.close()

    async def api(self, call: str, body: object) -> bytes:
        """Return the answer of the JetStream API *call*. Raises LedgerUnavailableError."""
        return await self._stream.api(call, body)


async def connect_or_fail(
    address: LedgerAddress, config: StreamConfig, name: str, observe_anomaly: Observe = log_anomaly
) -> JetStreamLedger:
    """Return the ledger at *address*, whose stream must exist, within 5 seconds.

    Raises LedgerError; LedgerUnavailableError if the server does not answer.
    """
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await JetStreamLedger.connect(
                address, config=config, ensure_stream=False, name=name, observe_anomaly=observe_anomaly
            )
    except TimeoutError:
        raise LedgerUnavailableError(
            f"no ledger answers at {address.url}: is `plumbline up`, or its nats-server, running?"
        ) from None
