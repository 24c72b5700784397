"""``plumbline up`` stops in order, even if the server of the ledger gets the same signal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.process.settings import LedgerAddress
from tests.support.waiting import eventually

PLUMBLINE = Path(sys.executable).with_name("plumbline")
TIMEOUT = 60.0


class Machine:
    """``plumbline up`` in a new process group, as a shell starts it."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "state"
        self.run_dir = folder / "run"
        self.log = folder / "log"
        config = folder / "plumbline.json"
        places = {"stateDir": str(self.store), "runDir": str(self.run_dir)}
        config.write_text(json.dumps({"node": "n1", **places, "leaks": {"policy": "off"}, "drift": {"policy": "off"}}))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PLUMBLINE, "--config", config, "up"],
                stderr=log,
                env={**os.environ, "PLUMBLINE_LOG_FORMAT": "json"},
                start_new_session=True,
            )

    def lines(self) -> list[dict[str, object]]:
        """Return the complete lines of the log."""
        return [json.loads(line) for line in self.log.read_text().rpartition("\n")[0].splitlines()]

    def logged(self, event: str) -> bool:
        """Return whether any process logged *event*."""
        return any(line["event"] == event for line in self.lines())

    def family(self) -> list[int]:
        """Return the process IDs of ``up`` and all processes below it."""
        found = [self.process.pid]
        for pid in found:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def ended_workers(self) -> list[str]:
        """Return the nodes of the ``WorkerStopped`` events in the ledger, read by a new server."""
        server = EmbeddedServer(self.store / "ledger", self.run_dir)
        server.start()
        try:
            return asyncio.run(_ended_workers(server.address))
        finally:
            server.stop()


async def _ended_workers(address: LedgerAddress) -> list[str]:
    ledger = await JetStreamLedger.connect(address, name="test")
    try:
        return [stored.event.node async for stored in ledger.read() if stored.event.type == "WorkerStopped"]
    finally:
        await ledger.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    started = Machine(tmp_path)
    try:
        eventually(lambda: started.logged("worker_open") and started.logged("reconciler_ready"), "all processes serve")
        yield started
    finally:
        started.process.kill()
        started.process.wait(TIMEOUT)


def test_ctrl_c_stops_all_in_order(machine: Machine) -> None:
    (server,) = [pid for pid in machine.family() if "nats-server" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert os.getpgid(server) != machine.process.pid
    before = len(machine.lines())
    os.killpg(machine.process.pid, signal.SIGINT)
    assert machine.process.wait(TIMEOUT) == 0
    said = machine.lines()[before:]
    assert [line["event"] for line in said if line["level"] != "info"] == []
    assert machine.ended_workers() == ["n1"]


def test_signal_to_every_process_of_the_service_still_records_the_end_of_the_worker(machine: Machine) -> None:
    family = machine.family()
    assert any("nats-server" in Path(f"/proc/{pid}/cmdline").read_text() for pid in family)
    for pid in reversed(family):  # the server before those that need it
        os.kill(pid, signal.SIGTERM)
    assert machine.process.wait(TIMEOUT) == 0
    assert machine.ended_workers() == ["n1"]
