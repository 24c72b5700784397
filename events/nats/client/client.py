"""nats-py, without the 11 MB of aiohttp that it loads for WebSockets wherever that is installed.

Plumbline speaks to nats-server over TCP only, and every node pays for the worker's memory. So aiohttp looks absent
while nats-py is imported for the first time, and only then: the reconciler needs it for the API server. Whoever needs
nats-py takes it from here.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from events.process.backoff import Backoff

_hidden = "aiohttp" not in sys.modules
if _hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # what makes its import fail
try:
    from nats import errors
    from nats.aio.client import Client as _Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.protocol.parser import Parser
finally:
    if _hidden:
        del sys.modules["aiohttp"]

if TYPE_CHECKING:
    from events.nats.client.tls import Access

__all__ = ["Client", "Msg", "Subscription", "errors"]


_ACK = b"$JS.ACK."
"""What the reply of a message of a stream begins with."""


class Client(_Client):
    """nats-py's client, but what it has to send is written at once, and what it was sent is handed over at once.

    By itself it puts either into a queue, for a task to take out: that is four steps of the event loop for each event
    that is appended, and a third of what those cost. What is published in one step of the loop is sent in one piece.
    *access* says how TLS is spoken; by itself it would speak in the clear with any server that asks for no TLS. *pace*
    says when a server is tried.
    """

    def __init__(self, access: Access | None = None, pace: Backoff | None = None) -> None:
        super().__init__()
        self._access = access
        self._pace = pace or Backoff()
        self._ps = _Parser(self)
        self._given_up = False
        self._unsent: list[bytes] = []

    async def close(self) -> None:
        """End the connection, and the attempts to have one.

        An attempt that fails at the very moment in which it is cancelled loses the cancellation (``asyncio.wait_for``
        does so before Python 3.12), and another one follows, for ever.
        """
        self._given_up = True
        self._send_unsent()  # such as that a reader needs its consumer no more: a client that closes sends nothing
        if not self.is_connected:  # else nats-py sends it on the connection that was lost, and fails
            self._pending = []
            self._pending_data_size = 0
        await super().close()

    async def _connect_to_server(self, s: Any) -> None:
        if self._given_up:
            raise asyncio.CancelledError
        await self._pace.wait(len(self._server_pool))
        await super()._connect_to_server(s)

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """How TLS is spoken on the connection that is being made."""
        return super().ssl_context if self._access is None else self._access.context()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._access is not None:
            self._access.judge(info, self._server)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        """Shake hands; by itself nats-py takes a server that hangs up meanwhile for one that is connected."""
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
        self._pace.reset()

    def _connect_command(self) -> bytes:
        """Return the first that is said, which is when TLS is spoken already."""
        _know_of_tls(self._transport)
        return super()._connect_command()

    def _hang_up(self) -> None:
        """End the connection, and what nats-py began to do with it: the next attempt makes another.

        By itself nats-py waits for its end, which it never hears of when TLS was refused half-way.
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
        """Host and port of the server, for people; a user that its URL names is left out."""
        uri = None if self._current_server is None else self._current_server.uri
        return "" if uri is None else uri.netloc.rpartition("@")[2]

    async def listen(self, subject: str, deliver: Callable[[Msg], None]) -> Subscription:
        """Call *deliver*, which must not raise, with every message to *subject* as soon as it is read.

        Of the messages of a stream it is not told the headers.
        """
        subscription = await self.subscribe(subject, pending_msgs_limit=0, pending_bytes_limit=0)
        subscription._pending_queue = _Handover(deliver)  # type: ignore[assignment]  # all that is done to it is put_nowait
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
        place = f"{subject} {reply}" if reply else subject
        if headers is None:
            self._unsent.append(f"PUB {place} {payload_size}\r\n".encode() + payload + b"\r\n")
            return
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise errors.BadHeaderError(", ".join(headers))
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        command = f"HPUB {place} {len(head)} {len(head) + payload_size}\r\n".encode()
        self._unsent.append(command + head + payload + b"\r\n")

    def _send_unsent(self) -> None:
        """Send what was published since the last time; what a lost connection leaves is for its owner to repeat."""
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and self.is_connected:
            self._transport.write(b"".join(unsent))

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        self._send_unsent()
        if force_flush or self._transport is None or not self._pending or not self.is_connected:
            return await super()._flush_pending(force_flush)
        try:
            self._transport.writelines(self._pending)
        except (OSError, RuntimeError):  # what its own task takes for a lost connection
            return await super()._flush_pending()
        self._pending = []
        self._pending_data_size = 0
        return None


def _know_of_tls(transport: Any) -> None:
    """Tell asyncio's streams when *transport* speaks TLS: nats-py leaves that out, and each end makes them warn."""
    writer = transport._io_writer.transport
    if writer.get_extra_info("sslcontext") is not None and (protocol := writer.get_protocol()) is not None:
        protocol._over_ssl = True


class _Parser(Parser):
    """nats-py's parser, which is left all but the two kinds of message that an append and a reader meet: most of all.

    For each of those it would try six regular expressions and run a coroutine, which takes longer than to fold it.
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
                words = bytes(rest[start:end]).split()
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
        """Hand a message over; return False for one that it takes more to understand."""
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
            subscription._pending_queue.put_nowait(Msg(self._client, subject.decode(), reply.decode(), bytes(body)))
        return True


def _number(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise errors.ProtocolError(f"nats-server sent {word!r} for a number") from None


class _Handover:
    """Stands where a subscription has its queue."""

    def __init__(self, deliver: Callable[[Msg], None]) -> None:
        self.put_nowait = deliver
