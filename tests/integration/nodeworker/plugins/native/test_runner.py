"""The runner of native plugins, in real namespaces: every verb, every kind of end, and no leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import ErrorClass, PluginRun
from nodeworker.plugins.exec import PluginError, PluginExecutor
from nodeworker.plugins.native import jobs
from nodeworker.plugins.native import pool as native_processes
from nodeworker.plugins.native.api import BLOCKED_TIMEOUT
from nodeworker.plugins.native.pool import PROCESSES, NativePool
from nodeworker.plugins.native.registry import AUTO
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import card, ip, names, shown
from tests.support.waiting import BOUND

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SCRIPT = """#!/bin/sh
printf '%s %s %s\\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$(ip -n {netns} -o link show net1 2>/dev/null | wc -l)" >> {log}
cat >> {log}.stdin
{then}
"""
ASSIGN = """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24"}], "routes": [{"dst": "10.88.0.0/16"}]}'"""


class Plugin:
    """A plugin of a network, run as a chain would run it."""

    def __init__(self, runner: NativeRunner, netns: str, folder: Path, config: dict[str, Any]) -> None:
        self.runner = runner
        self.netns = netns
        self.folder = folder
        self.config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net"} | config

    async def run(
        self, command: str, *, container_id: str = "c1", ifname: str = "net1", **more: Any
    ) -> tuple[PluginRun, Any]:
        """Return the run and its output; *more* are keys of the configuration."""
        env = {"CNI_PATH": str(self.folder)}
        if command in {"ADD", "CHECK", "DEL"}:
            env |= {"CNI_CONTAINERID": container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": ifname, "CNI_ARGS": ""}
        run, stdout = await self.runner.run(
            self.config["type"],
            command=command,
            env=env,
            stdin=json.dumps(self.config | more).encode(),
            search=(str(self.folder),),
            timeout=30,
        )
        assert (run.type, run.command, run.stderr) == (self.config["type"], command, "")
        return run, json.loads(stdout) if stdout else None

    async def done(self, command: str, **more: Any) -> Any:
        run, printed = await self.run(command, **more)
        assert run.exit_code == 0, printed
        return printed

    async def refused(self, command: str, **more: Any) -> tuple[int, str]:
        """Return the code and the message."""
        run, printed = await self.run(command, **more)
        assert run.exit_code == 1
        assert printed["cniVersion"] == "1.1.0"
        return printed["code"], printed["msg"]


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        card()
        yield path


@pytest.fixture
async def processes(netns: str) -> AsyncIterator[NativePool]:
    with contextlib.closing(NativePool()) as processes:
        yield processes


@pytest.fixture
def runner(processes: NativePool) -> NativeRunner:
    return NativeRunner(PluginExecutor(marker=f"test-{os.urandom(8).hex()}"), AUTO, processes)


@pytest.fixture
def bridge(runner: NativeRunner, netns: str, tmp_path: Path) -> Plugin:
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.77.0.0/29"}
    return Plugin(runner, netns, tmp_path, {"type": "bridge", "bridge": "br0", "ipam": ipam})


@pytest.fixture
def macvlan(runner: NativeRunner, netns: str, tmp_path: Path) -> Plugin:
    ipam = {"type": "static", "addresses": [{"address": "10.77.0.5/24"}]}
    return Plugin(runner, netns, tmp_path, {"type": "macvlan", "master": "par0", "ipam": ipam})


def valid(*attachments: tuple[str, str]) -> dict[str, Any]:
    listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in attachments]
    return {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}


def reserved(plugin: Plugin) -> dict[str, str]:
    return {file.name: file.read_bytes().decode() for file in (plugin.folder / "net").glob("10.*")}


def addresses(netns: str) -> list[str]:
    found = shown("addr show net1", netns)[0]["addr_info"]
    return [f"{each['local']}/{each['prefixlen']}" for each in found if each["scope"] == "global"]


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0"])
async def test_the_mtu_is_recorded_and_not_printed(macvlan: Plugin, version: str) -> None:
    macvlan.config["cniVersion"] = version
    run, result = await macvlan.run("ADD")
    assert run.mtu == shown("link show net1", macvlan.netns)[0]["mtu"] == 1450
    assert "mtu" not in result["interfaces"][0]
    assert (await macvlan.run("DEL"))[0].mtu == 0


