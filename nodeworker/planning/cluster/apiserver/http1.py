"""One HTTP/1.1 connection: the small part of an HTTP library that the worker needs.

``h11`` implements the protocol; this module connects it to asyncio's streams, with a timeout for every wait. aiohttp
would cost each node 8.6 MB, httpx 4.5.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, NamedTuple

import h11

_READ = 64 * 1024
_HEADER = 64 * 1024
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Detects a vanished server after half a minute of silence."""


class HttpError(Exception):
    """The server can't be reached, or its answer is not HTTP; the text says which."""


class Head(NamedTuple):
    """The status line and headers of an answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""


class Connection:
    """A connection for GET requests, one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER)

    @classmethod
    async def open(
        cls, host: str, port: int, tls: ssl.SSLContext | None, server_name: str | None, deadline: float
    ) -> Connection:
        """Connect before *deadline*, in the event loop's time. Raises HttpError."""
        with _translated("connecting"):
            async with asyncio.timeout_at(deadline):
                reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=server_name)
        endpoint: socket.socket = writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            endpoint.setsockopt(socket.IPPROTO_TCP, option, value)
        return cls(reader, writer)

    async def get(self, target: str, headers: Mapping[str, str], deadline: float) -> Head:
        """Send a GET for *target*; return the head of the answer. ``body`` must follow. Raises HttpError."""
        with _translated("waiting for an answer"):
            request = h11.Request(method="GET", target=target, headers=list(headers.items()))
            async with asyncio.timeout_at(deadline):
                self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
                await self._writer.drain()
                while not isinstance(event := await self._event(), h11.Response):
                    if not isinstance(event, h11.InformationalResponse):
                        raise HttpError("the server closed the connection without an answer")
        return Head(event.status_code, {name.decode(): value.decode("latin-1") for name, value in event.headers})

    async def body(self, deadline: float) -> AsyncGenerator[bytes, None]:
        """Yield the answer's body as it arrives. Raises HttpError, also if the body is incomplete."""
        while True:
            with _translated("reading an answer"):
                async with asyncio.timeout_at(deadline):
                    event = await self._event()
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)

    def prepare_reuse(self) -> bool:
        """Return whether the connection can carry another request, and prepare it."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._reader.at_eof():
            return False
        self._http.start_next_cycle()
        return True

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed the connection, as far as is known."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ))
        return event


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise HttpError(f"timeout while {doing}") from error
    except ssl.SSLCertVerificationError as error:
        raise HttpError(f"its certificate is not trusted: {error.verify_message}") from error
    except (OSError, EOFError) as error:
        raise HttpError(
            f"{doing}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from error
    except (h11.ProtocolError, ValueError) as error:
        raise HttpError(f"{doing}: {error}") from error
