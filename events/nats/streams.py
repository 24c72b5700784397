"""The streams of a nats-server that Plumbline keeps, and what is asked of one, whoever asks.

What JetStream answers is translated to the ledger's errors here, and nowhere else.
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
_NOT_STORED = 10077  # for a reason that only its description tells
_NAME_TAKEN = 10058
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_NO_PEERS = 10005  # yet, while a cluster starts
_STORE = 0.5  # a request that a server took to its grave is not answered by the next one
_API = 2.0
_ATTEMPTS = 5
"""How often a stream is made that somebody else makes at the same time."""
_DAY = 86_400_000_000_000


class Republish(msgspec.Struct, frozen=True, kw_only=True):
    """Have the server tell what it stored to whoever listens at that moment."""

    src: str
    dest: str
    headers_only: bool = False


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
    max_msgs: int = -1
    duplicate_window: int = 120_000_000_000
    allow_direct: bool = True
    allow_msg_ttl: bool = False
    """Whether a message may say that it outlives ``max_age``."""
    allow_atomic: bool = False
    """Whether several messages may be stored together, all or none."""
    republish: Republish | None = None


NODE_STREAM = StreamConfig(name="NODE")
"""The node ledger. Nothing ages: what is still held must stay known, and ``Retention`` forgets the rest."""


def hub_stream(replicas: int) -> StreamConfig:
    """Return the hub ledger, which *replicas* servers hold."""
    return StreamConfig(name="LEDGER", num_replicas=replicas, max_age=30 * _DAY, allow_msg_ttl=True, allow_atomic=True)


def command_stream(replicas: int = 1) -> StreamConfig:
    """Return the stream of commands, which *replicas* servers hold: beside the node ledger or the hub's.

    It knows what is sent twice for as long as it keeps anything.
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
    """Return the headers of a message whose stream has an age limit that must not end it."""
    return {"Nats-TTL": "never"} if event_type == "ReconcilerElected" else {}


class StreamState(msgspec.Struct, frozen=True):
    """What a stream has."""

    first_seq: int = 0
    last_seq: int = 0


class StreamInfo(msgspec.Struct, frozen=True):
    """What the server says of a stream."""

    config: dict[str, Any] = {}
    created: str = ""
    state: StreamState = StreamState()
    error: ApiError | None = None


class StreamMessage(NamedTuple):
    """A message of a stream."""

    sequence: int
    payload: bytes
    headers: bytes

    def header(self, name: str) -> str:
        """Return the value of a header; empty: it has none of that name."""
        for line in self.headers.decode(errors="replace").split("\r\n"):
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
        return ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: ApiError | None = None


class _KeptMessage(msgspec.Struct):
    seq: int
    data: str = ""
    hdrs: str = ""


class _MessageAnswer(msgspec.Struct):
    message: _KeptMessage | None = None
    error: ApiError | None = None


class _Purged(msgspec.Struct):
    purged: int = 0
    error: ApiError | None = None


_ack = msgspec.json.Decoder(_Ack)


class Stream:
    """A stream by name, over a connection that somebody else keeps."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name

    async def ensure(self, config: StreamConfig, *, first: int = 0) -> None:
        """Make the stream what *config* says; one that has to be made begins with sequence *first*.

        Somebody else may do the same at the same time. Raises LedgerError when the server refuses it.
        """
        for _ in range(_ATTEMPTS):
            if await self._ensured(config, first):
                return
        raise LedgerUnavailableError(
            f"nats-server says by turns that the stream {config.name} is there and that it is not"
        )

    async def _ensured(self, config: StreamConfig, first: int) -> bool:
        """Do it, or return False: it was made in the meantime."""
        info = await self._info()
        if info.error is not None and info.error.err_code != _NO_STREAM:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        wanted: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
        if info.error is None and all((info.config.get(key) or None) == (wanted[key] or None) for key in wanted):
            return True
        call, body = "UPDATE", {**info.config, **wanted}
        if info.error is not None:
            call, body = "CREATE", {**wanted, "first_seq": first}
        made = msgspec.json.decode(await self.api(f"STREAM.{call}.{config.name}", body), type=StreamInfo)
        if made.error is not None and made.error.err_code == _NAME_TAKEN and info.error is not None:
            return False
        if made.error is not None and made.error.err_code == _NO_PEERS:
            raise LedgerUnavailableError(
                f"the stream {config.name} is to have {config.num_replicas} replicas, and there are not as many "
                f"servers with JetStream: {made.error.description}"
            )
        if made.error is not None:
            raise LedgerError(f"nats-server refused the stream {config.name}: {made.error.description}")
        return True

    async def info(self) -> StreamInfo:
        """Return what the server says of the stream. Raises LedgerUnavailableError."""
        info = await self._info()
        if info.error is not None:
            raise LedgerUnavailableError(f"the ledger can't be read: {info.error.description}")
        return info

    async def message(self, **query: object) -> StreamMessage | None:
        """Return the message that *query*, of the API call STREAM.MSG.GET, asks the stream's leader for.

        Raises LedgerUnavailableError.
        """
        found = msgspec.json.decode(await self.api(f"STREAM.MSG.GET.{self.name}", query), type=_MessageAnswer)
        if found.error is not None and found.error.err_code == _NO_MESSAGE:
            return None
        if found.message is None:
            reason = "it gave no reason" if found.error is None else found.error.description
            raise LedgerUnavailableError(f"the ledger can't be read: {reason}")
        message = found.message
        return StreamMessage(message.seq, base64.b64decode(message.data), base64.b64decode(message.hdrs))

    async def store(
        self,
        subject: str,
        payload: bytes,
        *,
        what: str,
        headers: Mapping[str, str],
        expect: Expect | None = None,
        each: float = _STORE,
    ) -> int:
        """Return the sequence of a message once the stream has it; *headers* give it an ID, so that it is stored once.

        *what* names it in the sentence "the ledger did not confirm …"; it is repeated every *each* seconds. Raises
        LedgerUnavailableError, LedgerFullError, LedgerError, and ConflictError when *expect* does not hold, which also
        a repeated message may meet.
        """
        if expect is not None:
            headers = {**headers, **expect_headers(expect)}
        answer = await self.connection.request(subject, payload, what=f"confirm {what}", each=each, headers=headers)
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
            f"$JS.API.{call}", msgspec.json.encode(body), what=f"answer {call}", each=_API
        )

    async def _info(self) -> StreamInfo:
        return msgspec.json.decode(await self.api(f"STREAM.INFO.{self.name}", {}), type=StreamInfo)


def expect_headers(expect: Expect) -> dict[str, str]:
    """Return the headers of a message that is stored only where *expect* holds."""
    return {
        "Nats-Expected-Last-Subject-Sequence": str(expect.sequence),
        "Nats-Expected-Last-Subject-Sequence-Subject": expect.subject,
    }


def _refusal(error: ApiError) -> LedgerError:
    if error.err_code == _WRONG_LAST_SEQUENCE:
        return ConflictError(f"another writer was first: {error.description}")
    said = error.description
    if error.err_code in _NO_ROOM or (error.err_code == _NOT_STORED and ("maximum" in said or "no space" in said)):
        return LedgerFullError(f"the ledger is full ({said}): free room on its disk, or raise its limit")
    if error.err_code == _NOT_STORED:
        return LedgerUnavailableError(f"the ledger could not store an event ({said}): look at its disk")
    return LedgerError(f"the ledger refused an event: {said} ({error.err_code})")
