"""The process: a kill at any instant loses nothing; it stops in order, and refuses invalid configurations."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from tests.support.reconciler.rows import folded, stored_in
from tests.support.run.fork_server import RECONCILER, ListenedProcess
from tests.support.stories.node import Node, busy_day


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plumbline.json"
    path.write_text(json.dumps({"stateDir": str(tmp_path), "runDir": str(tmp_path / "run"), "logLevel": "debug"}))
    return path


def extend(config: Path, **more: object) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), **more}))


@asynccontextmanager
async def process(config: Path) -> AsyncIterator[ListenedProcess]:
    child = await RECONCILER.listen("-m", "reconciler", "--config", str(config))
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def said(child: ListenedProcess, words: str) -> str:
    """Return the first line that holds *words*."""
    seen: list[str] = []
    while line := (await child.stderr.readline()).decode():
        if words in line:
            return line
        seen.append(line)
    raise AssertionError("".join(seen))


async def test_kills_lose_and_double_no_event(
    server: EmbeddedServer, ledger: JetStreamLedger, config: Path, tmp_path: Path
) -> None:
    extend(config, manifests=str(tmp_path / "manifests"))
    appended = 0
    for event in busy_day(840):
        appended = await ledger.append(event)
    assert appended > 8000
    database, reached = tmp_path / "reconciler.db", [0]
    for batches in (1, 1, 1):
        async with process(config) as child:
            assert f"sequence={reached[-1]}" in await said(child, "projection_resumed")
            for _ in range(batches):
                await said(child, "batch_projected")
            child.send_signal(signal.SIGKILL)
            await child.wait()
        reached.append(position(database))
    assert reached == sorted(set(reached))
    assert reached[-1] < appended
    everything = [stored async for stored in ledger.read()]
    live = {dict(row)["pod"] for row in folded(everything)["sandboxes"] if dict(row)["live"]}
    assert live
    async with process(config) as child:
        assert f"sequence={reached[-1]}" in await said(child, "projection_resumed")
        await said(child, "reconciler_ready")
        for _ in live:
            await said(child, "status_published")
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    assert {path.name for path in (tmp_path / "manifests/status/shop").iterdir()} == {f"{pod}.json" for pod in live}
    reached.append(position(database))
    assert stored_in(database) == folded([s async for s in ledger.read() if s.sequence <= reached[-1]])


def position(database: Path) -> int:
    (place,) = stored_in(database)["position"]
    return dict(place)["sequence"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_process_in_order(
    server: EmbeddedServer, config: Path, number: signal.Signals
) -> None:
    async with process(config) as child:
        await said(child, "reconciler_ready")
        child.send_signal(number)
        await said(child, "reconciler_stopped")
        assert await child.wait() == 0


async def test_the_process_continues_after_a_ledger_restart(
    server: EmbeddedServer, ledger: JetStreamLedger, config: Path, tmp_path: Path
) -> None:
    events = list(busy_day(20))
    for event in events[:100]:
        await ledger.append(event)
    async with process(config) as child:
        await said(child, "reconciler_ready")
        server.stop()
        server.start()
        last = 0
        for event in events[100:]:
            last = await ledger.append(event)
        while f"sequence={last}" not in await said(child, "batch_projected"):
            pass
    assert stored_in(tmp_path / "reconciler.db") == folded([stored async for stored in ledger.read()])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"logLevel": "loud"}', "logLevel is 'loud'"),
        ('{"reconciler": {"databse": ""}}', "databse"),
        ('{"reconciler": {"metrics": {"port": 65536}}}', "reconciler.metrics.port"),
        ('{"runDir": "/nonexistent"}', "no ledger"),
        ('{"manifests": "/m", "reconciler": {"kubernetes": {}}}', "both set"),
        ("{", "is not JSON"),
    ],
)
async def test_an_invalid_configuration_gives_one_sentence_and_exit_code_2(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    async with process(path) as child:
        _, stderr = await child.communicate()
        assert child.returncode == 2
    assert words in stderr.decode()
    assert stderr.decode().count("\n") == 1


async def test_metrics_are_served(server: EmbeddedServer, ledger: JetStreamLedger, config: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extend(config, reconciler={"metrics": {"port": port}})
    last = 0
    for event in busy_day(5):
        last = await ledger.append(event)
    async with process(config) as child:
        await said(child, "reconciler_ready")
        page = await asyncio.to_thread(scrape, port)
        assert f"plumbline_reconciler_applied_sequence {float(last + 1)}" in page  # its election
        assert 'plumbline_reconciler_sandboxes{phase="attached"} 1.0' in page
        assert 'plumbline_reconciler_events_total{type="AttachCompleted"}' in page


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


async def test_a_database_of_a_newer_version_is_refused(server: EmbeddedServer, config: Path, tmp_path: Path) -> None:
    async with process(config) as child:
        await said(child, "reconciler_ready")
    with sqlite3.connect(tmp_path / "reconciler.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
    connection.close()
    async with process(config) as child:
        assert "revision future" in await said(child, "plumbline:")
        assert await child.wait() == 2


async def test_a_missing_kubeconfig_gives_one_sentence_and_exit_code_2(server: EmbeddedServer, config: Path) -> None:
    extend(config, reconciler={"kubernetes": {"kubeconfig": "/nonexistent"}})
    async with process(config) as child:
        assert "kubeconfig /nonexistent can't be used" in await said(child, "plumbline:")
        assert await child.wait() == 2


async def test_the_process_verifies_periodically(server: EmbeddedServer, ledger: JetStreamLedger, config: Path) -> None:
    extend(config, reconciler={"verifyInterval": 1})
    for event in busy_day(3, Node("")):  # of a node that need not answer
        await ledger.append(event)
    async with process(config) as child:
        line = await said(child, "event=verified")
        assert "projection=0" in line
        assert "status=0" in line
