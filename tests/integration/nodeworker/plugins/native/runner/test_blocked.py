"""A job that waits for a lock or a plugin blocks no other network, and fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins.native import pool as native_processes
from nodeworker.plugins.native.pool import PROCESSES, NativePool
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.kernel_view import container
from tests.support.plugins.native_harness import ip, names
from tests.support.plugins.runner_harness import Plugin, alone, interfaces, valid
from tests.support.waiting import BOUND

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC"])
async def test_a_locked_network_blocks_no_other_network(bridge: Plugin, runner: NativeRunner, command: str) -> None:
    result = await bridge.done("ADD", container_id="c9" if command == "ADD" else "c1")
    ip("link del net1", bridge.netns)
    if command == "CHECK":
        result = await bridge.done("ADD")
    others = [
        Plugin(runner, bridge.netns, bridge.folder, {"type": "loopback", "name": f"other-{number}"})
        for number in range(4 * PROCESSES)  # some of them are done where the first is
    ]
    with (bridge.folder / "net" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        given = valid(("c1", "net1")) if command == "GC" else {"prevResult": result} if command != "ADD" else {}
        waiting = [asyncio.create_task(bridge.run(command, **given)) for _ in range(3)]
        await asyncio.gather(*(other.done("ADD", container_id=other.config["name"]) for other in others))
        assert not any(task.done() for task in waiting)
    for task in waiting:
        assert (await task)[0].exit_code == 0


async def test_a_lock_that_is_never_released_becomes_an_error(bridge: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_processes, "BLOCKED_TIMEOUT", 0.1)
    await bridge.done("ADD", container_id="c9")
    ip("link del net1", bridge.netns)
    with (bridge.folder / "net" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, words = await bridge.refused("ADD")
    assert (code, "try again" in words) == (11, True)
    assert names(bridge.netns) == {"lo"}
    await bridge.done("ADD")


@contextlib.contextmanager
def locked_by_another(bridge: Plugin) -> Iterator[subprocess.Popen[str]]:
    """Hold host-local's lock in another process until it is released, or that process ends."""
    folder = bridge.folder / "net"
    folder.mkdir(exist_ok=True)
    words = ["flock", folder / "lock", "sh", "-c", "echo held; read _"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        let_go(holder)


def let_go(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait()


@pytest.mark.parametrize("more", [0, 20], ids=["in-one-piece", "in-several"])
async def test_interfaces_are_made_in_order_although_one_is_blocked(
    bridge: Plugin, macvlan: Plugin, processes: NativePool, more: int
) -> None:
    """Whether they fit one batch or not; and no other container waits."""
    with container() as other:
        elsewhere = Plugin(bridge.runner, other, bridge.folder, {"type": "macvlan", "master": "par0"})
        with alone(processes), locked_by_another(bridge) as holder:
            names = [f"m{number}" for number in range(more)]
            asked = [macvlan.run("ADD", ifname="a1"), bridge.run("ADD", ifname="b2"), macvlan.run("ADD", ifname="a3")]
            asked += [bridge.run("ADD", ifname="b4"), *(macvlan.run("ADD", ifname=name) for name in names)]
            adding = [asyncio.create_task(each) for each in asked]
            await elsewhere.done("ADD", container_id="c2")
            await elsewhere.done("DEL", container_id="c2")
            late = asyncio.create_task(macvlan.run("ADD", ifname="z"))  # asked for while the others wait
            await elsewhere.done("ADD", container_id="c3")
            await asyncio.wait([adding[0]])
            assert interfaces(bridge.netns) == ["lo", "a1"]
            assert not any(each.done() for each in [*adding[1:], late])
            let_go(holder)
            outcomes = await asyncio.gather(*adding, late)
        assert [run.exit_code for run, _ in outcomes] == [0] * len(outcomes)
        assert interfaces(bridge.netns) == ["lo", "a1", "b2", "a3", "b4", *names, "z"]


async def test_a_job_blocked_for_ever_fails_alone(
    bridge: Plugin, macvlan: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_processes, "BLOCKED_TIMEOUT", 0.2)
    with locked_by_another(bridge):
        asked = [bridge.refused("ADD", ifname="b1"), macvlan.done("ADD", ifname="m2"), macvlan.done("ADD", ifname="m3")]
        outcomes = await asyncio.gather(*asked, bridge.refused("ADD", ifname="b4"))
    assert [outcomes[place][0] for place in (0, 3)] == [11, 11]
    assert interfaces(bridge.netns) == ["lo", "m2", "m3"]


async def test_a_blocked_job_and_those_behind_it_are_cancelled_at_once(
    bridge: Plugin, macvlan: Plugin, processes: NativePool
) -> None:
    with alone(processes), locked_by_another(bridge):
        adding = [asyncio.create_task(each.run("ADD", ifname=each.config["type"])) for each in (bridge, macvlan)]
        await bridge.runner.run(
            "loopback", command="STATUS", env={}, stdin=b'{"name": "x"}', plugin_folders=(), timeout=5
        )  # it is done behind those two
        for task in adding:
            task.cancel()
        async with asyncio.timeout(BOUND):
            await asyncio.wait(adding)
        assert all(task.cancelled() for task in adding)
        assert interfaces(bridge.netns) == ["lo"]
    await bridge.done("ADD")
    assert interfaces(bridge.netns) == ["lo", "net1"]


async def test_containers_at_one_lock_keep_the_order_of_their_jobs(
    bridge: Plugin, macvlan: Plugin, processes: NativePool, tmp_path: Path
) -> None:
    """While the lock is taken and released, and more jobs wait than fit a batch."""
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.77.0.0/24"}
    with contextlib.ExitStack() as stack, alone(processes):
        places = [stack.enter_context(container()) for _ in range(12)]
        asked: list[asyncio.Task[Any]] = []
        for names in (("b1", "m2"), ("b3", "b4"), ("m5", "b6")):
            with locked_by_another(bridge):
                for place, name in itertools.product(places, names):
                    kind = bridge if name.startswith("b") else macvlan
                    config = kind.config | ({"ipam": ipam} if kind is bridge else {})
                    plugin = Plugin(bridge.runner, place, tmp_path, config)
                    asked.append(asyncio.create_task(plugin.done("ADD", ifname=name, container_id=place)))
                await asyncio.sleep(0.15)
        await asyncio.gather(*asked)
        for place in places:
            assert interfaces(place) == ["lo", "b1", "m2", "b3", "b4", "m5", "b6"]
