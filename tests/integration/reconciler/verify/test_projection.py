"""Verification of the projection: no false alarms after deletion, and a report of every changed row."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.exit_codes import ExitCode
from events.ledger.memory import MemoryLedger
from events.schema import (
    ContainerId,
    Event,
    EventId,
    NodeName,
    Pod,
    StatusPublished,
    Stored,
)
from reconciler.projection.store import Store
from reconciler.verify import spill_store
from reconciler.verify.report import Kind, Report, lines
from reconciler.verify.run import verify
from tests.support.stories.events import container
from tests.support.stories.node import Node, busy_day
from tests.support.stories.values import ETH0


async def fill(ledger: MemoryLedger, events: Iterable[Event]) -> None:
    for event in events:
        await ledger.append(event)


def days() -> list[Event]:
    """Two nodes, drift, leaks, and published statuses."""
    events: list[Event] = []
    for name in ("node-1", "node-2"):
        node = Node(name)
        events += busy_day(12, node) if name == "node-1" else node.attach(container(99), Pod("shop", "stays", "u"))
        events += node.attach(name[-1] * 64, Pod("shop", f"drifts-{name}", f"u-{name}"))
        events += node.drift(name[-1] * 64, Pod("shop", f"drifts-{name}", f"u-{name}"))
        events += node.leak("f" * 64)
        events += node.leak("e" * 64, ends="reclaimed")
    reconciler = Node("")
    data = StatusPublished(node=NodeName("node-1"), ifname=ETH0, pod=Pod("shop", "web", "u"), text="[]")
    events.append(reconciler.event(data, "1" * 64, "intent"))
    return events


async def projected(ledger: MemoryLedger, path: Path, size: int = 50) -> None:
    store = Store(f"sqlite:///{path}", "NODE")
    batch: list[Stored] = []
    async for stored in ledger.read():
        batch.append(stored)
        if len(batch) == size:
            store.apply(batch)
            batch = []
    store.apply(batch)
    store.close()


@pytest.fixture
def path(tmp_path: Path, empty_database: bytes) -> Path:
    path = tmp_path / "x.db"
    path.write_bytes(empty_database)
    return path


@pytest.fixture
async def ledger(path: Path) -> MemoryLedger:
    ledger = MemoryLedger()
    await fill(ledger, days())
    await projected(ledger, path)
    return ledger


async def check(ledger: MemoryLedger, path: Path, node: str = "") -> Report:
    return await verify(ledger, "NODE", f"sqlite:///{path}", node=NodeName(node))


def tamper(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()


@pytest.mark.parametrize("node", ["", "node-1"])
async def test_a_true_projection_has_no_differences(ledger: MemoryLedger, path: Path, node: str) -> None:
    report = await check(ledger, path, node)
    assert (report.exit_code, report.differences, report.unseen, report.unproved) == (0, (), (), 0)
    assert report.sequence == await ledger.last_sequence()
    assert report.sandboxes == (3 if node else 5)
    assert lines(report)[-1].startswith("true (")


async def test_a_tiny_memory_limit_changes_no_result(
    ledger: MemoryLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_store.SpillStore.__init__, "__defaults__", (1,))
    assert (await check(ledger, path)).exit_code == 0


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE sandboxes SET phase = 'attached' WHERE phase = 'detached'", "in phase: "),
        ("UPDATE sandboxes SET node = 'node-9' WHERE live", "in node: "),
        ("UPDATE sandboxes SET fold = (SELECT fold FROM sandboxes WHERE NOT live) WHERE live", "in fold: "),
        ("UPDATE sandboxes SET intent = 'other'", "in intent: "),
        ("UPDATE sandboxes SET silent = 1", "in silent: "),
        ("UPDATE sandboxes SET fold = x'00' WHERE live", "in fold: "),
        ("UPDATE sandboxes SET drifting = 0 WHERE drifting", "in drifting: "),
        ("DELETE FROM sandboxes WHERE live", "lacks this sandbox, which is attached"),
        (
            "UPDATE sandboxes SET container_id = 'bad' || container_id WHERE live",
            "is live in the database and unknown to the ledger",
        ),
        ("UPDATE attachments SET addresses = '10.9.9.9/24'", "in attachments: "),
        ("DELETE FROM attachments", "in attachments: "),
        ("DELETE FROM addresses", "in addresses: "),
        ("UPDATE addresses SET until = '', until_sequence = 0", "in addresses: "),
        ("UPDATE addresses SET address = '10.9.9.9'", "in addresses: "),
        ("DELETE FROM pending", "is open in the ledger and not in the database"),
        ("UPDATE pending SET event_id = 'x' || event_id", "is open in the database and not in the ledger"),
        ("UPDATE nodes SET boot_id = 'other'", "differs from the ledger in boot_id"),
        ("UPDATE nodes SET epoch = 0", "differs from the ledger in epoch"),
        ("DELETE FROM nodes", "the database lacks node node-1"),
        ("UPDATE leaks SET what = '10.0.0.1'", "differs from the ledger in what"),
        ("DELETE FROM leaks", "is open in the ledger and not in the database"),
        ("UPDATE leaks SET leak_id = 'x'", "is open in the database and not in the ledger"),
        ("UPDATE statuses SET text = '[{}]'", "the last published status differs from the ledger in text"),
        ("DELETE FROM statuses", "lacks the record of its published network-status"),
        ("UPDATE position SET sequence = sequence + 100", "but the ledger has only"),
    ],
)
async def test_a_changed_row_is_reported(ledger: MemoryLedger, path: Path, statement: str, words: str) -> None:
    tamper(path, statement)
    report = await check(ledger, path)
    assert report.exit_code == 1
    assert report.counts[Kind.PROJECTION] == len(report.differences) > 0
    assert any(words in each.message for each in report.differences), report.differences
    assert lines(report)[-1].startswith(f"differs: {len(report.differences)} projection")


async def test_a_check_of_one_node_ignores_other_nodes(ledger: MemoryLedger, path: Path) -> None:
    tamper(path, "UPDATE sandboxes SET phase = 'planned' WHERE node = 'node-2'")
    assert (await check(ledger, path, "node-1")).exit_code == 0
    assert {each.node for each in (await check(ledger, path, "node-2")).differences} == {"node-2"}


async def test_deleted_events_make_rows_unproved_not_different(ledger: MemoryLedger, path: Path) -> None:
    gone = container(0)
    assert await ledger.purge(f"plumbline.ev.node-1.{gone}.>", await ledger.last_sequence())
    await fill(ledger, Node("node-1").detach(gone, Pod("shop", "web-0", "uid-0")))  # by its runtime, a week later
    await projected(ledger, path)
    report = await check(ledger, path)
    assert (report.exit_code, report.unproved) == (0, 1)
    assert lines(report)[0].startswith("not proved: 1 rows")


async def test_rows_deleted_by_retention_are_no_difference(ledger: MemoryLedger, path: Path) -> None:
    tamper(path, "DELETE FROM sandboxes WHERE NOT live")
    tamper(path, "DELETE FROM attachments WHERE container_id NOT IN (SELECT container_id FROM sandboxes)")
    assert (await check(ledger, path)).exit_code == 0


async def test_a_lagging_database_is_compared_at_its_position(ledger: MemoryLedger, path: Path) -> None:
    reached = await ledger.last_sequence()
    await fill(ledger, Node("node-3").attach("c" * 64, Pod("shop", "late", "u")))
    report = await check(ledger, path)
    assert (report.exit_code, report.sequence) == (0, reached)


async def test_a_growing_database_is_compared_at_one_instant(ledger: MemoryLedger, path: Path) -> None:
    node, store = Node("node-4"), Store(f"sqlite:///{path}", "NODE")

    async def go_on() -> None:
        for number in range(100, 130):
            for event in node.attach(container(number), Pod("shop", f"w{number}", "u")):
                store.apply([Stored(await ledger.append(event), event)])
                await asyncio.sleep(0)

    writing = asyncio.create_task(go_on())
    reports = [await check(ledger, path) for _ in range(5)]
    await writing
    reports.append(await check(ledger, path))
    store.close()
    assert [report.exit_code for report in reports] == [0] * 6
    assert reports[-1].sequence == await ledger.last_sequence()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'future'", "revision future"),
        ("UPDATE alembic_version SET version_num = '0001'", "older schema"),
        ("UPDATE position SET ledger = 'OTHER'", "projection of the ledger OTHER"),
    ],
)
async def test_an_unreadable_database_is_reported_as_unchecked(
    ledger: MemoryLedger, path: Path, statement: str, words: str
) -> None:
    tamper(path, statement)
    report = await check(ledger, path)
    assert report.exit_code == ExitCode.IN_PART
    assert words in report.unseen[0]
    assert any(line.startswith("not checked: the projection: ") for line in lines(report))


async def test_a_file_that_is_no_database_is_reported_as_unchecked(ledger: MemoryLedger, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is no database, and longer than the head of one would be" * 4)
    report = await check(ledger, tmp_path / "x.db")
    assert report.exit_code == ExitCode.IN_PART
    assert report.unseen[0].startswith("the projection: the database refused a statement (file is not a database)")


async def test_a_missing_database_is_not_created(ledger: MemoryLedger, tmp_path: Path) -> None:
    report = await check(ledger, tmp_path / "none.db")
    assert report.exit_code == ExitCode.IN_PART
    assert "start the reconciler first" in report.unseen[0]
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("seed", range(8))
async def test_contradictory_events_give_no_difference(seed: int, path: Path) -> None:
    """Repeated, reordered, or with unknown causes: projection and replay fold them alike."""
    chance, ledger = random.Random(seed), MemoryLedger()
    events = days()
    for _ in range(40):
        place = chance.randrange(len(events))
        match chance.choice(("double", "lose", "swap", "orphan")):
            case "double":
                odd = events[place]
                changed = [odd.id[:-4] + f"{chance.randrange(16**4):04x}", odd.cause]
                events.insert(place, _renamed(odd, *changed))
            case "lose":
                del events[place]
            case "swap":
                other = chance.randrange(len(events))
                events[place], events[other] = events[other], events[place]
            case _:
                events[place] = _renamed(events[place], events[place].id, "nobody")
    await fill(ledger, events)
    await projected(ledger, path, size=chance.choice((1, 7, 500)))
    report = await check(ledger, path)
    assert report.differences == ()


def _renamed(event: Event, event_id: str, cause: str) -> Event:
    return replace(event, id=EventId(event_id), cause=EventId(cause), sandbox=ContainerId(event.sandbox))


async def forgetful(ledger: MemoryLedger, path: Path, more: Iterable[Event], before: str = "9") -> None:
    """Delete what ended before *before* from the database, then project *more*."""
    store = Store(f"sqlite:///{path}", "NODE")
    while store.forget(before, 3).more:
        pass
    last = await ledger.last_sequence()
    await fill(ledger, more)
    store.apply([stored async for stored in ledger.read(after=last)])
    store.close()


@pytest.mark.parametrize("then", ["nothing", "attach", "detach", "detach begins", "detach fails", "both"])
async def test_events_after_retention_give_no_difference(ledger: MemoryLedger, path: Path, then: str) -> None:
    node, sandbox, pod = Node(), container(1), Pod("shop", "web-1", "uid-1")
    more = {
        "nothing": [],
        "attach": [*node.attach(sandbox, pod)],
        "detach": [*node.detach(sandbox, pod)],
        "detach begins": [*node.detach(sandbox, pod)][:1],
        "detach fails": [*node.detach(sandbox, pod, fails=True)],
        "both": [*node.detach(sandbox, pod), *node.attach(sandbox, pod)],
    }[then]
    await forgetful(ledger, path, [replace(event, id=EventId(f"again-{event.id}")) for event in more])
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sandboxes WHERE NOT live").fetchone()[0] <= 1
    connection.close()
    report = await check(ledger, path)
    assert (report.exit_code, report.differences) == (0, ())


async def test_a_missing_recent_status_row_is_reported_despite_retention(ledger: MemoryLedger, path: Path) -> None:
    await forgetful(ledger, path, [], "2000")
    tamper(path, "DELETE FROM statuses")
    report = await check(ledger, path)
    assert report.counts[Kind.PROJECTION] == 1
