"""The ledger, and notices beside it, on NATS JetStream: the node's own server, or a cluster's hub."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import msgspec
import structlog

from events import subjects
from events.connection import RETRY, ApiError, Connection
from events.hearing import hearing
from events.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError, Stored
from events.notices import Notice
from events.pull import ConsumerLostError, Puller
from events.schema import Event, EventId, MalformedEventError, decode, encode

log = structlog.get_logger(__name__)

_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_NO_ROOM = frozenset({10023, 10047})
_NOT_STORED = 10077  # for a reason that only its description tells
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_APPEND = 0.5  # a request that a server took to its grave is not answered by the next one
_API = 2.0
_SUBJECT_BYTES = 1024  # a command line longer than 4096 ends the connection, and readers' are longer than the subject


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a stream that Plumbline decides; the server's defaults rule the rest."""

    name: str
    subjects: tuple[str, ...] = (f"{subjects.ROOT}.>",)
    storage: str = "file"
    retention: str = "limits"
    discard: str = "new"
    num_replicas: int = 1
    max_age: int = 0
    """Nanoseconds; 0: no limit."""
    max_bytes: int = -1
    duplicate_window: int = 120_000_000_000
    allow_direct: bool = True


NODE_STREAM = StreamConfig(name="NODE")


class _Ack(msgspec.Struct):
    seq: int = 0
    error: ApiError | None = None


class _StreamState(msgspec.Struct):
    last_seq: int = 0


class _StreamInfo(msgspec.Struct):
    config: dict[str, Any] = {}
    state: _StreamState = msgspec.field(default_factory=_StreamState)
    error: ApiError | None = None


class _StoredMessage(msgspec.Struct):
    seq: int
    data: str = ""


class _MessageAnswer(msgspec.Struct):
    message: _StoredMessage | None = None
    error: ApiError | None = None


class _Purged(msgspec.Struct):
    purged: int = 0
    error: ApiError | None = None


_ack = msgspec.json.Decoder(_Ack)


