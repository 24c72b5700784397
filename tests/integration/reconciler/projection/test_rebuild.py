from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from events.ledger.memory import MemoryLedger
from events.nats.ledger import JetStreamLedger
from events.schema import (
    Pod,
    Stored,
)
from reconciler.projection.rebuild.rebuild import rebuild
from reconciler.projection.rebuild.shadow_database import ShadowDatabase
from reconciler.projection.rebuild.snapshot import restore, save
from reconciler.projection.sql.engine import ProjectionError, open_engine
from reconciler.projection.sql.tables import metadata, sandboxes
from reconciler.projection.store import Store
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import folded, stored_in
from tests.support.reconciler.running import running
from tests.support.run.fork_server import plumbline
from tests.support.stories.node import Node, busy_day


def nothing(_done: int, _end: int) -> None:
    pass


async def filled(ledger: MemoryLedger, pods: int, node: Node | None = None) -> list[Stored]:
    for event in busy_day(pods, node):
        await ledger.append(event)
    return [stored async for stored in ledger.read()]


def spoil(url: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).values(pod="another"))
    engine.dispose()


async def test_a_rebuild_replaces_the_old_rows(database: str) -> None:
    ledger = MemoryLedger()
    events = await filled(ledger, 12)
    with closing(Store(database, "NODE")) as store:
        store.apply(events[:40])
    spoil(database)
    reported: list[tuple[int, int]] = []
    done = await rebuild(database, ledger, "NODE", lambda *progress: reported.append(progress))
    assert done == len(events)
    assert reported[-1] == (done, done)
    assert stored_in(database) == folded(events)
    await rebuild(database, ledger, "NODE", nothing)
    assert stored_in(database) == folded(events)


