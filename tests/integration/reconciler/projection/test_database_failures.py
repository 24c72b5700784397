"""Failures of the database and of the reconciler, and their effects on each other."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event as sqlalchemy_event

from events.ledger.memory import MemoryLedger
from events.schema import (
    Pod,
    Stored,
)
from reconciler.projection.sql.engine import ProjectionError, open_engine
from reconciler.projection.sql.schema import upgrade
from reconciler.projection.store import Store
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import folded, stored_in
from tests.support.reconciler.running import running
from tests.support.stories.folded import numbered
from tests.support.stories.node import Node, busy_day


def project(url: str, events: Sequence[Stored]) -> None:
    with closing(Store(url, "NODE")) as store:
        store.apply(events)


def project_and_be_killed(url: str, events: Sequence[Stored], step: int) -> bool:
    """Project *events* in a process that is killed at its step number *step*; return True if it was."""
    pid = os.fork()
    if pid == 0:
        steps = itertools.count(1)

        def on(*_: object) -> None:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("begin", "before_cursor_execute", "after_cursor_execute", "commit"):
            sqlalchemy_event.listen(sa.Engine, name, on)
        try:
            project(url, events)
            on()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_a_kill_at_any_step_of_a_batch_loses_or_doubles_no_event(database: str) -> None:
    node = Node()
    unnumbered = [
        *busy_day(3, node),
        *node.attach("d" * 64, Pod("d", "p", "u")),
        *node.drift("d" * 64, Pod("d", "p", "u"), ends="repaired"),
        *node.leak("e" * 64),
    ]
    events = numbered(unnumbered)
    whole = [*events, *numbered(busy_day(8, node))[len(events) :]]
    begin = len(events) // 2
    project(database, whole[:begin])
    position = step = 0
    for step in itertools.count(1):
        done = (
            begin + step
        )  # each process has one new event, and repeats those that the previous one may have projected
        killed = project_and_be_killed(database, whole[max(0, done - 3) : done + 8], step)
        tables = stored_in(database)
        (position,) = (dict(row)["sequence"] for row in tables["position"])
        assert tables == folded(whole[:position])
        if not killed:
            break
        project(database, whole[position:done])
    assert step > 20
    assert stored_in(database) == folded(whole[:position])


async def test_an_absent_postgresql_delays_but_loses_no_event(
    postgres: Postgres, empty_postgres_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.url(postgres.database(empty_postgres_database))
    ledger, node = MemoryLedger(), Node()
    last = 0
    for event in busy_day(3, node):
        last = await ledger.append(event)
    async with running(ledger, url) as run:
        await run.at(last)
        await asyncio.to_thread(postgres.stop)
        try:
            for event in node.attach("e" * 64, Pod("d", "p", "u")):
                last = await ledger.append(event)
            said = ""
            while said.count("database_away") < 2:
                await asyncio.wait({run.task}, timeout=0.05)
                said += capsys.readouterr().out
            assert run.reconciler.sequence < last
        finally:
            await asyncio.to_thread(postgres.start)
        await run.at(last)
    assert stored_in(url) == folded([stored async for stored in ledger.read()])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "plumbline-test", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_disk_delays_but_loses_no_event(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, node, database = MemoryLedger(), Node(), small_disk / "x.db"
    last = await ledger.append(node.start())
    async with running(ledger, database) as run:
        await run.at(last)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(4 << 20))
        for event in busy_day(20, node):
            last = await ledger.append(event)
        said = ""
        while "database_away" not in said:
            await asyncio.wait({run.task}, timeout=0.05)
            said += capsys.readouterr().out
        assert "full" in said
        assert run.reconciler.sequence < last
        filler.unlink()
        await run.at(last)
    assert stored_in(database) == folded([stored async for stored in ledger.read()])


def test_a_database_of_a_newer_version_is_refused_unchanged(database: str) -> None:
    engine = open_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(ProjectionError, match="revision 0999, which this version of Plumbline does not know"):
        upgrade(database)
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "0999"
    engine.dispose()


def test_a_text_that_the_database_cannot_hold_is_replaced(database: str) -> None:
    node = Node()
    events = numbered([*node.attach("a" * 64, Pod("d\0", "p\\u0000", "u")), *busy_day(2, node)])
    project(database, events)
    store = Store(database, "NODE")
    pods = [box.pod for box in store.map_live_pods(lambda _, boxes, __: boxes[0])]
    store.close()
    assert Pod("d\0", "p\\u0000", "u") in pods


def test_a_missing_table_is_reported_in_one_sentence(postgres: Postgres, empty_postgres_database: str) -> None:
    url = postgres.url(postgres.database(empty_postgres_database))
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE addresses"))
    engine.dispose()
    with pytest.raises(ProjectionError, match=r'relation "addresses" does not exist.*rebuilds it from the ledger'):
        project(url, numbered(busy_day(1)))
