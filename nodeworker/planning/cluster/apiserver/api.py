"""Send requests to the Kubernetes API server; an error is a sentence with the reason and the remedy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from events.process.settings import SettingsError
from nodeworker.planning.cluster.apiserver.credentials import Access, Credentials
from nodeworker.planning.cluster.apiserver.decode import UNREADABLE
from nodeworker.planning.cluster.apiserver.http1 import Connection, Head, HttpError

MAX_BODY = 32 * 1024 * 1024
"""Maximum bytes of an answer. etcd accepts objects of up to 1.5 MiB, and a list has many."""
MAX_LINE = 8 * 1024 * 1024
"""Maximum bytes of one event of a watch."""

_MAX_REFUSAL = 64 * 1024
_CONNECT = 5.0
_ANSWER = 10.0
"""Seconds until an answer begins."""
_CONCURRENCY = 8
"""Requests at the same time, not counting watches; the API server has thousands of workers."""
_IDLE = 2
"""Idle connections that are reused."""


class ApiError(Exception):
    """The API server did not answer the request; the text is a sentence for people."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        """Seconds that the server asks to wait before a retry."""


class UnreachableError(ApiError):
    """There was no answer, or it was interrupted."""


class ObjectMissingError(ApiError):
    """The object certainly does not exist, or its kind is not installed."""


class GoneError(ApiError):
    """The server has no changes since the requested version any more."""


class GarbledError(ApiError):
    """The answer does not conform to the Kubernetes API."""


class TooLargeError(ApiError):
    """The answer is larger than ``MAX_BODY``."""


class ApiRequest(NamedTuple):
    """One request."""

    verb: str
    resource: str
    """Verb and resource as roles name them."""
    target: str
    """Path and query."""
    accept: str


class _Details(msgspec.Struct):
    retry_after: float = msgspec.field(default=0.0, name="retryAfterSeconds")


class Status(msgspec.Struct):
    """The API's error object (Kubernetes API conventions, "Response Status Kind")."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None

    @property
    def retry_after(self) -> float:
        """Seconds."""
        return self.details.retry_after if self.details else 0.0


class Api:
    """A client of the API server in *credentials*. All requests are GETs."""

    def __init__(self, credentials: Credentials, agent: str) -> None:
        self._credentials = credentials
        self._agent = agent
        self._slots = asyncio.Semaphore(_CONCURRENCY)
        self._idle: list[tuple[Access, Connection]] = []

    async def get(self, request: ApiRequest, seconds: float = _ANSWER) -> bytes:
        """Return the whole answer. Raises ApiError, also after *seconds*."""
        deadline = asyncio.get_running_loop().time() + seconds
        with self._translated():
            async with _slot(self._slots, deadline):
                access, connection, head = await self._head(request, deadline, reuse=True)
                try:
                    body = await _whole(connection, deadline, MAX_BODY if head.status == 200 else _MAX_REFUSAL)
                except BaseException:
                    connection.close()
                    raise
                self._reuse_later(access, connection)
        if head.status != 200:
            raise _refusal(access, request, head, body)
        return body

    @contextlib.asynccontextmanager
    async def stream(self, request: ApiRequest, seconds: float) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """Enter when the server has accepted the request; then yield its answer line by line, for at most *seconds*.

        Raises ApiError; UnreachableError if the connection breaks, or if the server has not ended the answer in time.
        """
        loop = asyncio.get_running_loop()
        with self._translated():
            access, connection, head = await self._head(request, loop.time() + _CONNECT + _ANSWER, reuse=False)
        try:
            if head.status != 200:
                with self._translated():
                    body = await _whole(connection, loop.time() + _ANSWER, _MAX_REFUSAL)
                raise _refusal(access, request, head, body)
            async with aclosing(self._lines(connection, loop.time() + seconds)) as lines:
                yield lines
        finally:
            connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _lines(self, connection: Connection, deadline: float) -> AsyncGenerator[bytes, None]:
        rest = bytearray()
        with self._translated():
            async with aclosing(connection.body(deadline)) as chunks:
                async for chunk in chunks:
                    *ends, beginning = chunk.split(b"\n")
                    for end in ends:
                        yield bytes(rest + end)
                        rest.clear()
                    rest += beginning
                    if len(rest) > MAX_LINE:
                        raise GarbledError(f"{self._server()} sent a line of more than {MAX_LINE} bytes")
        if rest:
            raise GarbledError(f"{self._server()} sent an incomplete line")

    async def _head(self, request: ApiRequest, deadline: float, *, reuse: bool) -> tuple[Access, Connection, Head]:
        """Return the head of an answer. After a 401, read the credentials again and retry once."""
        access = self._credentials.current()
        connection, head = await self._exchange(access, request, deadline, reuse=reuse)
        if head.status == 401 and (renewed := self._credentials.renew()) is not access:
            connection.close()
            access = renewed
            connection, head = await self._exchange(access, request, deadline, reuse=reuse)
        return access, connection, head

    async def _exchange(
        self, access: Access, request: ApiRequest, deadline: float, *, reuse: bool
    ) -> tuple[Connection, Head]:
        headers = {"Host": access.authority, "User-Agent": self._agent, "Accept": request.accept}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        while True:
            used = self._take(access) if reuse else None
            connection = used or await _connect(access, deadline)
            try:
                return connection, await connection.get(access.prefix + request.target, headers, deadline)
            except BaseException as error:
                connection.close()
                # The server may close an idle connection at any moment, so retry on another one.
                if used is None or not isinstance(error, HttpError):
                    raise

    def _take(self, access: Access) -> Connection | None:
        while self._idle:
            made_for, connection = self._idle.pop()
            if made_for is access and connection.is_open:
                return connection
            connection.close()
        return None

    def _reuse_later(self, access: Access, connection: Connection) -> None:
        if connection.prepare_reuse() and len(self._idle) < _IDLE:
            self._idle.append((access, connection))
        else:
            connection.close()

    def _server(self) -> str:
        try:
            return f"the API server {self._credentials.current().url}"
        except SettingsError:
            return "the API server"

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except HttpError as error:
            raise UnreachableError(f"{self._server()} can't be reached: {error}") from error
        except SettingsError as error:
            raise ApiError(f"the credentials for the API server can't be read: {error}") from error
        except _LargeError as error:
            raise TooLargeError(f"{self._server()} answered with more than {MAX_BODY} bytes") from error


