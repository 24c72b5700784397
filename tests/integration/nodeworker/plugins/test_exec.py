from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.schema import ErrorClass, PluginRun
from nodeworker.plugins.api import PluginError
from nodeworker.plugins.exec import STDERR_RECORDED, STDOUT_LIMIT, STDOUT_RECORDED, PluginExecutor
from nodeworker.plugins.orphans import end_orphans, orphans
from tests.support.plugins.scripts import Plugins, gone

PATIENCE = 30.0
"""Seconds; a test that needs them has failed."""


async def run(
    executor: PluginExecutor, plugins: Plugins, *, stdin: bytes = b"{}", seconds: float = PATIENCE
) -> tuple[PluginRun, bytes]:
    return await executor.run(
        "plugin",
        command="ADD",
        env={"CNI_IFNAME": "net1"},
        stdin=stdin,
        plugin_folders=[str(plugins.folder)],
        timeout=seconds,
    )


async def test_plugin_gets_input_and_nothing_of_the_workers_environment(
    executor: PluginExecutor, plugins: Plugins, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "token")
    plugins.script("plugin", "cat; echo; env; pwd >&2")
    ran, stdout = await run(executor, plugins, stdin=b'{"name":"net"}')
    config, *variables = stdout.decode().splitlines()
    assert json.loads(config) == {"name": "net"}
    names = dict(variable.split("=", 1) for variable in variables)
    assert names.pop("PWD") == "/"  # the shell's own
    assert {"_", "SHLVL", "OLDPWD"} >= names.keys() - {"PATH", "CNI_COMMAND", "CNI_IFNAME", "PLUMBLINE_DELEGATE"}
    assert (names["CNI_COMMAND"], names["CNI_IFNAME"]) == ("ADD", "net1")
    assert names["PLUMBLINE_DELEGATE"] == marker
    assert names["PATH"] == os.environ["PATH"]
    assert ran.stderr == "/\n"


async def test_run_is_recorded(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "echo out; echo err >&2; exit 7")
    ran, stdout = await run(executor, plugins)
    assert (ran.type, ran.command, ran.exit_code, ran.stdout, ran.stderr) == ("plugin", "ADD", 7, "out\n", "err\n")
    assert stdout == b"out\n"
    assert 0 < ran.seconds < PATIENCE


async def test_input_larger_than_a_pipe_need_not_be_read(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "echo done")
    assert (await run(executor, plugins, stdin=b"x" * 5_000_000))[1] == b"done\n"
    plugins.script("plugin", "wc -c")
    assert (await run(executor, plugins, stdin=b"x" * 5_000_000))[1].strip() == b"5000000"


