"""Read a ledger in a separate process, ahead of the process that folds it.

Receiving an event costs a fifth of projecting it. For millions of events another processor does that, and the caller
decodes the events from a pipe. The process ends with its work, or when the caller closes the pipe.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from events import subjects
from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.nats.client.consumer import Message
from events.nats.ledger import JetStreamLedger, connect_or_fail
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.settings import LedgerAddress
from events.schema import Stored

_AHEAD = 4 * 1024 * 1024
"""Bytes that are buffered for a slow caller: some thousand events."""
_PIPE = 1024 * 1024
_LENGTH = 4
"""Bytes of the length before each message on the pipe."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message] | str).decode
"""Messages; an empty list at the end; or the error that ended the reading."""


class _Task(msgspec.Struct):
    address: LedgerAddress
    stream: str
    subject: str
    after: int


class ReadAhead:
    """The ``Readable`` protocol for *ledger*, which is at *address*."""

    def __init__(self, ledger: JetStreamLedger, address: LedgerAddress) -> None:
        self._ledger = ledger
        self._address = address

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        return await self._ledger.last_sequence()

    async def read(self, subject: str = f"{subjects.ROOT}.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.read``. Raises LedgerUnavailableError also when the process ends before its time."""
        task = _Task(self._address, self._ledger.stream, subject, after)
        command = (sys.executable, "-m", "events.nats.read_ahead")
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=_PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(_encode(task))
            process.stdin.close()
            while messages := await _next(process.stdout):
                for message in messages:
                    if (stored := self._ledger.decoder.decode(*message)) is not None:
                        yield stored
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _next(pipe: StreamReader) -> list[Message]:
    try:
        length = int.from_bytes(await pipe.readexactly(_LENGTH), "big")
        received = _decode(await pipe.readexactly(length))
    except asyncio.IncompleteReadError:
        raise LedgerUnavailableError("the process that reads the ledger ended early") from None
    if isinstance(received, str):
        raise LedgerUnavailableError(received)
    return received


async def _read(task: _Task) -> None:
    fcntl.fcntl(sys.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(lambda: StreamReaderProtocol(StreamReader()), sys.stdout)
    transport.set_write_buffer_limits(_AHEAD)
    pipe = StreamWriter(transport, protocol, None, loop)
    try:
        await _forward(task, pipe)
        await _write([], pipe)
    except LedgerError as error:
        await _write(str(error), pipe)
    pipe.close()
    await pipe.wait_closed()


async def _forward(task: _Task, pipe: StreamWriter) -> None:
    ledger = await connect_or_fail(task.address, replace(NODE_STREAM, name=task.stream), "plumbline-ahead")
    try:
        async with aclosing(ledger.read_messages(task.subject, task.after)) as batches:
            async for messages in batches:
                await _write(messages, pipe)
    finally:
        await ledger.close()


async def _write(what: list[Message] | str, pipe: StreamWriter) -> None:
    text = _encode(what)
    pipe.write(len(text).to_bytes(_LENGTH, "big") + text)
    await pipe.drain()


def main() -> None:
    """Read the ledger that standard input names, and write it to standard output."""
    logs.configure("warning", "ahead")
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Task)
    try:
        asyncio.run(_read(task))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the caller has read enough
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
