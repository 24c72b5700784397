"""The socket server: which clients it accepts, and its reaction to faulty ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from events.schema import RequestId
from nodeworker.intake.requests import Requests
from nodeworker.intake.socket_server import SocketServer
from nodeworker.sandboxes.answers import Reply
from nodeworker.shim.frame import BODY_MAX, Frame, encode_request
from tests.support.waiting import BOUND, until

FRAME = Frame(request=RequestId("ab" * 16), seconds_left=30.0, env={"CNI_COMMAND": "ADD"}, stdin=b"{}")
REQUEST = encode_request(FRAME)


class Counter:
    """Stands for the requests behind the socket server: it answers once the test permits it."""

    def __init__(self) -> None:
        self.asked: list[Frame] = []
        self.abandoned: list[Frame] = []
        self.handed_out: list[Frame] = []
        self.let = asyncio.Event()
        self.let.set()

    async def answer(self, frame: Frame) -> Reply:
        self.asked.append(frame)
        await self.let.wait()
        return Reply(0, b'{"cniVersion":"1.0.0"}')

    def abandon(self, frame: Frame) -> None:
        self.abandoned.append(frame)

    def answer_sent(self, frame: Frame) -> None:
        self.handed_out.append(frame)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "worker.sock"


@pytest.fixture
async def door(path: Path, counter: Counter) -> AsyncIterator[SocketServer]:
    door = SocketServer(path, cast("Requests", counter))
    await door.open()
    yield door
    await door.close()


async def exchange(path: Path, *parts: bytes) -> bytes:
    """Send *parts*, one after another, and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(BOUND):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


ANSWER = b"PLB1" + struct.pack("<II", 0, 22) + b'{"cniVersion":"1.0.0"}'


async def test_a_request_gets_its_answer_and_the_end(door: SocketServer, path: Path, counter: Counter) -> None:
    assert await exchange(path, REQUEST) == ANSWER
    assert counter.asked == counter.handed_out == [FRAME]
    assert not counter.abandoned


async def test_a_request_may_come_in_pieces(door: SocketServer, path: Path, counter: Counter) -> None:
    assert await exchange(path, *(bytes([byte]) for byte in REQUEST)) == ANSWER
    assert counter.asked == [FRAME]


async def test_bytes_after_a_request_are_ignored(door: SocketServer, path: Path, counter: Counter) -> None:
    counter.let.clear()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(REQUEST)
    await until(lambda: counter.asked)
    writer.write(REQUEST + os.urandom(100_000))
    await writer.drain()
    counter.let.set()
    with contextlib.suppress(ConnectionResetError):  # the kernel drops an answer when something was left unread
        assert await reader.read() == ANSWER
    writer.close()
    assert counter.asked == [FRAME]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PLB2" + REQUEST[4:],
        b"PLB1" + struct.pack("<I", BODY_MAX + 1),
        b"PLB1\xff\xff\xff\xff",
        b"PLB1" + struct.pack("<I", 0),
        b"PLB1" + struct.pack("<I", len(REQUEST) - 8) + b"\xff" * (len(REQUEST) - 8),
        b"PLB1" + struct.pack("<I", len(REQUEST) - 9) + REQUEST[8:-1],
        b"\0" * 100,
        REQUEST + b"\0",
    ],
)
async def test_garbage_is_refused_in_words(door: SocketServer, path: Path, counter: Counter, garbage: bytes) -> None:
    reply = await exchange(path, garbage)
    assert reply.startswith(b"PLB1" + struct.pack("<I", 1))
    assert b'"code":4' in reply
    assert not counter.asked
    assert await exchange(path, REQUEST) == ANSWER  # and the next is served


@pytest.mark.parametrize("sent", [b"", b"PL", REQUEST[:8], REQUEST[:-1]])
async def test_half_a_request_is_none(door: SocketServer, path: Path, counter: Counter, sent: bytes) -> None:
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    await writer.drain()
    writer.close()
    assert await exchange(path, REQUEST) == ANSWER
    assert counter.asked == [FRAME]
    assert not counter.abandoned


async def test_many_idle_connections_delay_no_request(door: SocketServer, path: Path) -> None:
    idle = [await asyncio.open_unix_connection(str(path)) for _ in range(200)]
    assert await exchange(path, REQUEST) == ANSWER
    for _, writer in idle:
        writer.close()


async def test_a_client_that_disconnects_early_abandons_its_request(
    door: SocketServer, path: Path, counter: Counter
) -> None:
    counter.let.clear()
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(REQUEST)
    await until(lambda: counter.asked)
    writer.close()
    await until(lambda: counter.abandoned == [FRAME])
    counter.let.set()
    assert await exchange(path, REQUEST) == ANSWER
    assert len(counter.handed_out) == 1


async def test_closing_ends_waiting_requests_without_marking_them_abandoned(
    door: SocketServer, path: Path, counter: Counter
) -> None:
    counter.let.clear()
    asking = asyncio.create_task(exchange(path, REQUEST))
    await until(lambda: counter.asked)
    await door.close()
    assert await asking == b""
    assert "worker.sock" not in os.listdir(path.parent)
    assert not counter.abandoned
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(str(path))


async def test_the_socket_is_its_owners_and_stands_in_for_a_stale_one(path: Path, counter: Counter) -> None:
    os.mkdir(path.parent)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    door = SocketServer(path, cast("Requests", counter))
    await door.open()
    assert await exchange(path, REQUEST) == ANSWER
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]
    await door.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
async def test_other_users_are_refused_whatever_the_file_modes(path: Path, counter: Counter) -> None:
    folder = Path("/tmp") / f"plumbline-door-{os.urandom(4).hex()}"  # pytest's own folders are closed to others
    folder.mkdir()
    folder.chmod(0o755)
    door = SocketServer(folder / "worker.sock", cast("Requests", counter))
    try:
        await door.open()
        (folder / "worker.sock").chmod(0o777)
        code = (
            "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5)\n"
            "try: s.sendall(bytes.fromhex(sys.argv[2])); sys.stdout.buffer.write(s.recv(100))\n"
            "except ConnectionError: pass"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, str(folder / "worker.sock"), REQUEST.hex()), stdout=subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert (process.returncode, said) == (0, b"")
        assert not counter.asked
        assert await exchange(folder / "worker.sock", REQUEST) == ANSWER
    finally:
        await door.close()
        folder.rmdir()
