"""The ledger on NATS JetStream: the node's own server, or a cluster's hub."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from events import subjects
from events.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError, Stored
from events.pull import ConsumerLostError, MessageCallback, Puller, Subscription, retry_delay
from events.schema import Event, EventId, MalformedEventError, decode, encode

log = structlog.get_logger(__name__)

_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_NO_ROOM = frozenset({10023, 10047, 10077})
_NO_STREAM = 10059
_ATTEMPT = 0.5  # a request that a server took to its grave is not answered by the next one
_ANSWER = 5.0


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


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _ApiError | None = None


class _StreamState(msgspec.Struct):
    last_seq: int = 0


class _StreamInfo(msgspec.Struct):
    config: dict[str, Any] = {}
    state: _StreamState = msgspec.field(default_factory=_StreamState)
    error: _ApiError | None = None


class _StoredMessage(msgspec.Struct):
    seq: int
    data: str = ""


class _MessageAnswer(msgspec.Struct):
    message: _StoredMessage | None = None
    error: _ApiError | None = None


class _Purged(msgspec.Struct):
    purged: int = 0
    error: _ApiError | None = None


_ack = msgspec.json.Decoder(_Ack)


class JetStreamLedger:
    """The ``Ledger`` protocol on one stream. Make one with ``connect``.

    *patience* is how long, in seconds, an append is repeated before it is given up as unavailable; a restart of a
    node's own server takes less than one.
    """

    def __init__(self, client: Client, stream: str, patience: float, observe: Callable[[float], None]) -> None:
        self.stream = stream
        self._client = client
        self._patience = patience
        self._observe = observe
        self._generation = 1
        self._reconnected = asyncio.Event()

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

        *observe_ack* is told the seconds that each append took. Raises LedgerError when the server refuses the stream.
        """
        client = Client()
        ledger = cls(client, config.name, patience, observe_ack)
        await client.connect(
            url,
            token=token or None,
            name=name,
            error_cb=ledger._on_error,
            disconnected_cb=ledger._on_disconnect,
            reconnected_cb=ledger._on_reconnect,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,  # type: ignore[arg-type]  # annotated int, used as seconds
            connect_timeout=2,
            ping_interval=10,
            max_outstanding_pings=2,
            pending_size=-1,  # fail at once while disconnected, instead of sending ghosts later
        )
        await ledger._ensure_stream(config)
        return ledger

    @property
    def generation(self) -> int:
        """Counts the connections made."""
        return self._generation

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client.is_connected

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """See ``Ledger.append``."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        subject, payload = subjects.subject(event.node, event.sandbox, event.type), encode(event)
        headers: dict[str, str] = {"Nats-Msg-Id": event.id}
        if expect is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expect.sequence)
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = expect.subject
        for attempt in itertools.count(1):
            left = started + self._patience - loop.time()
            if left <= 0:
                raise LedgerUnavailableError(
                    f"the ledger did not confirm {event.type} within {self._patience:.0f} s: "
                    "is nats-server running, and has its disk room?"
                )
            try:
                answer = await self._client.request(subject, payload, min(left, _ATTEMPT), headers=headers)
            except (nats.errors.Error, OSError) as error:
                log.warning("ledger_append_repeated", type=event.type, attempt=attempt, error=_reason(error))
                await self._pause(min(left, retry_delay()))
                continue
            ack = _ack.decode(answer.data)
            if ack.error is None:
                self._observe(loop.time() - started)
                return ack.seq
            return await self._refused(event.id, subject, expect, ack.error)
        raise AssertionError("unreachable")

    async def _refused(self, event_id: EventId, subject: str, expect: Expect | None, error: _ApiError) -> int:
        if error.err_code in _NO_ROOM:
            raise LedgerFullError(f"the ledger is full ({error.description}): free room, or raise its limit")
        if error.err_code not in _WRONG_LAST_SEQUENCE:
            raise LedgerError(f"the ledger refused an event: {error.description} ({error.err_code})")
        # A repeated append meets its own event: one server alone checks the expectation before it looks for duplicates.
        mine = await self.last(expect.subject if expect is not None else subject)
        if mine is not None and mine.event.id == event_id:
            return mine.sequence
        raise ConflictError(f"another writer was first: {error.description}")

    async def read(self, subject: str = f"{subjects.ROOT}.>", after: int = 0) -> AsyncIterator[Stored]:
        """See ``Ledger.read``."""
        end = await self.last_sequence()
        while after < end:
            try:
                async for message in Puller(self, (subject,), after, endless=False).pull():
                    if message.sequence > end:
                        return
                    after = message.sequence
                    if (stored := _stored(message.sequence, message.payload)) is not None:
                        yield stored
            except ConsumerLostError as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(retry_delay())
            else:
                return

    async def follow(
        self, subjects: tuple[str, ...] = (f"{subjects.ROOT}.>",), after: int = 0
    ) -> AsyncIterator[Stored]:
        """See ``Ledger.follow``."""
        while True:
            try:
                async for message in Puller(self, subjects, after, endless=True).pull():
                    after = message.sequence
                    if (stored := _stored(message.sequence, message.payload)) is not None:
                        yield stored
            except (ConsumerLostError, LedgerUnavailableError) as error:
                log.info("ledger_reader_replaced", reason=str(error), after=after)
                await asyncio.sleep(retry_delay())

    async def last(self, subject: str) -> Stored | None:
        """See ``Ledger.last``."""
        answer = await self.api(f"STREAM.MSG.GET.{self.stream}", {"last_by_subj": subject})
        message = msgspec.json.decode(answer, type=_MessageAnswer).message
        if message is None:
            return None
        return Stored(message.seq, decode(base64.b64decode(message.data)))

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        return (await self._info()).state.last_seq

    async def purge(self, subject: str, up_to: int) -> int:
        """See ``Ledger.purge``."""
        answer = await self.api(f"STREAM.PURGE.{self.stream}", {"filter": subject, "seq": up_to + 1})
        purged = msgspec.json.decode(answer, type=_Purged)
        if purged.error is not None:
            raise LedgerError(f"the ledger refused a purge: {purged.error.description}")
        return purged.purged

    async def close(self) -> None:
        """See ``Ledger.close``."""
        await self._client.close()

    async def api(self, call: str, body: object) -> bytes:
        """Return the answer of the JetStream API *call*. Raises LedgerUnavailableError."""
        try:
            return (await self._client.request(f"$JS.API.{call}", msgspec.json.encode(body), _ANSWER)).data
        except (nats.errors.Error, OSError) as error:
            raise LedgerUnavailableError(f"the ledger does not answer {call}: {_reason(error)}") from error

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        """Send a message without waiting for an answer; while disconnected it is dropped."""
        try:
            await self._client.publish(subject, payload, reply)
        except (nats.errors.Error, OSError) as error:
            log.debug("ledger_publish_dropped", subject=subject, error=_reason(error))

    async def subscribe(self, inbox: str, deliver: MessageCallback) -> Subscription:
        """Call *deliver* with every message to *inbox*. The pull requests bound what can be pending."""
        return _Subscription(
            await self._client.subscribe(inbox, cb=deliver, pending_msgs_limit=0, pending_bytes_limit=0)
        )

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        return self._client.new_inbox()

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the moment a connection is back."""
        self._reconnected.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._reconnected.wait()
        except TimeoutError:
            return

    async def _info(self) -> _StreamInfo:
        info = msgspec.json.decode(await self.api(f"STREAM.INFO.{self.stream}", {}), type=_StreamInfo)
        if info.error is not None and info.error.err_code != _NO_STREAM:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        return info

    async def _ensure_stream(self, config: StreamConfig) -> None:
        info = await self._info()
        wanted = msgspec.to_builtins(config)
        if info.error is None and all(info.config.get(key) == value for key, value in wanted.items()):
            return
        call = "CREATE" if info.error is not None else "UPDATE"
        answer = await self.api(f"STREAM.{call}.{config.name}", {**info.config, **wanted})
        made = msgspec.json.decode(answer, type=_StreamInfo)
        if made.error is not None:
            raise LedgerError(f"nats-server refused the stream {config.name}: {made.error.description}")

    async def _on_error(self, error: Exception) -> None:
        log.debug("ledger_connection_error", error=_reason(error))

    async def _on_disconnect(self) -> None:
        log.warning("ledger_disconnected")

    async def _on_reconnect(self) -> None:
        self._generation += 1
        self._reconnected.set()
        log.info("ledger_reconnected")


class _Subscription:
    """A subscription of nats-py whose end is never an error, whatever became of its connection."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def unsubscribe(self) -> None:
        try:
            await self._inner.unsubscribe()
        except nats.errors.Error as error:
            log.debug("ledger_unsubscribe", error=_reason(error))


def _stored(sequence: int, payload: bytes) -> Stored | None:
    """Return the event, or None for bytes that are none: one torn event must not hide those behind it."""
    try:
        return Stored(sequence, decode(payload))
    except MalformedEventError as error:
        log.warning("ledger_event_malformed", sequence=sequence, error=str(error))
        return None


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
