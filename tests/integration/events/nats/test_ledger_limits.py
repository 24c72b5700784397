"""A ledger without room, on its disk or in its stream, and an event that is too large."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.ledger.ledger import LedgerError, LedgerFullError, LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.server import MAX_PAYLOAD, EmbeddedServer
from events.nats.streams import StreamConfig
from events.schema import Stored
from tests.support.nats.jetstream import ONE, everything
from tests.support.stories.events import EventFactory


async def fill_up(ledger: JetStreamLedger) -> tuple[list[Stored], LedgerError]:
    """Append until the ledger refuses; return the appended events and the error."""
    factory, stored = EventFactory(), list[Stored]()
    for number in itertools.count():
        event = factory.note("x" * 50_000 + str(number), ONE)
        try:
            stored.append(Stored(await ledger.append(event), event))
        except LedgerError as error:
            return stored, error
    raise AssertionError("unreachable")


async def test_full_stream_is_reported_and_recovers_with_room(server: EmbeddedServer) -> None:
    config = StreamConfig(name="NODE", max_bytes=1_000_000)
    ledger = await JetStreamLedger.connect(server.address, config=config)
    stored, error = await fill_up(ledger)
    assert isinstance(error, LedgerFullError)
    assert "free space on its disk, or raise its limit" in str(error)
    assert await everything(ledger) == stored
    await ledger.purge("plumbline.ev.>", stored[4].sequence)
    event = EventFactory("later").note()
    last = Stored(await ledger.append(event), event)
    assert await everything(ledger) == [*stored[5:], last]
    await ledger.close()


async def test_store_at_its_limit_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run", max_store=1_000_000)
    server.start()
    try:
        ledger = await JetStreamLedger.connect(server.address)
        stored, error = await fill_up(ledger)
        assert isinstance(error, LedgerFullError)
        assert await everything(ledger) == stored
        await ledger.close()
    finally:
        server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "plumbline-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_full_disk_is_reported_and_loses_no_acknowledged_event(small_disk: Path, tmp_path: Path) -> None:
    ballast = small_disk / "ballast"
    server = EmbeddedServer(small_disk / "store", tmp_path / "run")
    server.start()
    try:
        ledger = await JetStreamLedger.connect(server.address, patience=1.0)
        # Another process fills the disk after the start: the server uses only a part of what was free then.
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 700_000))
        stored, error = await fill_up(ledger)
        assert isinstance(error, LedgerFullError | LedgerUnavailableError)
        assert "disk" in str(error)
        assert len(stored) > 5
        with pytest.raises(LedgerError, match="disk"):
            await ledger.append(EventFactory("still full").note())
        assert not server.healthy()
        ballast.unlink()
        server.stop()
        server.start()
        assert server.healthy()
        kept = {entry.event.id: entry for entry in await everything(ledger)}
        assert [kept[entry.event.id] for entry in stored] == stored
        assert await ledger.append(EventFactory("room again").note()) > stored[-1].sequence
        await ledger.close()
    finally:
        server.stop()


async def test_event_above_the_servers_limit_is_refused_at_once(jetstream: JetStreamLedger) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(LedgerError, match="max_payload"):
        await jetstream.append(EventFactory().note("x" * MAX_PAYLOAD))
    with pytest.raises(LedgerError, match="too long"):
        await jetstream.append(EventFactory("n" * 2000).note())
    assert asyncio.get_running_loop().time() - started < 1
    assert jetstream.generation == 1
    assert await jetstream.append(EventFactory().note()) == 1
