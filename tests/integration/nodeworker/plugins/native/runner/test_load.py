"""Many pods at once, many runs, and too few descriptors leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.kernel_view import container
from tests.support.plugins.native_harness import names
from tests.support.plugins.runner_harness import Plugin, reserved, valid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


async def test_many_pods_in_parallel_are_attached_and_detached(
    runner: NativeRunner, processes: NativePool, tmp_path: Path
) -> None:
    before = descriptors()
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(container()) for _ in range(12)]
        ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.77.0.0/24"}
        plugins = [
            Plugin(runner, path, tmp_path, {"type": "bridge", "name": name, "bridge": "br0", "ipam": ipam})
            for path, name in zip(paths, itertools.cycle(["one", "two", "three"]))
        ]
        for verb in ("ADD", "DEL"):
            await asyncio.gather(*(each.done(verb, container_id=f"c{n}") for n, each in enumerate(plugins)))
        assert all(names(path) == {"lo"} for path in paths)
    assert descriptors() == before


async def test_nothing_is_left_after_many_runs(bridge: Plugin, processes: NativePool, tmp_path: Path) -> None:
    tuning = Plugin(bridge.runner, bridge.netns, tmp_path, {"type": "tuning", "dataDir": str(tmp_path), "mtu": 1400})
    theirs = [descriptors(pid) for pid in processes.pids]
    await bridge.done("ADD")
    before = descriptors()
    for number in range(70):
        await bridge.done("STATUS")
        result = await bridge.done("ADD")
        await tuning.done("ADD", prevResult=result)
        await bridge.done("CHECK", prevResult=result)
        await tuning.done("DEL", prevResult=result)
        await bridge.done("DEL" if number % 2 else "GC", **valid())
        assert (await bridge.refused("CHECK"))[0] == 999
        await bridge.done("DEL")
    assert descriptors() == before
    until = asyncio.get_running_loop().time() + 10
    while [descriptors(pid) for pid in processes.pids] != theirs:
        assert asyncio.get_running_loop().time() < until, "a process keeps an unused descriptor open"
        await asyncio.sleep(0.01)
    while any(len(os.listdir(f"/proc/{pid}/task")) > 1 for pid in processes.pids):
        assert asyncio.get_running_loop().time() < until, "a thread that removed a link still runs"
        await asyncio.sleep(0.01)


async def test_a_node_without_descriptors_to_spare_is_an_error_that_leaves_none(
    bridge: Plugin, processes: NativePool
) -> None:
    await bridge.done("ADD")
    await bridge.done("DEL")
    before = [descriptors(pid) for pid in processes.pids]
    codes: list[int] = []
    spare = 0
    while not codes or codes[-1]:
        with scarce(processes, spare):
            run, printed = await bridge.run("ADD")
        codes.append(printed["code"] if run.exit_code else 0)
        await bridge.done("DEL")
        assert [descriptors(pid) for pid in processes.pids] == before
        assert reserved(bridge) == {}
        spare += 1
    assert len(codes) > 3
    assert set(codes) == {0, 5}


@contextlib.contextmanager
def scarce(processes: NativePool, spare: int) -> Iterator[None]:
    """Limit the processes to *spare* more files."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in processes.pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_nth_free(descriptors(pid), spare), hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _nth_free(taken: set[int], count: int) -> int:
    """Return the limit below which *count* descriptors are free."""
    return next(itertools.islice((n for n in itertools.count() if n not in taken), count, None))


def descriptors(pid: int | str = "self") -> set[int]:
    found = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return {each for each in found if os.path.exists(f"/proc/{pid}/fd/{each}") or pid != "self"}
