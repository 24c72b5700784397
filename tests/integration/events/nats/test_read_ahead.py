"""Reading a ledger in a separate process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import aclosing
from pathlib import Path

import nats
import pytest

from events.ledger.ledger import LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.read_ahead import ReadAhead
from events.nats.server import EmbeddedServer
from events.process.settings import LedgerAddress
from events.schema import Event
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND


def readers(of: int | None = None) -> list[int]:
    """IDs of the reader processes of this process, or of *parent*."""
    pid = of or os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(pid) for pid in children if b"events.nats.read_ahead" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # empty: a zombie
    except FileNotFoundError:
        return False


async def fill(ledger: JetStreamLedger, count: int, size: int = 0) -> list[Event]:
    factory = EventFactory()
    events = [factory.note("x" * size, container(1)) for _ in range(count)]
    for first in range(0, count, 64):
        await asyncio.gather(*(ledger.append(event) for event in events[first : first + 64]))
    return events


async def test_read_ahead_yields_the_ledgers_events(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1500)
    client = await nats.connect(server.url, token=server.token)
    await client.jetstream().publish("plumbline.ev.x.y.Torn", b'{"half')
    await client.close()
    await jetstream.append(EventFactory("later").note("after it", container(2)))
    ahead = ReadAhead(jetstream, server.address)
    assert await ahead.last_sequence() == 1502
    for subject, after in (("plumbline.ev.>", 0), ("plumbline.ev.>", 700), (f"plumbline.ev.*.{container(2)}.>", 0)):
        expected = [stored async for stored in jetstream.read(subject, after)]
        assert [stored async for stored in ahead.read(subject, after)] == expected
    assert [stored async for stored in ahead.read(after=1502)] == []
    assert readers() == []


async def test_read_ahead_waits_when_its_buffer_is_full(fast_server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(fast_server.address)
    events = await fill(ledger, 300, size=100_000)
    found: list[Event] = []
    async with aclosing(ReadAhead(ledger, fast_server.address).read()) as stored:
        async for _, event in stored:
            if not found:
                await asyncio.sleep(0.5)  # meanwhile it fills its buffer
            found.append(event)
    await ledger.close()
    assert found == events


async def test_reader_closed_early_leaves_no_process(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 100)
    async with aclosing(ReadAhead(jetstream, server.address).read()) as events:
        async for sequence, _ in events:
            assert sequence == 1
            assert len(readers()) == 1
            break
    assert readers() == []


async def test_killed_process_is_an_error_not_the_end(fast_server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(fast_server.address)
    await fill(ledger, 300, size=100_000)
    events = ReadAhead(ledger, fast_server.address).read()
    await anext(events)
    os.kill(readers()[0], signal.SIGKILL)
    with pytest.raises(LedgerUnavailableError, match="ended early"):
        [stored async for stored in events]
    await ledger.close()


async def test_refused_connection_is_one_sentence(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    with pytest.raises(LedgerUnavailableError, match="rejects the token"):
        [stored async for stored in ReadAhead(jetstream, LedgerAddress(server.url, "wrong")).read()]


LEFT = """
import asyncio, sys, time
from events.nats.read_ahead import ReadAhead
from events.nats.ledger import JetStreamLedger
from events.process.settings import LedgerAddress

async def main(url, token):
    ledger = await JetStreamLedger.connect(LedgerAddress(url, token))
    await anext(ReadAhead(ledger, LedgerAddress(url, token)).read())
    print("reading", flush=True)
    time.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_process_ends_with_its_parent(fast_server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(fast_server.address)
    await fill(ledger, 300, size=100_000)
    await ledger.close()
    command = (sys.executable, "-c", LEFT, fast_server.url, fast_server.token)
    asking = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    assert asking.stdout is not None
    assert asking.stderr is not None
    while b"reading" not in (line := await asking.stdout.readline()):
        assert line
    (reading,) = readers(asking.pid)
    asking.kill()
    await asking.wait()
    async with asyncio.timeout(BOUND):
        said = await asking.stderr.read()  # which it shares, so this ends when both have
    assert not runs(reading)
    assert b"Traceback" not in said
