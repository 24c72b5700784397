"""Ask the Kubernetes API server, and say in one sentence why it did not answer and what to do about that."""

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
"""Bytes of an answer. etcd takes objects of up to 1.5 MiB, and a list has many."""
MAX_LINE = 8 * 1024 * 1024
"""Bytes of one event of a watch."""

_MAX_REFUSAL = 64 * 1024
_CONNECT = 5.0
_ANSWER = 10.0
"""Seconds until an answer begins."""
_AT_ONCE = 8
"""Requests beside the watches; the API server has thousands of workers."""
_IDLE = 2
"""Connections kept for the next requests."""


class ApiError(Exception):
    """The API server did not do what it was asked for; the text is a sentence for people."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        """Seconds that the server wants to be left alone for."""


class UnreachableError(ApiError):
    """There was no answer, or it broke off."""


class ObjectMissingError(ApiError):
    """There certainly is no such object, or no such kind of objects."""


class GoneError(ApiError):
    """The server no longer knows what changed since the version that was named."""


class GarbledError(ApiError):
    """The answer is not what the Kubernetes API answers."""


class TooLargeError(ApiError):
    """The answer is larger than ``MAX_BODY``."""


class Ask(NamedTuple):
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
    """The API's object for what went wrong (Kubernetes API conventions, "Response Status Kind")."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None

    @property
    def retry_after(self) -> float:
        """Seconds."""
        return self.details.retry_after if self.details else 0.0


class Api:
    """The API server that *credentials* name. All requests are GETs."""

    def __init__(self, credentials: Credentials, agent: str) -> None:
        self._credentials = credentials
        self._agent = agent
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._idle: list[tuple[Access, Connection]] = []

    async def get(self, ask: Ask, seconds: float = _ANSWER) -> bytes:
        """Return the whole answer, which has *seconds* to arrive. Raises ApiError."""
        deadline = asyncio.get_running_loop().time() + seconds
        with self._translated():
            async with _place(self._places, deadline):
                access, connection, head = await self._head(ask, deadline, reuse=True)
                try:
                    body = await _whole(connection, deadline, MAX_BODY if head.status == 200 else _MAX_REFUSAL)
                except BaseException:
                    connection.close()
                    raise
                self._keep(access, connection)
        if head.status != 200:
            raise _refusal(access, ask, head, body)
        return body

    @contextlib.asynccontextmanager
    async def stream(self, ask: Ask, seconds: float) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """Enter once the server has accepted; then its answer comes line by line, for at most *seconds*.

        Raises ApiError: among others UnreachableError when the connection breaks off or the time is over before the
        server ends the answer.
        """
        loop = asyncio.get_running_loop()
        with self._translated():
            access, connection, head = await self._head(ask, loop.time() + _CONNECT + _ANSWER, reuse=False)
        try:
            if head.status != 200:
                with self._translated():
                    body = await _whole(connection, loop.time() + _ANSWER, _MAX_REFUSAL)
                raise _refusal(access, ask, head, body)
            async with aclosing(self._lines(connection, loop.time() + seconds)) as lines:
                yield lines
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connections that no request uses."""
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
            raise GarbledError(f"{self._server()} ended its answer in the middle of a line")

    async def _head(self, ask: Ask, deadline: float, *, reuse: bool) -> tuple[Access, Connection, Head]:
        """Return an answer's beginning. A 401 counts only once the files have been read again."""
        access = self._credentials.current()
        connection, head = await self._exchange(access, ask, deadline, reuse=reuse)
        if head.status == 401 and (renewed := self._credentials.renew()) is not access:
            connection.close()
            access = renewed
            connection, head = await self._exchange(access, ask, deadline, reuse=reuse)
        return access, connection, head

    async def _exchange(self, access: Access, ask: Ask, deadline: float, *, reuse: bool) -> tuple[Connection, Head]:
        headers = {"Host": access.authority, "User-Agent": self._agent, "Accept": ask.accept}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        while True:
            used = self._take(access) if reuse else None
            connection = used or await _connect(access, deadline)
            try:
                return connection, await connection.get(access.prefix + ask.target, headers, deadline)
            except BaseException as error:
                connection.close()
                # The server may close an idle connection at any moment, also this one.
                if used is None or not isinstance(error, HttpError):
                    raise

    def _take(self, access: Access) -> Connection | None:
        while self._idle:
            made_for, connection = self._idle.pop()
            if made_for is access and connection.open_still:
                return connection
            connection.close()
        return None

    def _keep(self, access: Access, connection: Connection) -> None:
        if connection.again() and len(self._idle) < _IDLE:
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
            raise ApiError(f"the access to the API server can't be read: {error}") from error
        except _LargeError as error:
            raise TooLargeError(f"{self._server()} answered with more than {MAX_BODY} bytes") from error


class _LargeError(Exception):
    """A body is larger than its limit."""


@contextlib.asynccontextmanager
async def _place(places: asyncio.Semaphore, deadline: float) -> AsyncGenerator[None, None]:
    """Hold one of *places*. Raises HttpError."""
    try:
        async with asyncio.timeout_at(deadline):
            await places.acquire()
    except TimeoutError as error:
        raise HttpError("earlier requests have not been answered yet") from error
    try:
        yield
    finally:
        places.release()


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


def _refusal(access: Access, ask: Ask, head: Head, body: bytes) -> ApiError:
    """Return why an answer is no answer."""
    server = f"the API server {access.url}"
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        status = Status(message=body[:200].decode(errors="replace").strip())
    retry_after = status.retry_after or _seconds(head.headers.get("retry-after", ""))
    what = f"{ask.verb} {ask.resource}"
    match head.status:
        case 401:
            return ApiError(
                f"{server} does not accept the credentials of {access.origin} (401 Unauthorized): they have expired or "
                f"were revoked; renew them, the worker reads the file again"
            )
        case 403:
            return ApiError(
                f"{server} does not let the worker {what} (403 Forbidden: {status.message}); "
                f"grant it get, list and watch on {ask.resource} in a ClusterRole"
            )
        # Somebody else's 404, of a proxy in between, proves nothing.
        case 404 if status.reason == "NotFound" or status.message.startswith("404 page not found"):
            return ObjectMissingError(
                f"{server} has no such {ask.resource} ({status.message}); if it has none at all, the "
                f"CustomResourceDefinition is not installed"
            )
        case 410:
            return GoneError(f"{server} no longer has what was asked for: {status.message}")
        case _:
            said = f"{head.status}: {status.message}" if status.message else str(head.status)
            return ApiError(f"{server} answered {said} when asked to {what}", retry_after)


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header; its other form, a date, is not what API servers send."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
