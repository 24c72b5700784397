from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

import msgspec
import pytest

from events import subjects
from events.ledger.ledger import Ledger, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.nats.ledger import JetStreamLedger
from events.schema import Event, Pod, Stored, encode
from reconciler.projection.sql.engine import ProjectionError
from reconciler.status.folder_sink import FolderSink
from tests.support.reconciler.rows import folded, stored_in
from tests.support.reconciler.running import running
from tests.support.stories.node import Node, busy_day
from tests.support.waiting import BOUND


async def fill(ledger: Ledger, events: Iterable[Event]) -> int:
    last = 0
    for event in events:
        last = await ledger.append(event)
    return last


async def everything(ledger: Ledger) -> list[Stored]:
    return [stored async for stored in ledger.read()]


class ObservedLedger(MemoryLedger):
    """A ledger that records the start of each read, and can be absent for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.read_after: list[int] = []
        self.followed_after: list[int] = []
        self.failures_left = 0

    async def last_sequence(self) -> int:
        if self.failures_left:
            self.failures_left -= 1
            raise LedgerUnavailableError("the ledger is unavailable")
        return await super().last_sequence()

    async def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        self.read_after.append(after)
        async for stored in super().read(subject, after):
            yield stored

    async def follow(
        self, patterns: tuple[str, ...] = ("plumbline.ev.>",), after: int = 0
    ) -> AsyncGenerator[Stored, None]:
        self.followed_after.append(after)
        async for stored in super().follow(patterns, after):
            yield stored


async def test_old_and_new_events_are_projected(ledger: JetStreamLedger, tmp_path: Path) -> None:
    node = Node()
    there = await fill(ledger, busy_day(10, node))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(there)
        last = await fill(ledger, node.attach("e" * 64, Pod("d", "p", "u")))
        await run.at(last)
    assert stored_in(tmp_path / "x.db") == folded(await everything(ledger))


async def test_a_restart_reads_only_new_events(tmp_path: Path) -> None:
    ledger, node = ObservedLedger(), Node()
    first = await fill(ledger, busy_day(40, node))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.until(lambda: bool(ledger.followed_after))
    last = await fill(ledger, node.attach("e" * 64, Pod("d", "p", "u")))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.until(lambda: len(ledger.followed_after) == 2)
        counted = sum(
            sample.value
            for metric in run.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "plumbline_reconciler_events_total"
        )
    assert ledger.read_after == [0, first]
    assert ledger.followed_after == [first, last]
    assert counted == last - first
    assert stored_in(tmp_path / "x.db") == folded(await everything(ledger))


async def test_rows_remain_after_the_ledger_deleted_their_events(tmp_path: Path) -> None:
    ledger, node = MemoryLedger(), Node()
    last = await fill(ledger, busy_day(10, node))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
    events = await everything(ledger)
    await ledger.purge("plumbline.ev.>", last)
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
        last = await ledger.append(node.start())
        await run.at(last)
    assert stored_in(tmp_path / "x.db") == folded([*events, *await everything(ledger)])


async def test_applied_sequence_is_known_after_a_restart_without_events(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    last = await fill(ledger, busy_day(3))
    for _ in range(2):
        async with running(ledger, tmp_path / "x.db") as run:
            await run.at(last)
            assert (run.value("applied_sequence"), run.value("lag_events")) == (last, 0)


async def test_a_purged_ledger_is_not_behind_the_projection(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    last = await fill(ledger, busy_day(3))
    await ledger.purge("plumbline.ev.>", last)
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
        assert run.value("applied_sequence") == last
    (place,) = stored_in(tmp_path / "x.db")["position"]
    assert dict(place) == {"ledger": "NODE", "sequence": last, "election": 0, "forgotten": ""}


async def test_a_ledger_shorter_than_the_database_is_refused(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    last = await fill(ledger, busy_day(3))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
    async with running(MemoryLedger(), tmp_path / "x.db") as run:
        with pytest.raises(ProjectionError, match=f"has {last} events of the ledger, but the ledger has only 0"):
            await run.task


async def test_the_start_waits_for_an_absent_ledger(tmp_path: Path) -> None:
    ledger = ObservedLedger()
    last = await fill(ledger, busy_day(3))
    ledger.failures_left = 2
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
    assert stored_in(tmp_path / "x.db") == folded(await everything(ledger))


async def test_an_absent_database_delays_but_loses_no_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, node = MemoryLedger(), Node()
    last = await fill(ledger, busy_day(3, node))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
        blocker = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        last = await fill(ledger, node.attach("e" * 64, Pod("d", "p", "u")))
        said = ""
        async with asyncio.timeout(BOUND):
            while "database_away" not in said:
                await asyncio.wait({run.task}, timeout=0.05)
                said += capsys.readouterr().out
        assert run.reconciler.sequence < last
        blocker.execute("ROLLBACK")
        blocker.close()
        await run.at(last)
    assert stored_in(tmp_path / "x.db") == folded(await everything(ledger))


async def test_lag_is_the_number_of_unprojected_events(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    last = await fill(ledger, busy_day(2))
    async with running(ledger, tmp_path / "x.db") as run:
        await run.at(last)
        assert run.value("lag_events") == 0
        assert run.value("batch_seconds_count") == 1
        assert run.value("events_total", type="AttachPlanned") == 2
        assert run.value("events_total", type="unknown") == 0


WEB = Pod("shop", "web", "u2")


async def test_forged_event_publishes_no_status_and_is_no_lag(tmp_path: Path, jetstream: JetStreamLedger) -> None:
    """A node publishes another node's events under its own subjects, and under those of the other's sandbox."""
    mallory, victim = Node("node-1"), Node("node-2")
    last = await fill(jetstream, mallory.attach("a" * 64, Pod("shop", "mine", "u1")))
    last = await fill(jetstream, victim.attach("b" * 64, WEB))
    for event in [*victim.attach("c" * 64, Pod("shop", "web", "u3")), *victim.detach("b" * 64, WEB)]:
        subject = subjects.subject(mallory.node, event.sandbox, event.type)
        await jetstream.connection.publish(subject, encode(event))
    taken = [msgspec.structs.replace(event, node=mallory.node) for event in victim.detach("b" * 64, WEB)]
    await fill(jetstream, taken)
    await jetstream.connection.request("plumbline.ev.node-1.-.Torn", b"{}", action="store", each=BOUND)
    async with running(jetstream, tmp_path / "x.db", FolderSink(tmp_path)) as run:
        published = tmp_path / "status" / "shop" / "web.json"
        await run.until(lambda: (tmp_path / "status" / "shop" / "mine.json").exists() and published.exists())
        await run.at(last)
        assert json.loads(published.read_text())["uid"] == "u2"
        await run.until(lambda: run.value("lag_events") == 0)
        assert run.value("anomalies_total") == len(taken)
    live = {row["pod"] for row in map(dict, stored_in(tmp_path / "x.db")["sandboxes"]) if row["live"]}
    assert live == {"mine", "web"}