def indexes_of(url: str) -> set[str | None]:
    """The names of indexes and primary keys."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {index["name"] for table in metadata.tables for index in inspector.get_indexes(table)}
    found |= {str(inspector.get_pk_constraint(table)) for table in metadata.tables}
    engine.dispose()
    return found


async def test_a_rebuilt_database_has_every_index(database: str, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    await filled(ledger, 12)
    before = indexes_of(database)
    await rebuild(database, ledger, "NODE", nothing)
    assert indexes_of(database) == before >= {"sandboxes_live", "sandboxes_closed", "addresses_held"}
    save(database, tmp_path / "snapshot")
    await rebuild(database, ledger, "NODE", nothing, tmp_path / "snapshot")
    assert indexes_of(database) == before


async def test_a_reconciler_continues_after_a_rebuild(database: str) -> None:
    ledger, node = MemoryLedger(), Node()
    events = await filled(ledger, 6, node)
    async with running(ledger, database) as run:
        await run.at(len(events))
        spoil(database)
        await rebuild(database, ledger, "NODE", nothing)
        last = 0
        for event in node.attach("e" * 64, Pod("d", "p", "u")):
            last = await ledger.append(event)
        await run.at(last)
    assert stored_in(database) == folded([stored async for stored in ledger.read()])


class Growing(MemoryLedger):
    """A ledger that had only half of its events at the first read."""

    def __init__(self) -> None:
        super().__init__()
        self.was_read = False

    async def last_sequence(self) -> int:
        end = await super().last_sequence()
        return end if self.was_read else end // 2

    async def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        end = await self.last_sequence()
        async for stored in super().read(subject, after):
            if stored.sequence <= end:
                yield stored
        self.was_read = True


async def test_events_during_a_rebuild_are_read_before_the_swap_ends(database: str) -> None:
    ledger = Growing()
    last = 0
    for event in busy_day(12):
        last = await ledger.append(event)
    events = [stored async for stored in MemoryLedger.read(ledger)]
    assert len(events) == last
    with closing(Store(database, "NODE")) as store:
        store.apply(events)
    assert await rebuild(database, ledger, "NODE", nothing) == len(events)
    assert stored_in(database) == folded(events)


async def test_a_snapshot_replaces_deleted_events_of_the_ledger(database: str, tmp_path: Path) -> None:
    ledger, node = MemoryLedger(), Node()
    events = await filled(ledger, 12, node)
    with closing(Store(database, "NODE")) as store:
        store.apply(events)
        live = [box for _, boxes in store.map_live_pods(lambda pod, boxes, _: (pod, boxes)) for box in boxes]
    assert save(database, tmp_path / "snapshot") == len(events)
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("snap")) == ["snapshot"]
    await ledger.purge("plumbline.ev.>", len(events))
    for event in node.detach(live[0].key.container_id, live[0].pod, ("k8s-pod-network", "default/storage")):
        await ledger.append(event)
    await rebuild(database, ledger, "NODE", nothing, tmp_path / "snapshot")
    with closing(Store(database, "NODE")) as store:
        after = [box for _, boxes in store.map_live_pods(lambda pod, boxes, _: (pod, boxes)) for box in boxes]
        assert store.position() == await ledger.last_sequence()
    assert after == live[1:]


async def test_a_failed_rebuild_leaves_the_database_unchanged(database: str, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    events = await filled(ledger, 3)
    with closing(Store(database, "NODE")) as store:
        store.apply(events)
    with pytest.raises(ProjectionError, match="there is no snapshot"):
        await rebuild(database, ledger, "NODE", nothing, tmp_path / "missing")
    save(database, tmp_path / "snapshot")
    with pytest.raises(ProjectionError, match="it is of another"):
        await rebuild(database, MemoryLedger(), "NODE", nothing, tmp_path / "snapshot")
    assert stored_in(database) == folded(events)
    assert [name for name in os.listdir(tmp_path) if "rebuild" in name or "unfinished" in name] == []


BEGUN = """
import sys, time
from reconciler.projection.rebuild.shadow_database import ShadowDatabase
beside = ShadowDatabase(sys.argv[1])
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def begun(url: str) -> subprocess.Popen[bytes]:
    """A rebuild that has only started."""
    process = subprocess.Popen([sys.executable, "-c", BEGUN, url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


async def test_the_next_rebuild_removes_files_of_a_killed_one(database: str, temporary: Path) -> None:
    with begun(database) as process:
        process.kill()
    ledger = MemoryLedger()
    events = await filled(ledger, 3)
    await rebuild(database, ledger, "NODE", nothing)
    assert not os.listdir(temporary)
    assert stored_in(database) == folded(events)


def test_a_rebuild_keeps_files_in_use_and_foreign_files(temporary: Path, postgres: Postgres) -> None:
    (temporary / "plumbline-rebuild-file").touch()
    (temporary / "elsewhere").mkdir()
    (temporary / "plumbline-rebuild-link").symlink_to(temporary / "elsewhere")
    somebodys = temporary / "plumbline-rebuild-somebodys"
    somebodys.mkdir()
    os.chown(somebodys, 65534, 65534)
    with begun(postgres.url(postgres.database())) as process:
        there = set(os.listdir(temporary))
        assert len(there) == 5
        ShadowDatabase(postgres.url(postgres.database())).close()
        assert set(os.listdir(temporary)) == there
        process.kill()


@pytest.mark.parametrize("spoilt", ["torn", "longer", "foreign", "empty", "scrambled"])
async def test_an_incomplete_snapshot_is_refused_in_one_sentence(
    empty_database: bytes, tmp_path: Path, spoilt: str
) -> None:
    url, path = f"sqlite:///{tmp_path}/x.db", tmp_path / "snapshot"
    (tmp_path / "x.db").write_bytes(empty_database)
    with closing(Store(url, "NODE")) as store:
        store.apply(await filled(MemoryLedger(), 30))
    save(url, path)
    whole = path.read_bytes()
    scrambled = whole[:100] + b"\xff" * (len(whole) - 100)
    path.write_bytes(
        {
            "torn": whole[: len(whole) // 2],
            "longer": whole + b"x",
            "foreign": b"{}",
            "empty": b"",
            "scrambled": scrambled,
        }[spoilt]
    )
    with pytest.raises(ProjectionError, match=f"{path} (is not a complete snapshot|can't be used)") as refused:
        restore(path, f"sqlite:///{tmp_path}/y.db")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("server")
async def test_rebuild_and_snapshot_on_the_command_line(ledger: JetStreamLedger, tmp_path: Path) -> None:
    last = 0
    for event in busy_day(5):
        last = await ledger.append(event)
    config = tmp_path / "plumbline.json"
    config.write_text(f'{{"stateDir": "{tmp_path}", "runDir": "{tmp_path}/run"}}')

    def call(*arguments: str) -> tuple[int, str]:
        done = plumbline(config, *arguments)
        return done.returncode, done.stdout + done.stderr

    code, said = await asyncio.to_thread(call, "rebuild")
    assert (code, f"rebuilt up to sequence {last}" in said) == (0, True), said
    code, said = await asyncio.to_thread(call, "snapshot", str(tmp_path / "s"))
    assert (code, said) == (0, f"snapshot of sequence {last}\n")
    code, said = await asyncio.to_thread(call, "rebuild", "--snapshot", str(tmp_path / "s"))
    assert code == 0, said
    code, said = await asyncio.to_thread(call, "rebuild", "--snapshot", str(tmp_path / "none"))
    assert (code, said.splitlines()[-1]) == (2, f"plumbline: there is no snapshot {tmp_path}/none")