async def test_an_mtu_of_an_earlier_plugin_is_passed_on(macvlan: Plugin, runner: NativeRunner) -> None:
    result = await macvlan.done("ADD")
    tuning = Plugin(runner, macvlan.netns, macvlan.folder, {"type": "tuning", "dataDir": str(macvlan.folder)})
    run, printed = await tuning.run("ADD", mtu=1400, prevResult=result)
    assert (run.mtu, "mtu" in printed["interfaces"][0]) == (1400, False)
    result["interfaces"][0]["mtu"] = 1450
    run, printed = await tuning.run("ADD", mtu=1300, prevResult=result)
    assert (run.mtu, printed["interfaces"][0]["mtu"]) == (1300, 1300)


async def test_every_verb_of_a_bridge_with_host_local(bridge: Plugin) -> None:
    await bridge.done("STATUS")
    result = await bridge.done("ADD")
    assert result["cniVersion"] == "1.1.0"
    assert [each["name"] for each in result["interfaces"]][::2] == ["br0", "net1"]
    assert result["ips"] == [{"interface": 2, "address": "10.77.0.2/29", "gateway": "10.77.0.1"}]
    assert addresses(bridge.netns) == ["10.77.0.2/29"]
    await bridge.done("CHECK", prevResult=result)
    await bridge.done("GC", **valid(("c1", "net1")))
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}
    await bridge.done("DEL", prevResult=result)
    await bridge.done("DEL", prevResult=result)
    assert reserved(bridge) == {}
    assert names(bridge.netns) == {"lo"}


async def test_every_verb_of_a_macvlan_with_static(macvlan: Plugin) -> None:
    await macvlan.done("STATUS")
    result = await macvlan.done("ADD")
    assert addresses(macvlan.netns) == ["10.77.0.5/24"]
    await macvlan.done("CHECK", prevResult=result)
    await macvlan.done("GC", **valid())
    assert addresses(macvlan.netns) == ["10.77.0.5/24"]
    await macvlan.done("DEL", prevResult=result)
    assert names(macvlan.netns) == {"lo"}


async def test_gc_frees_the_addresses_of_what_is_not_valid(bridge: Plugin) -> None:
    await bridge.done("ADD")
    (bridge.folder / "net" / "10.77.0.4").write_bytes(b"gone\r\nnet1")
    await bridge.done("GC", **valid(("c1", "net1")))
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}


@pytest.mark.parametrize("listed", [None, "all", [{"containerID": "c1"}], [{"containerID": 1, "ifname": "net1"}]])
async def test_gc_without_a_usable_list_frees_nothing(bridge: Plugin, listed: Any) -> None:
    await bridge.done("ADD")
    keys = {} if listed is None else {"cni.dev/valid-attachments": listed}
    code, words = await bridge.refused("GC", **keys)
    assert code == 7
    assert "nothing is freed" in words
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}


async def test_status_fails_when_no_address_is_left(bridge: Plugin) -> None:
    for container_id in ("c2", "c3", "c4", "c5"):
        await bridge.done("STATUS")
        await bridge.done("ADD", container_id=container_id)
        ip("link del net1", bridge.netns)
    await bridge.done("ADD")
    code, words = await bridge.refused("STATUS")
    assert code == 50
    assert "all addresses of 10.77.0.1-10.77.0.6 are taken" in words
    await bridge.done("DEL")
    await bridge.done("STATUS")


async def test_an_error_is_an_object_with_the_code_of_the_reference(bridge: Plugin, macvlan: Plugin) -> None:
    result = await bridge.done("ADD")
    ip("link del net1", bridge.netns)
    assert await bridge.refused("CHECK", prevResult=result) == (999, "interface net1 is gone")
    assert await bridge.refused("CHECK", prevResult={"ips": [{"address": "x"}]}) == (
        6,
        "prevResult can't be read: 'x' in the result has no prefix length",
    )
    bridge.netns = "/run/netns/plumbline-test-gone"
    code, words = await bridge.refused("ADD")
    assert (code, "can't be used as a network namespace" in words) == (4, True)
    assert await bridge.refused("LIST") == (4, "LIST is no verb of CNI")
    macvlan.config["ipam"]["addresses"] = [{"address": "10.77.0.5"}]
    assert (await macvlan.refused("ADD"))[0] == 999
    assert names(macvlan.netns) == {"lo"}


