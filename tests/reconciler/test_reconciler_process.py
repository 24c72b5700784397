"""The process: killed at any instant it goes on where it was, and it ends and refuses as it should."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import sys
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rows import folded, stored_in
from stories import busy_day

from events.jetstream import JetStreamLedger
from events.server import EmbeddedServer


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plumbline.json"
    shared = {"stateDir": str(tmp_path), "runDir": str(tmp_path / "run"), "manifests": str(tmp_path / "manifests")}
    path.write_text(json.dumps({**shared, "logLevel": "debug"}))
    return path


@asynccontextmanager
async def process(config: Path) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "reconciler", "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def said(child: Process, words: str) -> str:
    """Return the first line that holds *words*."""
    assert child.stderr is not None
    seen: list[str] = []
    while line := (await child.stderr.readline()).decode():
        if words in line:
            return line
        seen.append(line)
    raise AssertionError("".join(seen))


async def test_kills_in_the_middle_lose_nothing_and_double_nothing(
    server: EmbeddedServer, ledger: JetStreamLedger, config: Path, tmp_path: Path
) -> None:
    appended = 0
    for event in busy_day(320):
        appended = await ledger.append(event)
    assert appended > 3500
    database, reached = tmp_path / "reconciler.db", [0]
    for batches in (1, 2, 1):
        async with process(config) as child:
            assert f"sequence={reached[-1]}" in await said(child, "projection_resumed")
            for _ in range(batches):
                await said(child, "batch_projected")
            child.send_signal(signal.SIGKILL)
            await child.wait()
        reached.append(position(database))
    assert reached == sorted(set(reached))
    assert reached[-1] < appended
    async with process(config) as child:
        assert f"sequence={reached[-1]}" in await said(child, "projection_resumed")
        await said(child, "reconciler_ready")
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    everything = [stored async for stored in ledger.read()]
    tables = stored_in(database)
    assert tables == folded(everything)
    live = {f"{dict(row)['pod']}.json" for row in tables["sandboxes"] if dict(row)["live"]}
    assert {path.name for path in (tmp_path / "manifests/status/shop").iterdir()} == live
    assert live


def position(database: Path) -> int:
    ((_, (_, sequence)),) = stored_in(database)["position"]
    return sequence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_in_order(server: EmbeddedServer, config: Path, number: signal.Signals) -> None:
    async with process(config) as child:
        await said(child, "reconciler_ready")
        child.send_signal(number)
        await said(child, "reconciler_stopped")
        assert await child.wait() == 0


async def test_it_goes_on_after_the_ledger_was_restarted(
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
        ('{"runDir": "/nonexistent"}', "no ledger"),
        ("{", "is not JSON"),
    ],
)
async def test_a_wrong_configuration_is_one_sentence_and_exit_code_2(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    async with process(path) as child:
        _, stderr = await child.communicate()
        assert child.returncode == 2
    assert words in stderr.decode()
    assert stderr.decode().count("\n") == 1


async def test_metrics_are_served_and_a_port_that_is_taken_is_said(
    server: EmbeddedServer, ledger: JetStreamLedger, config: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve_metrics(config, port)
    last = 0
    for event in busy_day(5):
        last = await ledger.append(event)
    async with process(config) as child:
        await said(child, "reconciler_ready")
        page = await asyncio.to_thread(scrape, port)
        assert f"plumbline_reconciler_applied_sequence {float(last)}" in page
        assert 'plumbline_reconciler_sandboxes{phase="attached"} 1.0' in page
        assert 'plumbline_reconciler_events_total{type="AttachCompleted"}' in page
        async with process(config) as second:
            _, stderr = await second.communicate()
            assert second.returncode == 2
        assert f"metrics can't be served on 127.0.0.1:{port}: Address already in use" in stderr.decode()


def serve_metrics(config: Path, port: int) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), "reconciler": {"metrics": {"port": port}}}))


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
