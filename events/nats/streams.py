"""The JetStream streams of Plumbline: their configuration, and requests to one stream.

Only this module translates JetStream's answers to the ledger's errors.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError
from events.nats.client.connection import ApiError, Connection

_WRONG_LAST_SEQUENCE = 10071
_NO_ROOM = frozenset({10023, 10047})
_NOT_STORED = 10077  # only its description has the reason
_NAME_TAKEN = 10058
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_NO_PEERS = 10005  # while a cluster starts
_STORE = 0.5  # a restarted server does not answer the requests of its predecessor
_API = 2.0
_ATTEMPTS = 5
"""Attempts to create a stream while another process creates it too."""
_DAY = 86_400_000_000_000


class Republish(msgspec.Struct, frozen=True, kw_only=True):
    """The server publishes each stored message again, to the current subscribers of ``dest``."""

    src: str
    dest: str
    headers_only: bool = False


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a stream that Plumbline sets. The others have the server's defaults."""

    name: str
    subjects: tuple[str, ...] = (f"{subjects.ROOT}.>",)
    storage: str = "file"
    retention: str = "limits"
    discard: str = "new"
    num_replicas: int = 1
    max_age: int = 0
    """Nanoseconds; 0: no limit."""
    max_bytes: int = -1
    max_msgs: int = -1
    duplicate_window: int = 120_000_000_000
    allow_direct: bool = True
    allow_msg_ttl: bool = False
    """Whether a message may outlive ``max_age``."""
    allow_atomic: bool = False
    """Whether a batch of messages may be stored atomically."""
    republish: Republish | None = None


NODE_STREAM = StreamConfig(name="NODE")
"""The node ledger. No event expires: those of live sandboxes must stay. The worker's retention purges others."""


def hub_stream(replicas: int) -> StreamConfig:
    """Return the hub ledger with *replicas* copies."""
    return StreamConfig(name="LEDGER", num_replicas=replicas, max_age=30 * _DAY, allow_msg_ttl=True, allow_atomic=True)


def command_stream(replicas: int = 1) -> StreamConfig:
    """Return the stream of commands with *replicas* copies, on the server of the node ledger or at the hub.

    It detects duplicates as long as it stores messages.
    """
    return StreamConfig(
        name="COMMANDS",
        subjects=(f"{subjects.COMMAND_ROOT}.>",),
        num_replicas=replicas,
        max_age=7 * _DAY,
        max_msgs=1_000_000,
        duplicate_window=7 * _DAY,
        allow_msg_ttl=True,
        republish=Republish(src=f"{subjects.COMMAND_ROOT}.>", dest=f"{subjects.DOWN_ROOT}.>", headers_only=True),
    )


def no_expiry(event_type: str) -> dict[str, str]:
    """Return the headers that keep a message of *event_type* beyond its stream's age limit, if it must stay."""
    return {"Nats-TTL": "never"} if event_type == "ReconcilerElected" else {}


class StreamState(msgspec.Struct, frozen=True):
    """First and last sequence of a stream."""

    first_seq: int = 0
    last_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """The server's description of a stream."""

    config: dict[str, Any] = {}
    created: str = ""
    state: StreamState = StreamState()
    error: ApiError | None = None


class StreamMessage(NamedTuple):
    """A message of a stream."""

    sequence: int
    subject: str
    payload: bytes
    headers: bytes

    def header(self, name: str) -> str:
        """Return the value of a header; empty if there is none of that name."""
        for line in self.headers.decode(errors="replace").split("\r\n"):
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
        return ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: ApiError | None = None


class _MessageBody(msgspec.Struct):
    seq: int
    subject: str = ""
    data: str = ""
    hdrs: str = ""


class _MessageAnswer(msgspec.Struct):
    message: _MessageBody | None = None
    error: ApiError | None = None


class _Purged(msgspec.Struct):
    purged: int = 0
    error: ApiError | None = None


_ack = msgspec.json.Decoder(_Ack)


