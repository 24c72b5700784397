"""Which process gets a job, in which order jobs run, and how they are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import PluginRun
from nodeworker.plugins.native import jobs
from nodeworker.plugins.native.api import BLOCKED_TIMEOUT
from nodeworker.plugins.native.pool import NativePool
from tests.support.plugins.kernel_view import container
from tests.support.plugins.native_harness import ip, names
from tests.support.plugins.runner_harness import Plugin, alone, interfaces, reserved
from tests.support.waiting import BOUND

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the processes wait for locks without limit."""
    monkeypatch.setattr(jobs, "LOCK_TIMEOUT", BLOCKED_TIMEOUT)


@contextlib.asynccontextmanager
async def held_up(bridge: Plugin, processes: NativePool) -> AsyncIterator[asyncio.Task[tuple[PluginRun, Any]]]:
    """Start an ADD, for ``c1`` after ``c9``, and block it by host-local's lock during the block."""
    await bridge.done("ADD", container_id="c9")
    ip("link del net1", bridge.netns)
    with (bridge.folder / "net" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        adding = asyncio.create_task(bridge.run("ADD"))
        await waiting_for(bridge.folder / "net" / "lock", processes)
        yield adding


@pytest.mark.usefixtures("patient")
async def test_a_cancellation_is_raised_once_a_started_job_has_ended(bridge: Plugin, processes: NativePool) -> None:
    async with held_up(bridge, processes) as adding:
        for _ in range(3):
            adding.cancel()
            await asyncio.sleep(0)
        assert not adding.done()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert set(reserved(bridge).values()) == {"c9\r\nnet1", "c1\r\nnet1"}, "what was begun was ended"
    assert names(bridge.netns) == {"lo", "net1"}
    await bridge.done("DEL")
    assert names(bridge.netns) == {"lo"}


@pytest.mark.usefixtures("patient")
async def test_a_job_that_has_not_started_is_cancelled_at_once(bridge: Plugin, processes: NativePool) -> None:
    async with held_up(bridge, processes) as adding:
        waiting = asyncio.create_task(bridge.run("ADD", ifname="late"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not adding.done()
    await adding
    assert "c1\r\nlate" not in reserved(bridge).values()


@pytest.mark.usefixtures("patient")
async def test_a_job_goes_to_its_containers_process_or_the_idlest(
    bridge: Plugin, macvlan: Plugin, processes: NativePool
) -> None:
    async with held_up(bridge, processes) as adding:
        behind = asyncio.create_task(macvlan.run("ADD", ifname="behind"))
        for number in range(6):
            await macvlan.done("ADD", ifname=f"m{number}", container_id=f"other-{number}")
        assert not adding.done()
        assert not behind.done()
    assert [run.exit_code for run, _ in await asyncio.gather(adding, behind)] == [0, 0]


async def test_jobs_of_a_batch_run_in_order_also_after_a_failure(bridge: Plugin, macvlan: Plugin) -> None:
    missing = Plugin(bridge.runner, bridge.netns, bridge.folder, {"type": "macvlan", "master": "nowhere0"})
    asked = [bridge.run("ADD", ifname="b1"), missing.run("ADD", ifname="m1"), macvlan.run("ADD", ifname="m2")]
    asked += [bridge.run("ADD", ifname="b3")]
    outcomes = await asyncio.gather(*asked)
    assert [run.exit_code for run, _ in outcomes] == [0, 1, 0, 0]
    assert "nowhere0 is missing" in outcomes[1][1]["msg"]
    assert interfaces(bridge.netns) == ["lo", "b1", "m2", "b3"]


async def test_a_batch_may_have_jobs_of_several_containers(bridge: Plugin, processes: NativePool) -> None:
    with container() as other, container() as gone:
        there = Plugin(bridge.runner, other, bridge.folder, bridge.config)
        nowhere = Plugin(bridge.runner, gone + "-not", bridge.folder, bridge.config)
        with alone(processes):
            asked = [bridge.run("ADD"), there.run("ADD"), nowhere.run("ADD"), there.run("ADD", ifname="net2")]
            outcomes = await asyncio.gather(*asked, bridge.run("ADD", ifname="net2"))
        assert [run.exit_code for run, _ in outcomes] == [0, 0, 1, 0, 0]
        assert interfaces(bridge.netns) == interfaces(other) == ["lo", "net1", "net2"]


@pytest.mark.usefixtures("patient")
async def test_jobs_are_cancelled_when_their_process_has_died(bridge: Plugin, processes: NativePool) -> None:
    async with held_up(bridge, processes) as adding:
        assert not processes.died.is_set()
        for pid in processes.pids:
            os.kill(pid, signal.SIGKILL)
        await asyncio.wait([adding])
    assert adding.cancelled()
    await asyncio.wait_for(processes.died.wait(), BOUND)
    coming = asyncio.create_task(bridge.run("ADD"))
    await asyncio.wait([coming])
    assert coming.cancelled()


@pytest.mark.usefixtures("patient")
async def test_a_signal_to_the_group_does_not_end_a_job(bridge: Plugin, processes: NativePool) -> None:
    async with held_up(bridge, processes) as adding:
        for number in (signal.SIGTERM, signal.SIGINT):
            for pid in processes.pids:
                os.kill(pid, number)
    run, printed = await adding
    assert run.exit_code == 0, printed
    await bridge.done("DEL")
    assert not processes.died.is_set()


def test_the_processes_end_with_the_worker() -> None:
    reading, writing = os.pipe()
    maker = os.fork()
    if not maker:
        asyncio.run(make_and_wait(writing))
    os.close(writing)
    pids = json.loads(os.read(reading, 1000))
    assert all(alive(pid) for pid in pids)
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    # They keep the pipe and the worker's lock open, so a waiter for the lock waits for them.
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Return whether the process runs; zombies have no command line."""
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and command.read_text() != ""


async def make_and_wait(kept: int) -> None:
    processes = NativePool(keep=(kept,))
    os.write(kept, json.dumps(processes.pids).encode())
    await asyncio.sleep(60)


async def waiting_for(file: Path, processes: NativePool) -> None:
    """Return when one of the *processes* has *file* open."""

    def look() -> None:
        while not any(pointed_to(f"{each}/{fd}") == str(file) for each in folders for fd in os.listdir(each)):
            os.sched_yield()

    folders = [f"/proc/{pid}/fd" for pid in processes.pids]
    await asyncio.to_thread(look)


def pointed_to(descriptor: str) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return ""
