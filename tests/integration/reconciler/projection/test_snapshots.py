from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from events.ledger.memory import MemoryLedger
from events.schema import Pod, Stored
from reconciler.follow.periodic_snapshots import PeriodicSnapshots, SnapshotBootstrap, SnapshotFolder
from reconciler.metrics import Metrics
from reconciler.projection.rebuild.snapshot import fill, inspect, save
from reconciler.projection.sql.engine import DatabaseUnavailableError, open_engine, transaction
from reconciler.projection.sql.tables import nodes
from reconciler.projection.sql.writer import copy_in
from reconciler.projection.store import Store
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import folded, stored_in
from tests.support.reconciler.running import running
from tests.support.stories.node import Node, busy_day
from tests.support.waiting import until


async def filled(pods: int = 20, node: Node | None = None) -> MemoryLedger:
    ledger = MemoryLedger()
    for event in busy_day(pods, node or Node()):
        await ledger.append(event)
    return ledger


async def everything(ledger: MemoryLedger) -> list[Stored]:
    return [stored async for stored in ledger.read()]


def of_live(events: list[Stored]) -> list[object]:
    return [row for row in folded(events)["sandboxes"] if dict(row)["live"]]


@pytest.fixture
async def written(tmp_path: Path, empty_database: bytes) -> tuple[MemoryLedger, Path]:
    """A ledger, and a folder with a snapshot of it."""
    ledger, folder = await filled(), tmp_path / "snapshots"
    (tmp_path / "first.db").write_bytes(empty_database)
    url = f"sqlite:///{tmp_path}/first.db"
    with closing(Store(url, "NODE")) as store:
        store.apply(await everything(ledger))
    SnapshotFolder(folder, 3).write(url)
    return ledger, folder


async def test_an_empty_start_uses_the_newest_of_the_kept_snapshots(
    database: str, empty_database: bytes, tmp_path: Path
) -> None:
    node = Node()
    ledger, kept, last = await filled(node=node), SnapshotFolder(tmp_path / "snapshots", 2), 0
    async with running(
        ledger, database, also=lambda metrics: [PeriodicSnapshots(kept, database, 0.01, metrics, first=0.0)]
    ) as run:
        for number in range(4):
            for event in node.attach(f"{number}" * 64, Pod("d", f"p{number}", "u")):
                await ledger.append(event)
            last = await ledger.last_sequence()
            await run.until(lambda last=last: any(int(path.stem) == last for path in kept.newest_first()))
        await run.until(lambda: len(kept.newest_first()) == 2)
        assert (run.value("snapshot_at") or 0) > 0
    restarted = PeriodicSnapshots(kept, database, 3600.0, metrics := Metrics())
    waiting = asyncio.create_task(restarted.run())
    await until(lambda: metrics.registry.get_sample_value("plumbline_reconciler_snapshot_at"), waiting)
    waiting.cancel()
    events = await everything(ledger)
    await ledger.purge("plumbline.ev.>", len(events))
    (tmp_path / "y.db").write_bytes(empty_database)
    async with running(ledger, tmp_path / "y.db", bootstrap=SnapshotBootstrap(kept, ledger, "NODE")) as run:
        for event in node.attach("e" * 64, Pod("d", "new", "u")):
            last = await ledger.append(event)
        await run.at(last)
    assert stored_in(tmp_path / "y.db")["sandboxes"] == of_live(events + await everything(ledger))


async def test_a_shared_database_starts_from_a_snapshot_too(database: str, written: tuple[MemoryLedger, Path]) -> None:
    ledger, folder = written
    with closing(Store(database, "NODE")) as store:
        store.claim(7)  # the first act of every winner
    async with running(ledger, database, bootstrap=SnapshotBootstrap(SnapshotFolder(folder, 3), ledger, "NODE")) as run:
        await run.at(await ledger.last_sequence())
    assert stored_in(database)["sandboxes"] == of_live(await everything(ledger))
    assert dict(stored_in(database)["position"][0])["election"] == 7