class Stream:
    """Requests to the stream *name* over *connection*, which the caller closes."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name

    async def ensure(self, config: StreamConfig, *, first: int = 0) -> None:
        """Create or update the stream as *config* says; a new one begins with sequence *first*.

        Another process may do the same at the same time. Raises LedgerError if the server refuses.
        """
        for _ in range(_ATTEMPTS):
            if await self._ensured(config, first):
                return
        raise LedgerUnavailableError(
            f"nats-server reports in turn that the stream {config.name} exists and that it does not: check its log"
        )

    async def _ensured(self, config: StreamConfig, first: int) -> bool:
        """Try once; return False if another process created the stream meanwhile."""
        info = await self._info()
        if info.error is not None and info.error.err_code != _NO_STREAM:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        properties: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
        if info.error is None and all(
            (info.config.get(key) or None) == (properties[key] or None) for key in properties
        ):
            return True
        call, body = "UPDATE", {**info.config, **properties}
        if info.error is not None:
            call, body = "CREATE", {**properties, "first_seq": first}
        answer = msgspec.json.decode(await self.api(f"STREAM.{call}.{config.name}", body), type=StreamInfo)
        if answer.error is not None and answer.error.err_code == _NAME_TAKEN and info.error is not None:
            return False
        if answer.error is not None and answer.error.err_code == _NO_PEERS:
            raise LedgerUnavailableError(
                f"the stream {config.name} needs {config.num_replicas} replicas, but there are fewer "
                f"servers with JetStream: {answer.error.description}"
            )
        if answer.error is not None:
            raise LedgerError(f"nats-server refused the stream {config.name}: {answer.error.description}")
        return True

    async def info(self) -> StreamInfo:
        """Return the server's description of the stream. Raises LedgerUnavailableError."""
        info = await self._info()
        if info.error is not None:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        return info

    async def message(self, **query: object) -> StreamMessage | None:
        """Return the message for *query*, the parameters of STREAM.MSG.GET, from the stream's leader.

        Raises LedgerUnavailableError.
        """
        found = msgspec.json.decode(await self.api(f"STREAM.MSG.GET.{self.name}", query), type=_MessageAnswer)
        if found.error is not None and found.error.err_code == _NO_MESSAGE:
            return None
        if found.message is None:
            reason = "it gave no reason" if found.error is None else found.error.description
            raise LedgerUnavailableError(f"the ledger can't be read: {reason}")
        message = found.message
        payload, headers = base64.b64decode(message.data), base64.b64decode(message.hdrs)
        return StreamMessage(message.seq, message.subject, payload, headers)

    async def store(
        self,
        subject: str,
        payload: bytes,
        *,
        label: str,
        headers: Mapping[str, str],
        expect: Expect | None = None,
        each: float = _STORE,
    ) -> int:
        """Store a message and return its sequence. *headers* must have its ID, so that it is stored once.

        *label* completes the sentence "the ledger did not confirm …". The request is retried every *each* seconds.
        Raises LedgerUnavailableError, LedgerFullError, LedgerError, and ConflictError if *expect* does not hold; a
        retried message may conflict with itself.
        """
        if expect is not None:
            headers = {**headers, **expect_headers(expect)}
        answer = await self.connection.request(subject, payload, action=f"confirm {label}", each=each, headers=headers)
        ack = _ack.decode(answer)
        if ack.error is not None:
            raise _refusal(ack.error)
        return ack.seq

    async def purge(self, subject: str, up_to: int) -> int:
        """See ``Ledger.purge``."""
        answer = await self.api(f"STREAM.PURGE.{self.name}", {"filter": subject, "seq": up_to + 1})
        purged = msgspec.json.decode(answer, type=_Purged)
        if purged.error is not None:
            raise LedgerError(f"the ledger refused a purge: {purged.error.description}")
        return purged.purged

    async def api(self, call: str, body: object) -> bytes:
        """Return the answer of the JetStream API *call*. Raises LedgerUnavailableError."""
        return await self.connection.request(
            f"$JS.API.{call}", msgspec.json.encode(body), action=f"answer {call}", each=_API
        )

    async def _info(self) -> StreamInfo:
        return msgspec.json.decode(await self.api(f"STREAM.INFO.{self.name}", {}), type=StreamInfo)


def expect_headers(expect: Expect) -> dict[str, str]:
    """Return the headers of a message that the server stores only if *expect* holds."""
    return {
        "Nats-Expected-Last-Subject-Sequence": str(expect.sequence),
        "Nats-Expected-Last-Subject-Sequence-Subject": expect.subject,
    }


def _refusal(error: ApiError) -> LedgerError:
    if error.err_code == _WRONG_LAST_SEQUENCE:
        return ConflictError(f"another writer was first: {error.description}")
    reason = error.description
    if error.err_code in _NO_ROOM or (error.err_code == _NOT_STORED and ("maximum" in reason or "no space" in reason)):
        return LedgerFullError(f"the ledger is full ({reason}): free space on its disk, or raise its limit")
    if error.err_code == _NOT_STORED:
        return LedgerUnavailableError(f"the ledger could not store an event ({reason}): check its disk")
    return LedgerError(f"the ledger refused an event: {reason} ({error.err_code})")
