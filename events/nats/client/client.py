"""nats-py's client, with those private members overridden that are too slow, or unsafe, for Plumbline.

nats-py is pinned to one minor version. A test (``test_client.py``) compares the source of each upstream member with
that version's, and names the overrides to check after an upgrade.

Overridden for speed. ``python -m bench.ledger_client`` measures each against nats-py's own member. Medians of 20 rounds
in turn on two busy processors, where two equal variants differed by 3 %:

- With all three: an append takes 147 us (p50) and 127 us of processor time; 105,000 events/s are read, with 4.6 us of
  processor time each. With none: 168 us, 148 us, 72,000 events/s, 9.1 us.
- ``_Parser.parse`` replaces up to six regular expressions and a coroutine for each message. Without it: 75,000 events/s
  are read, with 8.3 us each.
- ``listen`` sets ``_pending_queue``, which replaces a queue and a task for each subscription. Without it: 154 us and
  135 us for an append; 95,000 events/s are read, with 5.4 us each.
- ``_send_publish`` replaces checks of headers by regular expression, and a task that writes. Without it: 158 us and
  139 us for an append.

Overridden for safety, because of what nats-py does itself:

- ``close``: nats-py sends what is pending on a lost connection, and may lose a cancellation before Python 3.12.
- ``_connect_to_server``: nats-py retries at a fixed interval. Thousands of nodes would do so at once.
- ``ssl_context``: nats-py reads certificates once, not for each connection.
- ``_process_info``: nats-py sends its secret in the clear to a server that does not ask for TLS.
- ``_process_connect_init``: nats-py takes a server that hangs up during the handshake for a connected one.
- ``_connect_command``: nats-py does not tell asyncio's streams that they speak TLS; they warn at the end of each.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from events.nats.client import nats_py
from events.nats.client.nats_py import Msg, Subscription, errors
from events.nats.client.tls import Access
from events.process.backoff import Backoff

_ACK = b"$JS.ACK."
"""Prefix of the reply subject of a stream's message."""


class Client(nats_py.Client):
    """A client that sends what it publishes in the next step of the event loop, in one piece.

    *access* decides about TLS; None: in the clear unless the server asks for TLS. *backoff* delays each attempt.
    """

    def __init__(self, access: Access | None = None, backoff: Backoff | None = None) -> None:
        super().__init__()
        self._access = access
        self._backoff = backoff or Backoff()
        self._ps = _Parser(self)
        self._closing = False
        self._unsent: list[bytes] = []

    async def close(self) -> None:
        """End the connection, and the attempts to connect.

        ``asyncio.wait_for`` loses a cancellation that comes at the moment of a failure (before Python 3.12). Without
        ``_closing`` nats-py would then retry for ever.
        """
        self._closing = True
        self._send_unsent()  # for example the deletion of a consumer: a closing client sends nothing afterwards
        if not self.is_connected:  # else nats-py writes to the lost connection, and fails
            self._pending = []
            self._pending_data_size = 0
        await super().close()

    async def _connect_to_server(self, s: Any) -> None:
        if self._closing:
            raise asyncio.CancelledError
        await self._backoff.wait(len(self._server_pool))
        await super()._connect_to_server(s)

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """The TLS context of the connection that is being made, read from the files as they are now."""
        return super().ssl_context if self._access is None else self._access.context()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._access is not None:
            self._access.judge(info, self._server)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
            if not self.is_connected:
                raise ConnectionResetError("the server ended the connection")
        except (OSError, ValueError, errors.Error) as error:
            self._hang_up()
            explained = error if self._access is None else self._access.explained(error, self._server)
            if explained is error:
                raise
            raise explained from error
        self._backoff.reset()

    def _connect_command(self) -> bytes:
        _mark_tls(self._transport)  # TLS is established when the client builds its first command
        return super()._connect_command()

    def _hang_up(self) -> None:
        """Close the connection and cancel its tasks. The next attempt makes another.

        nats-py would wait for the end of the connection, which never comes if TLS was refused during the handshake.
        """
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        transport: Any = self._transport
        self._transport = None
        for writer in () if transport is None else (transport._io_writer, transport._bare_io_writer):
            if writer is not None:
                writer.close()

    @property
    def _server(self) -> str:
        """Host and port of the server for messages, without the user that its URL may name."""
        uri = None if self._current_server is None else self._current_server.uri
        return "" if uri is None else uri.netloc.rpartition("@")[2]

    async def listen(self, subject: str, deliver: Callable[[Msg], None]) -> Subscription:
        """Subscribe; the client calls *deliver*, which must not raise, as soon as it has read a message to *subject*.

        Messages of a stream come without their headers.
        """
        subscription = await self.subscribe(subject, pending_msgs_limit=0, pending_bytes_limit=0)
        subscription._pending_queue = _Handover(deliver)  # type: ignore[assignment]  # the client only calls put_nowait
        return subscription

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        if self._transport is None or self._pending or not self.is_connected or not subject:
            self._send_unsent()
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send_unsent)
        subjects = f"{subject} {reply}" if reply else subject
        if headers is None:
            self._unsent.append(f"PUB {subjects} {payload_size}\r\n".encode() + payload + b"\r\n")
            return
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise errors.BadHeaderError(", ".join(headers))
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        command = f"HPUB {subjects} {len(head)} {len(head) + payload_size}\r\n".encode()
        self._unsent.append(command + head + payload + b"\r\n")

    def _send_unsent(self) -> None:
        """Write the messages published since the last call. On a lost connection they are dropped: callers retry."""
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and self.is_connected:
            self._transport.write(b"".join(unsent))


