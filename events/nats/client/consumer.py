"""Read a JetStream stream without losing or repeating a message, and without stalling.

nats-py's readers drop messages if the caller is slow, and hang after a restart of the server. A pull consumer asks for
a number of messages instead, so the only buffer is what was asked for. The consumer is ephemeral and in memory: the
reader remembers its position, and after a gap, an error, silence or a reconnect a new consumer starts there.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from events.ledger.ledger import LedgerUnavailableError
from events.nats.client.connection import ApiError, MessageCallback
from events.nats.client.nats_py import Msg

BATCH = 500
"""Messages of one pull request; two may be outstanding."""
BATCH_BYTES = 9 * 1024 * 1024
"""Bytes of one pull request: more than the largest message (``events.nats.server.MAX_PAYLOAD``), which would otherwise
never come."""

_HEARTBEAT = 5.0
_EXPIRES = 30.0
_IDLE = 1.0  # for a reader that ends: the message that it waits for may have been purged
_GRACE = 2.0
_API = 2.0
_LEAVE = 0.5
_ACK_TOKENS_V1 = 9


class Link(Protocol):
    """The part of ``events.nats.client.connection.Connection`` that readers use."""

    inbox: str

    async def request(
        self, subject: str, payload: bytes, *, action: str, each: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer to a request. Raises LedgerUnavailableError."""
        ...

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send a message without an answer."""
        ...

    async def subscribe(self, inbox: str, deliver: MessageCallback, lost: Callable[[], None]) -> Subscription:
        """Call *deliver* with each message to *inbox*, and *lost* after a reconnect."""
        ...


class Subscription(Protocol):
    """A subscription that can be ended."""

    async def unsubscribe(self) -> None:
        """End the subscription."""
        ...


class Message(NamedTuple):
    """A message of the stream."""

    sequence: int
    subject: str
    payload: bytes


class ConsumerLostError(Exception):
    """The consumer is gone or skipped a message. The caller starts another one after the last message."""


class _Created(msgspec.Struct):
    num_pending: int = 0
    error: ApiError | None = None


class Consumer:
    """One consumer with its pull requests. Use it once, and close the iterator: that deletes the consumer.

    *endless*: wait for new messages. Otherwise ``pull`` ends after the last message.
    """

    def __init__(self, link: Link, stream: str, filters: tuple[str, ...], after: int, *, endless: bool) -> None:
        self._link = link
        self._stream = stream
        self._filters = filters
        self._sequence = after
        self._endless = endless
        self._name = f"reader-{uuid.uuid4().hex}"
        self._inbox = f"{link.inbox}.{self._name}"
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._lost = False
        self._delivered = 0
        self._credit = 0  # messages that were requested and have not come yet
        self._pending = 0  # messages that the stream has for this reader, as of the last message
        expires = _EXPIRES if endless else _IDLE
        request: dict[str, int] = {"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": int(expires * 1e9)}
        if endless:
            request["idle_heartbeat"] = int(_HEARTBEAT * 1e9)
        self._standing = msgspec.json.encode(request)
        self._silence = (2 * _HEARTBEAT if endless else _IDLE) + _GRACE

    async def pull(self) -> AsyncGenerator[list[Message], None]:
        """Yield the matching messages in batches. Raises ConsumerLostError, LedgerUnavailableError."""
        subscription = await self._link.subscribe(self._inbox, self._deliver, self._on_lost)
        creating = asyncio.create_task(self._create())
        try:
            await asyncio.shield(creating)
            while self._endless or self._pending:
                if self._credit <= BATCH and (self._endless or self._credit < self._pending):
                    await self._request()
                elif self._arrived:
                    yield self._take()
                else:
                    await self._wait()
        finally:
            await subscription.unsubscribe()
            await self._delete(creating)

    def _deliver(self, msg: Msg, /) -> None:
        self._arrived.append(msg)
        self._wake.set()

    def _on_lost(self) -> None:
        self._lost = True
        self._wake.set()

    async def _wait(self) -> None:
        if self._lost:
            raise ConsumerLostError("the connection was replaced")
        self._wake.clear()
        try:
            async with asyncio.timeout(self._silence):
                await self._wake.wait()
        except TimeoutError:
            raise ConsumerLostError(f"no sign of the server for {self._silence:.0f} s") from None

    def _take(self) -> list[Message]:
        """Return the messages that have arrived. The consumer requests none while the caller is busy with them."""
        messages: list[Message] = []
        while self._arrived and (self._endless or self._pending):
            msg = self._arrived.popleft()
            if msg.reply:  # only messages of the stream have a subject for an acknowledgement
                messages.append(self._accept(msg))
            else:
                self._settle(msg)
        return messages

    def _settle(self, msg: Msg) -> None:
        """Handle a status message: a heartbeat, or the end of a pull request, with the number of unsent messages.

        The server serves requests in turn, so it does not matter which request ended.
        """
        headers = msg.headers or {}
        status, unused = headers.get("Status"), headers.get("Nats-Pending-Messages")
        if status == "100":
            return
        if unused is None or (status == "408" and not self._endless):
            raise ConsumerLostError(" ".join(headers.values()))
        self._credit -= int(unused)

    def _accept(self, msg: Msg) -> Message:
        tokens = msg.reply.split(".")
        shift = 0 if len(tokens) == _ACK_TOKENS_V1 else 2  # version 2 adds domain and account
        sequence, delivered = int(tokens[5 + shift]), int(tokens[6 + shift])
        if delivered != self._delivered + 1 or sequence <= self._sequence:
            raise ConsumerLostError(f"message {delivered} came after {self._delivered}")
        self._delivered, self._sequence, self._pending = delivered, sequence, int(tokens[8 + shift])
        self._credit -= 1
        return Message(sequence, msg.subject, msg.data)

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
        body = {"stream_name": self._stream, "config": config, "action": "create"}
        answer = await self._link.request(
            f"$JS.API.CONSUMER.CREATE.{self._stream}.{self._name}",
            msgspec.json.encode(body),
            action="create a reader",
            each=_API,
        )
        created = msgspec.json.decode(answer, type=_Created)
        if created.error is not None:
            raise LedgerUnavailableError(f"the ledger can't be read: {created.error.description}")
        self._pending = created.num_pending

    async def _delete(self, creating: asyncio.Task[None]) -> None:
        """Delete the consumer, with almost no wait: the server deletes it by itself after a minute."""
        if not creating.done():  # the server may handle the deletion before the creation
            await asyncio.wait([creating], timeout=_LEAVE)
            creating.cancel()
        await self._link.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")

    async def _request(self) -> None:
        self._credit += BATCH
        await self._link.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", self._standing, self._inbox)
