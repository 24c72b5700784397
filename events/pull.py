"""Read a JetStream stream without losing, doubling or stalling.

nats-py's own readers drop messages when the caller is slow, or hang over a restart of the server; a pull consumer gives
credit instead, so what is outstanding is the only buffer. The consumer is ephemeral and in memory: what was read is the
reader's to remember, and after a gap, an error, silence or a reconnect a new one starts behind the last message.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol, TypeAlias

import msgspec
from nats.aio.msg import Msg

BATCH = 500
_HEARTBEAT = 5.0
_EXPIRES = 30.0
_SILENCE = 2 * _HEARTBEAT + 2
_RETRY = 0.2
_ACK_TOKENS_V1 = 9


MessageCallback: TypeAlias = Callable[[Msg], Awaitable[None]]


class Link(Protocol):
    """What a reader needs of the connection."""

    stream: str

    async def api(self, call: str, body: object) -> bytes:
        """Return the answer of the JetStream API *call*. Raises LedgerUnavailableError."""
        ...

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        """Send a message without waiting for anything."""
        ...

    async def subscribe(self, inbox: str, deliver: MessageCallback) -> Subscription:
        """Call *deliver* with every message to *inbox*."""
        ...

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        ...

    @property
    def generation(self) -> int:
        """Counts the connections made; a consumer in memory may not outlive one."""
        ...


class Subscription(Protocol):
    """A subscription that can be ended."""

    async def unsubscribe(self) -> None:
        """Receive no more."""
        ...


class Message(NamedTuple):
    """A message of the stream."""

    sequence: int
    payload: bytes


class ConsumerLostError(Exception):
    """The consumer is gone or has skipped something; start another one behind the last message."""


class _Created(msgspec.Struct):
    name: str = ""
    error: dict[str, int | str] | None = None


class Puller:
    """One consumer with its standing requests. Use once; ``pull`` ends or raises ConsumerLostError."""

    def __init__(self, link: Link, filters: tuple[str, ...], after: int, *, endless: bool) -> None:
        self._link = link
        self._filters = filters
        self._sequence = after
        self._endless = endless
        self._delivered = 0
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._inbox = link.new_inbox()
        self._outstanding: deque[int] = deque()
        self._name = f"reader-{uuid.uuid4().hex}"

    async def pull(self) -> AsyncIterator[Message]:
        """Yield what matches. Raises ConsumerLostError, LedgerUnavailableError."""
        generation = self._link.generation
        subscription = await self._link.subscribe(self._inbox, self._deliver)
        try:
            await self._create()
            while True:
                while len(self._outstanding) < 2:
                    await self._request()
                while self._arrived:
                    msg = self._arrived.popleft()
                    if msg.headers is not None and "Status" in msg.headers:
                        if self._closes(msg):
                            return
                    else:
                        yield self._accept(msg)
                if len(self._outstanding) < 2:
                    continue
                if generation != self._link.generation:
                    raise ConsumerLostError("the connection was replaced")
                await self._wait()
        finally:
            await subscription.unsubscribe()
            await self._delete()

    async def _deliver(self, msg: Msg, /) -> None:
        self._arrived.append(msg)
        self._wake.set()

    async def _wait(self) -> None:
        self._wake.clear()
        if self._arrived:
            return
        try:
            async with asyncio.timeout(_SILENCE):
                await self._wake.wait()
        except TimeoutError:
            raise ConsumerLostError(f"nothing, not even a heartbeat, for {_SILENCE:.0f} s") from None

    def _closes(self, msg: Msg) -> bool:
        """Take in a status message; return whether it ends the reading."""
        status = (msg.headers or {}).get("Status")
        if status == "100":
            return False
        if status in ("404", "408"):  # no messages; the request expired
            if self._outstanding:
                self._outstanding.popleft()
            return not self._endless
        raise ConsumerLostError(f"status {status}: {(msg.headers or {}).get('Description', '')}")

    def _accept(self, msg: Msg) -> Message:
        tokens = msg.reply.split(".")
        shift = 0 if len(tokens) == _ACK_TOKENS_V1 else 2  # version 2 adds domain and account
        sequence, delivered = int(tokens[5 + shift]), int(tokens[6 + shift])
        if delivered != self._delivered + 1 or sequence <= self._sequence:
            raise ConsumerLostError(f"message {delivered} came after {self._delivered}")
        self._delivered, self._sequence = delivered, sequence
        self._outstanding[0] -= 1
        if not self._outstanding[0]:
            self._outstanding.popleft()
        return Message(sequence, msg.data)

    async def _create(self) -> None:
        config = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._sequence + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 60_000_000_000,
            "filter_subjects": list(self._filters),
        }
        body = {"stream_name": self._link.stream, "config": config, "action": "create"}
        answer = await self._link.api(f"CONSUMER.CREATE.{self._link.stream}.{self._name}", body)
        created = msgspec.json.decode(answer, type=_Created)
        if created.error is not None:
            raise ConsumerLostError(str(created.error.get("description", created.error)))

    async def _delete(self) -> None:
        # Not awaited for an answer: a reader that ends because the server is away must not wait for it. The server
        # forgets the consumer by itself after a minute.
        await self._link.publish(f"$JS.API.CONSUMER.DELETE.{self._link.stream}.{self._name}", b"", "")

    async def _request(self) -> None:
        body: dict[str, int | bool] = {"batch": BATCH}
        if self._endless:
            body |= {"expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
        else:
            body["no_wait"] = True
        self._outstanding.append(BATCH)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._link.stream}.{self._name}"
        await self._link.publish(subject, msgspec.json.encode(body), self._inbox)


def retry_delay() -> float:
    """Return the seconds to wait before a lost consumer is replaced."""
    return _RETRY
