"""Keep one connection to a nats-server until its owner closes it.

nats-py reconnects while a server is unavailable. But it gives up for ever after a server's error, sends buffered
messages too late, and leaves requests waiting that died with a server. This module does the rest.
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
"""Seconds between two attempts of a request."""

_TRANSIENT = frozenset({10008, 10009, 10158, 10164, 10167})
"""JetStream error codes that are worth a retry: no leader yet, the same message or one with the same condition is
being stored, too many requests."""


class ApiError(msgspec.Struct, frozen=True):
    """The error of a JetStream answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    error: ApiError | None = None


_answer = msgspec.json.Decoder(_Answer)


class Connection:
    """A connection, made by ``open``. A request is retried for *patience* seconds.

    *address* may have several URLs, separated by commas. With a user, its token is the password, and ``inbox`` is a
    subject of that user only.
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
        """Prefix of the subjects for answers."""
        self._inbox = f"{self.inbox}.{uuid.uuid4().hex}"
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._numbers = itertools.count()
        self._made = 0
        self._closed = False
        self._troubles: set[str] = set()
        self._refusals = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._client.is_connected

    @property
    def generation(self) -> int:
        """Number of connections made so far."""
        return self._made

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message that the server accepts, with headers."""
        return self._client.max_payload

    async def open(self) -> None:
        """Connect, however long it takes. Raises LedgerError if every server refuses this client.

        nats-py reports each failed attempt to its error callback. That distinguishes a wrong token from a server that
        has not started yet.
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
                    **self._access.credentials(),
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
                    pending_size=-1,  # while disconnected fail at once, instead of sending old messages later
                )
                await client.listen(f"{self._inbox}.*", self._on_answer)
            except errors.Error as error:
                if self._made:
                    raise  # the address was good before: the caller retries
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
        """Close the connection; everything that waits for it ends."""
        self._closed = True
        if self._made:
            await self._client.close()

    async def request(
        self, subject: str, payload: bytes, *, action: str, each: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer to an idempotent request, which is retried every *each* seconds.

        *action* completes the sentence "the ledger did not …". Raises LedgerUnavailableError after ``patience``,
        LedgerError if the request is too large.
        """
        loop = asyncio.get_running_loop()
        until, trouble = loop.time() + self._patience, ""
        while (left := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(left, each)):
                    answer = await self._ask(subject, payload, headers)
                error = _answer.decode(answer).error
                if error is None or error.err_code not in _TRANSIENT:
                    return answer
                reason = error.description
            except errors.MaxPayloadError:
                raise LedgerError(
                    f"the ledger can't {action}: its {len(payload)} bytes exceed nats-server's max_payload"
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
            f"the ledger did not {action} within {self._patience:g} s ({trouble}): "
            "is nats-server running, and is there free space on its disk?"
        )

    async def _ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes:
        """Return the answer to one request. nats-py's ``request`` does not end with its connection or cancellation."""
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
        """Send a message without an answer. While disconnected it is dropped."""
        try:
            await self._client.publish(subject, payload, reply, dict(headers) if headers else None)
        except (errors.Error, OSError) as error:
            log.debug("ledger_publish_dropped", subject=subject, error=reason_of(error))

    async def subscribe(self, inbox: str, deliver: MessageCallback, lost: Callable[[], None]) -> Subscription:
        """Call *deliver* with each message to *inbox*, and *lost* after a reconnect.

        Nothing is dropped, so the subscriber must limit what can be outstanding. Raises LedgerError.
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
        """Wait *seconds*, or until there is a connection again."""
        self._back.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._back.wait()
        except TimeoutError:
            return

    def _notify_lost(self) -> None:
        """Fail the requests of the last connection, and notify its subscribers."""
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
        self._notify_lost()
        log.info("ledger_connected", url=self._url, connections=self._made)

    async def _on_disconnect(self) -> None:
        if self._made and not self._closed:
            log.warning("ledger_disconnected", url=self._url)

    async def _on_close(self) -> None:
        self._notify_lost()  # nats-py does not reconnect from here; the next caller opens a connection

    async def _on_error(self, error: Exception) -> None:
        """Log an error once for each outage, not at each attempt to connect."""
        trouble = reason_of(error)
        if isinstance(error, RefusedError) and not self._made:
            self._refusals += 1
            if self._refusals >= self._url.count(",") + 1:  # each server refused
                raise LedgerError(trouble) from error
        if trouble not in self._troubles and not self._closed:
            self._troubles.add(trouble)
            log.warning("ledger_connection_trouble", url=self._url, error=trouble)


class Subscription:
    """A subscription that can be ended without an error, even after its connection was lost."""

    def __init__(self, inner: Any, forget: Callable[[], None]) -> None:
        self._inner = inner
        self._forget = forget

    async def unsubscribe(self) -> None:
        """End the subscription."""
        self._forget()
        try:
            await self._inner.unsubscribe()
        except errors.Error as error:
            log.debug("ledger_unsubscribe", error=reason_of(error))


def reason_of(error: BaseException) -> str:
    """Return the message of *error*, or its class name if the message is empty."""
    return str(error) or type(error).__name__
