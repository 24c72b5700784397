"""The unix socket for entry points. It exists only while the worker accepts requests."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import cast

import structlog

from events.schema import ErrorClass, Phase
from nodeworker.errors import failed
from nodeworker.intake.requests import Requests
from nodeworker.sandboxes.answers import Reply, error_reply
from nodeworker.shim.frame import HEADER, Frame, FrameError, body_length, decode_request, encode_reply

log = structlog.get_logger(__name__)

_PEERCRED = struct.Struct("iII")


class Connection(asyncio.Protocol):
    """One entry point's connection: it carries one request and its answer."""

    def __init__(self, requests: Requests, open_connections: set[Connection]) -> None:
        self._requests = requests
        self._open = open_connections
        self._received = bytearray()
        self._frame: Frame | None = None
        self._answering: asyncio.Task[None] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept root and the worker's own user only, whatever the file modes are."""
        connected = cast("asyncio.WriteTransport", transport)
        peer: socket.socket = connected.get_extra_info("socket")
        _, uid, _ = _PEERCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid not in (0, os.geteuid()):
            log.warning("connection_refused", uid=uid)
            connected.abort()
            return
        self._transport = connected
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        """Collect the request, and answer it when it is complete."""
        if self._transport is None or self._frame is not None:
            return
        self._received += data
        try:
            if len(self._received) < HEADER or len(self._received) < HEADER + body_length(
                bytes(self._received[:HEADER])
            ):
                return
            self._frame = decode_request(bytes(self._received[HEADER:]))
        except FrameError as error:
            log.warning("request_refused", error=str(error))
            failure = failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, str(error)).failure
            self._send(error_reply(failure, ""))
            return
        self._received.clear()
        self._answering = asyncio.get_running_loop().create_task(self._answer(self._frame))

    def connection_lost(self, exc: Exception | None) -> None:
        """Abandon the request: if an entry point disconnects before the answer, its runtime has ended it."""
        self._open.discard(self)
        if self._frame is not None and self._answering is not None and not self._answering.done():
            self._requests.abandon(self._frame)

    def close(self) -> None:
        """Disconnect the entry point without an answer; it reconnects, to the next worker."""
        self._frame = None
        if self._answering is not None:
            self._answering.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, frame: Frame) -> None:
        reply = await self._requests.answer(frame)
        if self._transport is not None and not self._transport.is_closing():
            self._send(reply)
            self._requests.answer_sent(frame)

    def _send(self, reply: Reply) -> None:
        assert self._transport is not None
        self._transport.write(encode_reply(reply.exit_code, reply.stdout))
        self._transport.close()


class SocketServer:
    """The listening socket and its connections."""

    def __init__(self, path: Path, requests: Requests) -> None:
        self._path = path
        self._requests = requests
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. The socket appears at its path when it accepts connections, and for its owner only."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(draft))
        draft.chmod(0o600)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self._requests, self._connections), sock=listening, backlog=1024
        )
        draft.rename(self._path)
        log.info("worker_open", socket=str(self._path))

    async def close(self) -> None:
        """Stop listening, and disconnect waiting entry points: they reconnect to the next worker."""
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            for listening in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            # asyncio loses a connection that it has accepted but not started when the server closes: let it start.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
        for connection in tuple(self._connections):
            connection.close()