class _LargeError(Exception):
    """A body is larger than its limit."""


@contextlib.asynccontextmanager
async def _slot(slots: asyncio.Semaphore, deadline: float) -> AsyncGenerator[None, None]:
    """Acquire one of *slots* for the block. Raises HttpError."""
    try:
        async with asyncio.timeout_at(deadline):
            await slots.acquire()
    except TimeoutError as error:
        raise HttpError("earlier requests have not been answered yet") from error
    try:
        yield
    finally:
        slots.release()


async def _connect(access: Access, deadline: float) -> Connection:
    soon = asyncio.get_running_loop().time() + _CONNECT
    return await Connection.open(access.host, access.port, access.tls, access.server_name, min(soon, deadline))


async def _whole(connection: Connection, deadline: float, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async with aclosing(connection.body(deadline)) as body:
        async for chunk in body:
            size += len(chunk)
            if size > limit:
                raise _LargeError
            chunks.append(chunk)
    return b"".join(chunks)


def _refusal(access: Access, request: ApiRequest, head: Head, body: bytes) -> ApiError:
    """Return the error of an answer with another status than 200."""
    server = f"the API server {access.url}"
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        status = Status(message=body[:200].decode(errors="replace").strip())
    retry_after = status.retry_after or _seconds(head.headers.get("retry-after", ""))
    what = f"{request.verb} {request.resource}"
    match head.status:
        case 401:
            return ApiError(
                f"{server} rejects the credentials of {access.origin} (401 Unauthorized): they have expired or "
                f"were revoked; renew them, and the worker reloads the file"
            )
        case 403:
            return ApiError(
                f"{server} does not let the worker {what} (403 Forbidden: {status.message}); "
                f"grant it get, list and watch on {request.resource} in a ClusterRole"
            )
        # A 404 of a proxy proves nothing.
        case 404 if status.reason == "NotFound" or status.message.startswith("404 page not found"):
            return ObjectMissingError(
                f"{server} has no such {request.resource} ({status.message}); if it has none of that kind, the "
                f"CustomResourceDefinition is not installed"
            )
        case 410:
            return GoneError(f"{server} no longer has the requested version: {status.message}")
        case _:
            answer = f"{head.status}: {status.message}" if status.message else str(head.status)
            return ApiError(f"{server} answered {answer} to {what}", retry_after)


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 for its other form, a date, which API servers do not send."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
