"""Two reconciler processes at one hub, killed and frozen: one leads, and nothing is done twice.

Each has its own database, or they share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from events.ledger.election import ELECTION
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import hub_stream
from events.schema import Pod, StatusPublished
from reconciler.projection.sql.engine import open_engine
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import folded, stored_in
from tests.support.run.fork_server import RECONCILER, ListenedProcess
from tests.support.stories.node import Node
from tests.support.waiting import BOUND, until

BOX, OTHER = "a" * 64, "b" * 64


@pytest.fixture
async def hub(server: EmbeddedServer) -> AsyncIterator[JetStreamLedger]:
    ledger = await JetStreamLedger.connect(server.address, config=hub_stream(1))
    yield ledger
    await ledger.close()


@pytest.fixture
def shared(postgres: Postgres) -> str:
    """The URL of an empty shared database."""
    return postgres.url(postgres.database())


@pytest.fixture(params=["own", "shared"])
def database(request: pytest.FixtureRequest) -> str:
    """The URL of the shared database; empty: each process has its own."""
    return request.getfixturevalue("shared") if request.param == "shared" else ""


@contextlib.asynccontextmanager
async def replica(
    server: EmbeddedServer, folder: Path, name: str, database: str = ""
) -> AsyncIterator[tuple[ListenedProcess, list[str]]]:
    """Run one; yield it and the lines that it has said so far."""
    (folder / "token").write_text(server.token)
    config = folder / f"{name}.json"
    settings = {
        "stateDir": str(folder / name),
        "runDir": str(folder / "run"),
        "node": name,
        "manifests": str(folder / "manifests"),
        "hub": {"url": server.url, "tokenFile": str(folder / "token")},
        "reconciler": {"database": database},
    }
    config.write_text(json.dumps(settings))
    child = await RECONCILER.listen("-m", "reconciler", "--config", str(config))
    said: list[str] = []

    async def listen() -> None:
        while line := (await child.stderr.readline()).decode():
            said.append(line)

    listening = asyncio.create_task(listen())
    try:
        yield child, said
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
        await child.wait()
        await listening


async def heard(said: list[str], words: str) -> float:
    """Wait for a line with *words*; return the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: any(words in line for line in said))
    return loop.time() - began


async def published(hub: JetStreamLedger) -> list[str]:
    return [s.event.sandbox async for s in hub.read() if isinstance(s.event.data, StatusPublished)]


async def publish(hub: JetStreamLedger, node: str, box: str, name: str) -> None:
    before = len(await published(hub))
    for event in Node(node).attach(box, Pod("shop", name, f"u-{name}")):
        await hub.append(event)
    async with asyncio.timeout(BOUND):
        while len(await published(hub)) == before:  # noqa: ASYNC110  # another process does it
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_replica_takes_over_in_seconds_without_double_publication(
    server: EmbeddedServer, hub: JetStreamLedger, tmp_path: Path, number: signal.Signals, database: str
) -> None:
    async with replica(server, tmp_path, "r1", database) as (first, first_said):
        await heard(first_said, "reconciler_ready")
        async with replica(server, tmp_path, "r2", database) as (_, second_said):
            await heard(second_said, "reconciler_waits")
            await publish(hub, "node-1", BOX, "web")
            await asyncio.sleep(1.5)
            assert not any("reconciler_ready" in line for line in second_said)
            first.send_signal(number)
            assert await heard(second_said, "reconciler_ready") < 15
            await publish(hub, "node-2", OTHER, "next")
            if number is signal.SIGSTOP:
                first.send_signal(signal.SIGCONT)
                await heard(first_said, "reconciler_replaced")
            await asyncio.sleep(1.5)
            assert await published(hub) == [BOX, OTHER]
            assert len([stored async for stored in hub.read(ELECTION)]) == 2
            if database:
                await is_projected(hub, database)


async def is_projected(hub: JetStreamLedger, database: str) -> None:
    """Assert that *database* becomes exactly the fold of *hub*, and belongs to the last election's winner."""
    elections = [stored async for stored in hub.read(ELECTION)]
    events = [stored async for stored in hub.read()]
    wanted = folded(events)
    place = {"election": elections[-1].sequence, "forgotten": "", "ledger": "LEDGER"}
    wanted["position"] = [(*place.items(), ("sequence", events[-1].sequence))]
    async with asyncio.timeout(BOUND):
        while (seen := stored_in(database))["position"] != wanted["position"]:  # noqa: ASYNC110  # another process does it
            await asyncio.sleep(0.05)
    assert seen == wanted


async def test_a_leader_frozen_in_a_batch_is_replaced_and_commits_nothing(
    server: EmbeddedServer, hub: JetStreamLedger, tmp_path: Path, shared: str
) -> None:
    engine = open_engine(shared)
    async with replica(server, tmp_path, "r1", shared) as (first, first_said):
        await heard(first_said, "reconciler_ready")
        async with replica(server, tmp_path, "r2", shared) as (_, second_said):
            await heard(second_said, "reconciler_waits")
            with engine.connect() as connection, connection.begin():
                connection.execute(sa.text("LOCK TABLE sandboxes IN EXCLUSIVE MODE"))
                for event in Node("node-1").attach(BOX, Pod("shop", "web", "u-web")):
                    await hub.append(event)
                async with asyncio.timeout(BOUND):
                    while not connection.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                first.send_signal(signal.SIGSTOP)
            assert await heard(second_said, "reconciler_ready") < 20
            await publish(hub, "node-2", OTHER, "next")
            first.send_signal(signal.SIGCONT)
            await heard(first_said, "reconciler_replaced")
            await asyncio.sleep(1.5)
            assert await published(hub) == [BOX, OTHER]
            await is_projected(hub, shared)
    engine.dispose()


async def test_a_leader_that_stops_in_order_is_replaced_at_once(
    server: EmbeddedServer, hub: JetStreamLedger, tmp_path: Path
) -> None:
    async with replica(server, tmp_path, "r1") as (first, first_said):
        await heard(first_said, "reconciler_ready")
        async with replica(server, tmp_path, "r2") as (_, second_said):
            await heard(second_said, "projection_resumed")
            await asyncio.sleep(2.0)
            first.send_signal(signal.SIGTERM)
            await heard(second_said, "reconciler_ready")
            assert first.returncode in (0, None)