async def test_output_up_to_the_limit_is_whole(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", f"head -c {STDOUT_LIMIT} /dev/zero | tr '\\0' x")
    ran, stdout = await run(executor, plugins)
    assert stdout == b"x" * STDOUT_LIMIT
    assert ran.stdout == "x" * STDOUT_RECORDED


async def test_output_left_in_the_pipe_is_read_after_the_end(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"""import fcntl, os
with open({str(gate)!r}, "w") as gate:
    gate.write(str(os.getpid()))
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
os.write(1, b"x" * 900_000)"""
    (plugins.folder / "plugin").write_text(f"#!{sys.executable} -S\n{script}\n")
    (plugins.folder / "plugin").chmod(0o755)
    task = asyncio.create_task(run(executor, plugins))
    await asyncio.sleep(0)  # it is started in the task's first step, and then waits at the gate
    stand_still_until_ended(gate)
    assert (await task)[1] == b"x" * 900_000


def stand_still_until_ended(gate: Path) -> None:
    """Block the event loop until the plugin behind *gate* has ended."""
    os.waitid(os.P_PID, int(gate.read_text()), os.WEXITED | os.WNOWAIT)


async def test_the_first_folder_counts_and_relative_ones_are_skipped(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Plugins(tmp_path / "first")
    monkeypatch.chdir(plugins.folder)
    plugins.script("plugin", "echo second")
    (tmp_path / "folder" / "plugin").mkdir(parents=True)
    folders = ["", ".", str(tmp_path / "folder"), str(first.folder), str(plugins.folder)]
    assert (await executor.run("plugin", command="ADD", env={}, stdin=b"", plugin_folders=folders, timeout=PATIENCE))[
        1
    ] == b"second\n"
    first.script("plugin", "echo first")
    assert (await executor.run("plugin", command="ADD", env={}, stdin=b"", plugin_folders=folders, timeout=PATIENCE))[
        1
    ] == b"first\n"


@pytest.mark.parametrize("plugin_type", ["absent", "../plugins/plugin", ""])
async def test_missing_plugin_is_named_with_its_folders(
    executor: PluginExecutor, plugins: Plugins, plugin_type: str
) -> None:
    plugins.script("plugin", "true")
    folders = [str(plugins.folder), "/nonexistent"]
    with pytest.raises(PluginError, match=f"{plugin_type} .*{plugins.folder} or /nonexistent") as raised:
        await executor.run(plugin_type, command="ADD", env={}, stdin=b"", plugin_folders=folders, timeout=PATIENCE)
    assert raised.value.error_class is ErrorClass.PLUGIN_MISSING
    assert raised.value.run is None


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [("#!/bin/sh\n", 0o644, "Permission denied"), ("no header", 0o755, "Exec format"), ("#!/gone\n", 0o755, "No such")],
)
async def test_file_that_cannot_be_executed_is_a_missing_plugin(
    executor: PluginExecutor, plugins: Plugins, content: str, mode: int, reason: str
) -> None:
    path = plugins.folder / "plugin"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(PluginError, match=reason) as raised:
        await run(executor, plugins)
    assert raised.value.error_class is ErrorClass.PLUGIN_MISSING


async def test_hanging_plugin_and_its_children_are_killed(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path
) -> None:
    plugins.script("plugin", f"echo partly; sleep 1000 & echo $! > {tmp_path}/child; echo waiting >&2; sleep 1000")
    with pytest.raises(PluginError, match=r"plugin plugin did not finish within 0\.5 s") as raised:
        await run(executor, plugins, seconds=0.5)
    assert raised.value.error_class is ErrorClass.PLUGIN_TIMEOUT
    ran = raised.value.run
    assert ran
    assert (ran.exit_code, ran.stdout, ran.stderr) == (-9, "partly\n", "waiting\n")
    await gone(int((tmp_path / "child").read_text()))


async def test_zombies_of_a_killed_plugin_are_not_waited_for(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path
) -> None:
    plugins.script("plugin", f"(sleep 1000 & echo $! > {tmp_path}/child); sleep 1000")
    with foster_parent(), pytest.raises(PluginError) as raised:
        await run(executor, plugins, seconds=0.3)
    assert raised.value.run
    assert raised.value.run.seconds < 1.5
    assert reaped(int((tmp_path / "child").read_text())) == -9


def reaped(pid: int) -> int:
    """Reap one zombie child of the test and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def foster_parent() -> Iterator[None]:
    """Take the place of process 1 for orphans, and leave them unreaped."""
    subreaper = 36
    libc = ctypes.CDLL(None)
    assert libc.prctl(subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert libc.prctl(subreaper, 0, 0, 0, 0) == 0


async def test_plugin_is_not_started_without_time(executor: PluginExecutor, plugins: Plugins, tmp_path: Path) -> None:
    plugins.script("plugin", f"touch {tmp_path}/ran")
    with pytest.raises(PluginError) as raised:
        await run(executor, plugins, seconds=0.0)
    assert raised.value.error_class is ErrorClass.PLUGIN_TIMEOUT
    assert not (tmp_path / "ran").exists()


async def test_a_grandchild_that_keeps_the_pipes_open_is_not_awaited(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path
) -> None:
    plugins.script("plugin", f"echo '{{}}'; echo bye >&2; sleep 1000 & echo $! > {tmp_path}/child")
    ran, stdout = await run(executor, plugins)
    child = int((tmp_path / "child").read_text())
    os.kill(child, 0)  # a plugin may leave a daemon behind
    os.kill(child, 9)
    assert (stdout, ran.stderr, ran.exit_code) == (b"{}\n", "bye\n", 0)
    await gone(child)


async def test_a_grandchild_that_floods_the_pipes_is_not_awaited(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path
) -> None:
    plugins.script("plugin", f"cat /dev/zero >&2 & echo $! > {tmp_path}/child; echo '{{}}'")
    ran, stdout = await run(executor, plugins)
    assert (stdout, ran.exit_code) == (b"{}\n", 0)
    await gone(int((tmp_path / "child").read_text()))  # by SIGPIPE


async def test_flood_on_stdout_is_cut_off(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "head -c 100000000 /dev/zero; echo done >&2")
    with pytest.raises(PluginError, match="printed more than 2 MiB") as raised:
        await run(executor, plugins)
    assert raised.value.error_class is ErrorClass.PLUGIN_OUTPUT
    assert raised.value.run
    assert raised.value.run.exit_code == -9
    assert len(raised.value.run.stdout) == STDOUT_RECORDED


async def test_flood_on_stderr_is_drained_in_little_memory(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "head -c 100000000 /dev/zero >&2; echo last words >&2; echo '{}'")
    tracemalloc.start()
    try:
        ran, stdout = await run(executor, plugins)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (stdout, ran.exit_code) == (b"{}\n", 0)
    assert ran.stderr.endswith("last words\n")
    assert len(ran.stderr) == STDERR_RECORDED
    assert peak < 1_000_000


async def test_death_by_signal_is_a_negative_exit_code(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "kill -SEGV $$")
    assert (await run(executor, plugins))[0].exit_code == -11


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_cancellation_leaves_no_process(
    executor: PluginExecutor, plugins: Plugins, tmp_path: Path, cancellations: int
) -> None:
    os.mkfifo(tmp_path / "started")
    plugins.script("plugin", f"sleep 1000 & echo $$ $! > {tmp_path}/started; sleep 1000")
    task = asyncio.create_task(run(executor, plugins))
    plugin, child = map(int, (await asyncio.to_thread((tmp_path / "started").read_text)).split())
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(plugin, 0)
    await gone(child)


async def test_many_runs_leave_no_descriptor(executor: PluginExecutor, plugins: Plugins) -> None:
    plugins.script("plugin", "cat")
    await run(executor, plugins)
    before = len(os.listdir("/proc/self/fd"))
    outputs = await asyncio.gather(*(run(executor, plugins, stdin=str(number).encode()) for number in range(100)))
    assert [stdout for _, stdout in outputs] == [str(number).encode() for number in range(100)]
    with pytest.raises(PluginError):
        await executor.run("absent", command="ADD", env={}, stdin=b"", plugin_folders=[], timeout=PATIENCE)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def busy(plugins: Plugins) -> int:
    """A descriptor that keeps the plugin open for writing."""
    shutil.copy("/bin/true", plugins.folder / "plugin")
    descriptor = os.open(plugins.folder / "plugin", os.O_WRONLY)
    try:
        subprocess.run([plugins.folder / "plugin"], check=True)
    except OSError:  # ETXTBSY
        return descriptor
    os.close(descriptor)
    pytest.skip("this kernel executes files that are open for writing")


async def test_a_busy_binary_is_retried(executor: PluginExecutor, plugins: Plugins, busy: int) -> None:
    asyncio.get_running_loop().call_later(0.1, os.close, busy)
    assert (await run(executor, plugins))[0].exit_code == 0


async def test_binary_that_stays_busy_is_given_up(executor: PluginExecutor, plugins: Plugins, busy: int) -> None:
    try:
        with pytest.raises(PluginError, match="Text file busy") as raised:
            await run(executor, plugins)
    finally:
        os.close(busy)
    assert raised.value.error_class is ErrorClass.PLUGIN_MISSING


def orphan(marker: str, script: str) -> subprocess.Popen[bytes]:
    """A plugin of a worker that has ended; it has printed ``started`` when this returns."""
    process = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, env={"PLUMBLINE_DELEGATE": marker})
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    process.stdout.close()
    return process


async def test_orphans_are_found_by_their_marker(marker: str) -> None:
    theirs, ours = (
        orphan(f"{marker}-other", "echo started; exec sleep 1000"),
        orphan(marker, "echo started; exec sleep 1000"),
    )
    try:
        assert orphans(marker) == [ours.pid]
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()
        await end_orphans(f"{marker}-other", 0.0)


def test_a_process_is_not_its_own_orphan(marker: str) -> None:
    script = f"from nodeworker.plugins.orphans import orphans; print(orphans({marker!r}))"
    environment = {"PLUMBLINE_DELEGATE": marker, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment) == b"[]\n"


async def test_orphan_may_finish(marker: str, tmp_path: Path) -> None:
    process = orphan(marker, f"echo started; sleep 0.3; echo whole > {tmp_path}/file")
    assert await end_orphans(marker, PATIENCE) == 0
    assert process.wait() == 0
    assert (tmp_path / "file").read_text() == "whole\n"


async def test_orphan_that_does_not_finish_is_killed(marker: str) -> None:
    process = orphan(marker, "sleep 1000 & echo started; exec sleep 1000")
    assert await end_orphans(marker, 0.0) == 2
    assert process.wait() == -9
    assert orphans(marker) == []


async def test_nothing_to_end(marker: str) -> None:
    assert await end_orphans(marker, PATIENCE) == 0
