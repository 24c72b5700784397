"""Keep one connection to a nats-server through everything but its owner's ``close``.

nats-py comes back by itself while a server is away, but gives a connection up for ever once the server reports an error
on it, sends what it had buffered when nobody wants it any more, and leaves requests that a dead server took with it
waiting. What it leaves to be done is here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import structlog

from events import subjects
from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.nats.client.client import Client
from events.nats.client.nats_py import Msg, errors
from events.nats.client.tls import Access, RefusedError
from events.process.backoff import LOCAL_PAUSE, Backoff
from events.process.settings import LedgerAddress

log = structlog.get_logger(__name__)

MessageCallback: TypeAlias = Callable[[Msg], None]

RETRY = 0.2
"""Seconds between two attempts."""

_PASSING = frozenset({10008, 10009, 10158, 10164, 10167})
"""JetStream error codes that ask for patience: no leader yet, the same message is being stored, or another of which the
same is expected, too many requests."""


class ApiError(msgspec.Struct, frozen=True):
    """The error of a JetStream answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    error: ApiError | None = None


_answer = msgspec.json.Decoder(_Answer)


class Connection:
    """A connection, made by ``open``. *patience* is how long, in seconds, a request is repeated.

    The URL of *address* may be several, separated by commas. With a user, its token is the password, and ``inbox`` the
    user's own.
    """

    def __init__(self, address: LedgerAddress, name: str, patience: float) -> None:
        self._url = address.url
        self._user = user = address.user
        self._access = Access(address)
        self._backoff = Backoff(address.max_pause)
        self._name = name
        self._patience = patience
        self._client = Client()
        self._opening = asyncio.Lock()
        self._back = asyncio.Event()
        self._lost: set[Callable[[], None]] = set()
        self.inbox = f"_INBOX.{subjects.token(user)}" if user else "_INBOX"
        """What the subjects begin with that answers come on."""
        self._inbox = f"{self.inbox}.{uuid.uuid4().hex}"
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._numbers = itertools.count()
        self._made = 0
        self._closed = False
        self._troubles: set[str] = set()
        self._refusals = 0

    @property
    def connected(self) -> bool:
        """Whether the server is connected now."""
        return self._client.is_connected

    @property
    def generation(self) -> int:
        """Counts the connections made."""
        return self._made

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message that the server takes, headers included."""
        return self._client.max_payload

    async def open(self) -> None:
        """Connect, for as long as it takes. Raises LedgerError when no server and this client go together.

        nats-py hands every failed attempt to its error callback; that is how a token that is no good is told from a
        server that is not there yet.
        """
        async with self._opening:
            if self._closed:
                raise LedgerError("the ledger was closed")
            if self._made and not self._client.is_closed:
                return
            client = Client(self._access, self._backoff)
            self._refusals = 0
            try:
                await client.connect(
                    self._url.split(","),
                    **self._access.shown(),
                    name=self._name,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_connect,
                    closed_cb=self._on_close,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=LOCAL_PAUSE,  # type: ignore[arg-type]  # annotated int, used as seconds
                    connect_timeout=2,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    pending_size=-1,  # fail at once while disconnected, instead of sending ghosts later
                )
                await client.listen(f"{self._inbox}.*", self._on_answer)
            except errors.Error as error:
                if self._made:
                    raise  # it was good before: whoever needs the connection tries again
                raise LedgerError(f"there is no ledger at {self._url!r}: {reason_of(error)}") from error
            except BaseException:
                await client.close()
                raise
            self._client = client
            if self._closed:  # meanwhile
                await client.close()
                raise LedgerError("the ledger was closed")
            await self._on_connect()

    async def close(self) -> None:
        """End the connection, and what waits for it."""
        self._closed = True
        if self._made:
            await self._client.close()

    async def request(
        self, subject: str, payload: bytes, *, what: str, each: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer to a request that may safely be repeated, every *each* seconds.

        *what* completes the sentence "the ledger did not …". Raises LedgerUnavailableError when the patience is over,
        LedgerError when the request can't be sent at all.
        """
        loop = asyncio.get_running_loop()
        until, trouble = loop.time() + self._patience, ""
        while (left := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(left, each)):
                    answer = await self._ask(subject, payload, headers)
                error = _answer.decode(answer).error
                if error is None or error.err_code not in _PASSING:
                    return answer
                reason = error.description
            except errors.MaxPayloadError:
                raise LedgerError(
                    f"the ledger can't {what}: its {len(payload)} bytes are more than nats-server takes (max_payload)"
                ) from None
            except TimeoutError:
                reason = "no answer"
            except (errors.Error, OSError) as error:
                reason = reason_of(error)
            if not trouble:
                log.warning("ledger_request_repeated", subject=subject, error=reason)
            trouble = reason
            await self._pause(min(left, RETRY))
        raise LedgerUnavailableError(
            f"the ledger did not {what} within {self._patience:g} s ({trouble}): "
            "is nats-server running, and has its disk room?"
        )

    async def _ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes:
        """Return the answer to one request; nats-py's own ``request`` outlives its connection and its cancellation."""
        if self._client.is_closed:
            await self.open()
        number = str(next(self._numbers))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._client.publish(subject, payload, f"{self._inbox}.{number}", dict(headers) if headers else None)
            message = await answer
        finally:
            del self._answers[number]
        if message.headers is not None and message.headers.get("Status") == "503":
            raise errors.NoRespondersError
        return message.data

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message without waiting for an answer; while disconnected it is dropped."""
        try:
            await self._client.publish(subject, payload, reply, dict(headers) if headers else None)
        except (errors.Error, OSError) as error:
            log.debug("ledger_publish_dropped", subject=subject, error=reason_of(error))

    async def subscribe(self, inbox: str, deliver: MessageCallback, lost: Callable[[], None]) -> Subscription:
        """Call *deliver* with every message to *inbox*, and *lost* when the connection is not the same any more.

        Whoever subscribes bounds what can be pending: nothing is dropped here. Raises LedgerError.
        """
        try:
            if self._client.is_closed:
                await self.open()
            inner = await self._client.listen(inbox, deliver)
        except errors.Error as error:
            raise LedgerUnavailableError(f"the ledger can't be read: {reason_of(error)}") from error
        self._lost.add(lost)
        return Subscription(inner, lambda: self._lost.discard(lost))

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the moment a connection is back."""
        self._back.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._back.wait()
        except TimeoutError:
            return

    def _tell_lost(self) -> None:
        """Wake whoever waits for something that the last connection was asked for."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the connection was lost"))
        for lost in tuple(self._lost):
            lost()

    def _on_answer(self, message: Msg) -> None:
        answer = self._answers.get(message.subject.rpartition(".")[2])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _on_connect(self) -> None:
        self._made += 1
        self._troubles.clear()
        self._back.set()
        self._tell_lost()
        log.info("ledger_connected", url=self._url, connections=self._made)

    async def _on_disconnect(self) -> None:
        if self._made and not self._closed:
            log.warning("ledger_disconnected", url=self._url)

    async def _on_close(self) -> None:
        self._tell_lost()  # nats-py won't come back by itself: whoever needs the connection next opens another

    async def _on_error(self, error: Exception) -> None:
        """Log a trouble once, not at every attempt to connect."""
        trouble = reason_of(error)
        if isinstance(error, RefusedError) and not self._made:
            self._refusals += 1
            if self._refusals >= self._url.count(",") + 1:  # none of several is any better
                raise LedgerError(trouble) from error
        if trouble not in self._troubles and not self._closed:
            self._troubles.add(trouble)
            log.warning("ledger_connection_trouble", url=self._url, error=trouble)


class Subscription:
    """A subscription whose end is never an error, whatever became of its connection."""

    def __init__(self, inner: Any, forget: Callable[[], None]) -> None:
        self._inner = inner
        self._forget = forget

    async def unsubscribe(self) -> None:
        """Receive no more."""
        self._forget()
        try:
            await self._inner.unsubscribe()
        except errors.Error as error:
            log.debug("ledger_unsubscribe", error=reason_of(error))


def reason_of(error: BaseException) -> str:
    """Return what *error* says, or its name when it says nothing."""
    return str(error) or type(error).__name__