def _mark_tls(transport: Any) -> None:
    writer = transport._io_writer.transport
    if writer.get_extra_info("sslcontext") is not None and (protocol := writer.get_protocol()) is not None:
        protocol._over_ssl = True


class _Parser(nats_py.Parser):
    """nats-py's parser, with a fast path for the two kinds of message that appends and readers get.

    Everything else goes to nats-py's own ``parse``.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        super().__init__(client)

    def reset(self) -> None:
        super().reset()
        self._rest = bytearray()

    async def parse(self, data: bytes = b"") -> None:
        rest = self._rest
        rest += data
        start = 0
        while rest is self._rest and (end := rest.find(b"\r\n", start)) >= 0:
            stop = end + 2
            if rest.startswith((b"MSG ", b"HMSG "), start):
                words = bytes(rest[start:end]).split(b" ")  # a subject may contain any other white space
                stop += _number(words[-1]) + 2
                if stop > len(rest):
                    break
                if not self._hand_over(words, memoryview(rest)[end + 2 : stop - 2]):
                    await super().parse(bytes(rest[start:stop]))
            else:
                await super().parse(bytes(rest[start:stop]))
            start = stop
        del rest[:start]

    def _hand_over(self, words: list[bytes], body: memoryview) -> bool:
        """Put a message into its subscription. Return False for one that nats-py has to parse."""
        match words:
            case [b"MSG", subject, sid, _]:
                reply = b""
            case [b"MSG", subject, sid, reply, _]:
                pass
            case [b"HMSG", subject, sid, reply, head, _] if reply.startswith(_ACK):
                body = body[_number(head) :]
            case _:
                return False
        subscription = self._client._subs.get(_number(sid))
        if subscription is not None:
            name = subject.decode(errors="replace")  # any client may publish under a subject that is no text
            subscription._pending_queue.put_nowait(Msg(self._client, name, reply.decode(), bytes(body)))
        return True


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise errors.ProtocolError(f"nats-server sent {word!r} for a number") from None


class _Handover:
    """Takes the place of a subscription's queue."""

    def __init__(self, deliver: Callable[[Msg], None]) -> None:
        self.put_nowait = deliver