async def test_a_plugin_that_could_not_start_has_its_own_error(runner: NativeRunner, bridge: Plugin) -> None:
    how: dict[str, Any] = {"command": "ADD", "env": {}, "stdin": b"{}", "search": ()}
    with pytest.raises(PluginError, match="no time was left") as caught:
        await runner.run("bridge", **how, timeout=0)
    assert caught.value.error_class is ErrorClass.PLUGIN_TIMEOUT
    with pytest.raises(PluginError, match="is not one that Plumbline has built in") as caught:
        await runner.run("portmap", **how, timeout=1)
    assert caught.value.error_class is ErrorClass.PLUGIN_MISSING
    bridge.config["ipam"] = {"type": "dhcp"}
    with pytest.raises(PluginError, match="plugin dhcp is not in") as caught:
        await bridge.run("ADD")
    assert caught.value.error_class is ErrorClass.PLUGIN_MISSING


class Executed(Plugin):
    """A native bridge whose IPAM plugin is a script."""

    def script(self, then: str) -> None:
        path = self.folder / "own-ipam"
        text = SCRIPT.replace("{netns}", self.netns.rpartition("/")[2]).replace("{log}", str(self.folder / "log"))
        path.write_text(text.replace("{then}", then))
        path.chmod(0o755)

    def called(self) -> list[str]:
        """Return the verbs, each with its container and the number of interfaces net1."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def executed(runner: NativeRunner, netns: str, tmp_path: Path) -> Executed:
    config = {"type": "bridge", "bridge": "br0", "ipam": {"type": "own-ipam"}}
    return Executed(runner, netns, tmp_path, config)


async def test_an_ipam_plugin_that_is_not_native_is_executed_for_every_verb(executed: Executed) -> None:
    executed.script(f'[ "$CNI_COMMAND" != ADD ] || {ASSIGN}')
    await executed.done("STATUS")
    result = await executed.done("ADD")
    assert addresses(executed.netns) == ["10.77.0.9/24"]
    assert shown("route show 10.88.0.0/16", executed.netns)[0]["dev"] == "net1"
    await executed.done("CHECK", prevResult=result)
    await executed.done("GC", **valid(("c1", "net1")))
    await executed.done("DEL", prevResult=result)
    assert executed.called() == ["STATUS  0", "ADD c1 0", "CHECK c1 1", "GC  1", "DEL c1 0"]
    given = (executed.folder / "log.stdin").read_text()
    assert '"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}]' in given


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
async def test_an_error_of_an_executed_ipam_plugin_is_the_plugins(executed: Executed, command: str) -> None:
    executed.script(ASSIGN)
    result = await executed.done("ADD")
    executed.script("""echo '{"code": 51, "msg": "the server is away"}'; exit 1""")
    if command == "ADD":
        await executed.run("DEL")
    given = valid() if command == "GC" else {"prevResult": result} if command in {"CHECK", "DEL"} else {}
    assert await executed.refused(command, **given) == (51, "IPAM plugin own-ipam: the server is away")
    assert ("net1" in names(executed.netns)) == (command not in {"ADD", "DEL"})


@pytest.mark.parametrize("then", ["echo none", "echo '{}'", "echo '{\"ips\": [{}]}'", "true"])
async def test_an_executed_ipam_plugin_must_print_a_result(executed: Executed, then: str) -> None:
    executed.script(then)
    code, words = await executed.refused("ADD")
    assert code == 999
    assert "IPAM plugin" in words
    assert names(executed.netns) == {"lo"}


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


def interfaces(netns: str) -> list[str]:
    """Return the names of the namespace's interfaces, in the order in which they were made."""
    words = ["ip", "-n", Path(netns).name, "-j", "link", "show"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [link["ifname"] for link in json.loads(shown)]


@contextlib.contextmanager
def alone(processes: NativePool) -> Iterator[None]:
    """Make the first process do all jobs."""
    others = processes._processes[1:]
    processes._processes[1:] = [processes._processes[0] for _ in others]
    try:
        yield
    finally:
        processes._processes[1:] = others


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
            "loopback", command="STATUS", env={}, stdin=b'{"name": "x"}', search=(), timeout=5
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
    # They keep the pipe open, as they keep the worker's lock: who waits for that waits for them.
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


async def test_a_configuration_larger_than_a_pipe_is_accepted(bridge: Plugin) -> None:
    await bridge.done("ADD", args={"note": "x" * (1 << 20)})
    await bridge.done("DEL", args={"note": "x" * (1 << 20)})


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
        assert asyncio.get_running_loop().time() < until, "a process keeps open what it needs no more"
        await asyncio.sleep(0.01)
    while any(len(os.listdir(f"/proc/{pid}/task")) > 1 for pid in processes.pids):
        assert asyncio.get_running_loop().time() < until, "a thread that took a link away goes on"
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