@pytest.mark.parametrize("newest", ["torn", "other stream", "ahead", "other events", "nothing"])
async def test_torn_and_foreign_snapshots_are_skipped(
    written: tuple[MemoryLedger, Path], empty_database: bytes, tmp_path: Path, newest: str
) -> None:
    ledger, folder = written
    path, url = folder / f"{10**9:020}.snapshot", f"sqlite:///{tmp_path}/other.db"
    (tmp_path / "other.db").write_bytes(empty_database)
    events = await everything(ledger)
    other = await everything(await filled(node=Node("node-2")))
    with closing(Store(url, "LEDGER" if newest == "other stream" else "NODE")) as store:
        if newest == "ahead":
            store.apply([*events, *(Stored(sequence + len(events), event) for sequence, event in events)])
        elif newest != "nothing":
            store.apply(other if newest == "other events" else events)
    save(url, path)
    if newest == "torn":
        os.truncate(path, path.stat().st_size // 2)
    (tmp_path / "x.db").write_bytes(empty_database)
    bootstrap = SnapshotBootstrap(SnapshotFolder(folder, 3), ledger, "NODE")
    async with running(ledger, tmp_path / "x.db", bootstrap=bootstrap) as run:
        await run.at(len(events))
    tables = stored_in(tmp_path / "x.db")
    assert tables["sandboxes"] == of_live(events), "the older one, which is right, was not used"


async def test_a_snapshot_never_overwrites_rows(written: tuple[MemoryLedger, Path], database: str) -> None:
    ledger, folder = written
    events = await everything(ledger)
    (path,) = SnapshotFolder(folder, 3).newest_first()
    assert inspect(path) == inspect(path)
    with closing(Store(database, "NODE")) as store:
        store.apply(events[:7])
        store.fill_if_empty(lambda connection: fill(path, connection))
        assert store.position() == 7
        store.apply(events)
    assert stored_in(database) == folded(events)


async def test_names_that_the_database_cannot_hold_do_not_block_a_snapshot(
    database: str, empty_database: bytes, tmp_path: Path
) -> None:
    odd = Pod("d\0", "p\\u0000\t\\N", "u")
    (tmp_path / "first.db").write_bytes(empty_database)
    with closing(Store(f"sqlite:///{tmp_path}/first.db", "NODE")) as store:
        store.apply([Stored(n, event) for n, event in enumerate(Node().attach("a" * 64, odd), 1)])
        expected = [str(pod).replace("\0", "\0" if "sqlite" in database else "\ufffd") for pod, _ in store.live_pods()]
    save(f"sqlite:///{tmp_path}/first.db", tmp_path / "snapshot")
    with closing(Store(database, "NODE")) as store:
        store.fill_if_empty(lambda connection: fill(tmp_path / "snapshot", connection))
        assert [str(pod) for pod, _ in store.live_pods()] == expected
        assert [box.pod for boxes in store.map_live_pods(lambda _, boxes, __: boxes) for box in boxes] == [odd]


@pytest.mark.parametrize("looked_at", [False, True])
async def test_a_file_with_a_reader_is_filled_and_has_a_wal_afterwards(
    written: tuple[MemoryLedger, Path], empty_database: bytes, tmp_path: Path, looked_at: bool
) -> None:
    ledger, folder = written
    (path,), file = SnapshotFolder(folder, 3).newest_first(), tmp_path / "x.db"
    file.write_bytes(empty_database)
    with closing(sqlite3.connect(file)) as reader, closing(Store(f"sqlite:///{file}", "NODE")) as store:
        if looked_at:
            assert reader.execute("SELECT count(*) FROM sandboxes").fetchone() == (0,)
        store.fill_if_empty(lambda connection: fill(path, connection))
        assert store.position() == inspect(path).sequence
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert stored_in(file)["sandboxes"] == of_live(await everything(ledger))


async def test_a_postgresql_lost_during_the_fill_stays_empty(
    postgres: Postgres, empty_postgres_database: str, written: tuple[MemoryLedger, Path]
) -> None:
    url = postgres.url(postgres.database(empty_postgres_database))
    (path,) = SnapshotFolder(written[1], 3).newest_first()

    def rows(engine: sa.Engine) -> Iterator[tuple[str, int, int, str, str, int]]:
        yield "one", 1, 1, "", "", 1
        with engine.begin() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%'"))
        yield from (("x" * 1000, number, 1, "", "", 1) for number in range(100_000))

    engine = open_engine(url)
    with (
        pytest.raises(DatabaseUnavailableError, match=r"connection is lost|terminating connection"),
        transaction(engine) as connection,
    ):
        copy_in(connection, nodes, rows(engine))
    engine.dispose()
    with closing(Store(url, "NODE")) as store:
        assert store.position() == 0
        store.fill_if_empty(lambda connection: fill(path, connection))
        assert store.position() == inspect(path).sequence


async def test_an_unwritable_snapshot_folder_stops_nothing(tmp_path: Path, database: str) -> None:
    (tmp_path / "file").write_text("")
    ledger, kept = await filled(5), SnapshotFolder(tmp_path / "file" / "snapshots", 1)
    async with running(
        ledger, database, also=lambda metrics: [PeriodicSnapshots(kept, database, 0.01, metrics, first=0.0)]
    ) as run:
        await run.until(lambda: (run.value("snapshots_failed_total") or 0) > 1)
        await run.at(await ledger.last_sequence())