class JetStreamLedger:
    """The ``Ledger`` and ``Notices`` protocols on one stream and its server. Make one with ``connect``.

    *patience* is how long, in seconds, a call is repeated before it is given up as unavailable; a restart of a node's
    own server takes less than one.
    """

    def __init__(self, connection: Connection, stream: str, observe: Callable[[float], None]) -> None:
        self.stream = stream
        self._connection = connection
        self._observe = observe

    @classmethod
    async def connect(
        cls,
        url: str,
        token: str,
        *,
        config: StreamConfig = NODE_STREAM,
        name: str = "plumbline",
        patience: float = 4.0,
        observe_ack: Callable[[float], None] = lambda seconds: None,
    ) -> JetStreamLedger:
        """Connect, for as long as it takes, and make the stream what *config* says.

        *observe_ack* is told the seconds that each append took. Raises LedgerError when the server refuses the token or
        the stream.
        """
        connection = Connection(url, token, name, patience)
        ledger = cls(connection, config.name, observe_ack)
        try:
            await connection.open()
            await ledger._ensure_stream(config)
        except BaseException:
            await connection.close()
            raise
        return ledger

    @property
    def generation(self) -> int:
        """Counts the connections made."""
        return self._connection.made

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection.up

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """See ``Ledger.append``."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        subject = subjects.subject(event.node, event.sandbox, event.type)
        if len(subject) > _SUBJECT_BYTES:
            raise LedgerError(f"the ledger can't confirm {event.type}: its node and sandbox make a subject too long")
        headers: dict[str, str] = {"Nats-Msg-Id": event.id}
        if expect is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expect.sequence)
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = expect.subject
        answer = await self._connection.request(
            subject, encode(event), what=f"confirm {event.type}", each=_APPEND, headers=headers
        )
        ack = _ack.decode(answer)
        if ack.error is not None:
            return await self._refused(event.id, subject, expect, ack.error)
        self._observe(loop.time() - started)
        return ack.seq

    async def _refused(self, event_id: EventId, subject: str, expect: Expect | None, error: ApiError) -> int:
        if _no_room(error):
            raise LedgerFullError(
                f"the ledger is full ({error.description}): free room on its disk, or raise its limit"
            )
        if error.err_code == _NOT_STORED:
            raise LedgerUnavailableError(f"the ledger could not store an event ({error.description}): look at its disk")
        if error.err_code not in _WRONG_LAST_SEQUENCE or expect is None:
            raise LedgerError(f"the ledger refused an event: {error.description} ({error.err_code})")
        # A repeated append meets its own event: one server alone checks the expectation before it looks for duplicates.
        # Others may have been appended since, so it is looked for wherever it can be.
        async with aclosing(self.read(subject, expect.sequence)) as later:
            async for stored in later:
                if stored.event.id == event_id:
                    return stored.sequence
        raise ConflictError(f"another writer was first: {error.description}")

    async def read(self, subject: str = f"{subjects.ROOT}.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.read``."""
        end = await self.last_sequence()
        while after < end:
            puller = Puller(self._connection, self.stream, (subject,), after, endless=False)
            try:
                async with aclosing(puller.pull()) as batches:
                    async for messages in batches:
                        for sequence, payload in messages:
                            if sequence > end:
                                return
                            after = sequence
                            if (stored := _stored(sequence, payload)) is not None:
                                yield stored
            except ConsumerLostError as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(RETRY)
            else:
                return

    async def follow(
        self, subjects: tuple[str, ...] = (f"{subjects.ROOT}.>",), after: int = 0
    ) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.follow``."""
        while True:
            puller = Puller(self._connection, self.stream, subjects, after, endless=True)
            try:
                async with aclosing(puller.pull()) as batches:
                    async for messages in batches:
                        for sequence, payload in messages:
                            after = sequence
                            if (stored := _stored(sequence, payload)) is not None:
                                yield stored
            except (ConsumerLostError, LedgerUnavailableError) as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(RETRY)

    async def last(self, subject: str) -> Stored | None:
        """See ``Ledger.last``."""
        answer = await self.api(f"STREAM.MSG.GET.{self.stream}", {"last_by_subj": subject})
        found = msgspec.json.decode(answer, type=_MessageAnswer)
        if found.error is not None and found.error.err_code == _NO_MESSAGE:
            return None
        if found.message is None:
            raise LedgerUnavailableError(f"the ledger can't be read: {_description(found.error)}")
        newest = _stored(found.message.seq, base64.b64decode(found.message.data))
        if newest is None:
            async for stored in self.read(subject):
                newest = stored
        return newest

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        info = await self._info()
        if info.error is not None:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        return info.state.last_seq

    async def purge(self, subject: str, up_to: int) -> int:
        """See ``Ledger.purge``."""
        answer = await self.api(f"STREAM.PURGE.{self.stream}", {"filter": subject, "seq": up_to + 1})
        purged = msgspec.json.decode(answer, type=_Purged)
        if purged.error is not None:
            raise LedgerError(f"the ledger refused a purge: {purged.error.description}")
        return purged.purged

    async def tell(self, subject: str, payload: bytes = b"") -> None:
        """See ``Notices.tell``."""
        await self._connection.publish(subject, payload)

    def hear(self, *subjects: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """See ``Notices.hear``."""
        return hearing(self._connection, subjects)

    async def close(self) -> None:
        """See ``Ledger.close``."""
        await self._connection.close()

    async def api(self, call: str, body: object) -> bytes:
        """Return the answer of the JetStream API *call*. Raises LedgerUnavailableError."""
        return await self._connection.request(
            f"$JS.API.{call}", msgspec.json.encode(body), what=f"answer {call}", each=_API
        )

    async def _info(self) -> _StreamInfo:
        return msgspec.json.decode(await self.api(f"STREAM.INFO.{self.stream}", {}), type=_StreamInfo)

    async def _ensure_stream(self, config: StreamConfig) -> None:
        info = await self._info()
        if info.error is not None and info.error.err_code != _NO_STREAM:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        wanted = msgspec.json.decode(msgspec.json.encode(config))
        if info.error is None and all(info.config.get(key) == value for key, value in wanted.items()):
            return
        call = "CREATE" if info.error is not None else "UPDATE"
        answer = await self.api(f"STREAM.{call}.{config.name}", {**info.config, **wanted})
        made = msgspec.json.decode(answer, type=_StreamInfo)
        if made.error is not None:
            raise LedgerError(f"nats-server refused the stream {config.name}: {made.error.description}")


def _no_room(error: ApiError) -> bool:
    said = error.description
    return error.err_code in _NO_ROOM or (error.err_code == _NOT_STORED and ("maximum" in said or "no space" in said))


def _description(error: ApiError | None) -> str:
    return "it gave no reason" if error is None else error.description


def _stored(sequence: int, payload: bytes) -> Stored | None:
    """Return the event, or None for bytes that are none: one torn event must not hide those behind it."""
    try:
        return Stored(sequence, decode(payload))
    except MalformedEventError as error:
        log.warning("ledger_event_malformed", sequence=sequence, error=str(error))
        return None
