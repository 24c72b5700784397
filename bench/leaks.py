"""Soak test of leaks: processes are killed while pods start and end; only resources of ended pods may be freed.

Worker and reconciler are the real parts on a ledger in memory, addresses are files of host-local, a namespace is a
file, and the runtime is a list. Each worker purges ended events before it is killed. A seed decides what happens to
each pod, and which process is killed when. Two scans count as separate after 20 ms instead of 2 s, so ten thousand
pods take minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from bench.report import report
from events.fold import AttachmentPhase, Sandbox, SandboxKey
from events.ledger.commands import MemoryCommands
from events.ledger.memory import MemoryLedger
from events.process import logs
from events.schema import (
    AttachCompleted,
    AttachPlanned,
    AttachRequested,
    ContainerId,
    DetachRequested,
    Event,
    EventId,
    IfName,
    InterfaceAttached,
    LeakReclaimed,
    LeakReclaimFailed,
    NetworkName,
    NodeName,
    PlannedAttachment,
    ReclaimRequested,
    RequestId,
    WorkerStarted,
)
from nodeworker.journal.journal import Journal
from nodeworker.journal.retention import Retention
from nodeworker.leaks import reporter, scanner
from nodeworker.leaks.evidence.container_runtime import RuntimeUnknownError, SharedRuntime
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.judge import Inventory
from nodeworker.leaks.reclaimer import Reclaimer
from nodeworker.leaks.reporter import LeakReporter
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins import chain
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.runners import PluginRunners
from nodeworker.sandboxes.answers import OK, Answers, Reply
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import CommandHandler
from nodeworker.sandboxes.detach import Detacher, add_target
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.reservation_guard import ReservationGuard
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait
from reconciler.decisions import leaks as decisions
from reconciler.decisions.leaks import LastReclaim, LeakKey
from reconciler.decisions.reclaim_sender import command

NODE, ETH0 = NodeName("node"), IfName("eth0")


class Pod:
    """One life."""

    def __init__(self, folder: Path) -> None:
        self.id = ContainerId(os.urandom(32).hex())
        self.netns = folder / self.id
        self.netns.symlink_to(f"/proc/{os.getpid()}/ns/net")
        self.attached = False
        self.address: Path | None = None
        """The file that holds its address once it is attached."""

    @property
    def plan(self) -> AttachPlanned:
        """What its ADD is planned to do: an address of host-local's, and no interface."""
        ipam = {"type": "host-local", "dataDir": str(self.netns.parents[1] / "ipam"), "subnet": "10.1.0.0/20"}
        plugin = {"cniVersion": "1.0.0", "name": "net", "type": "passthru", "ipam": ipam}
        attachment = PlannedAttachment(
            network=NetworkName("net"),
            ifname=ETH0,
            cni_name="net",
            cni_version="1.0.0",
            plugins=(msgspec.json.encode(plugin).decode(),),
            native=(True,),
        )
        return AttachPlanned(
            ifname=ETH0, netns=str(self.netns), path="/nowhere", cni_version="1.0.0", attachments=(attachment,)
        )


class Runtime:
    """Reports the pods that the benchmark sets; it can hang."""

    def __init__(self) -> None:
        self.pods: set[str] = set()
        self.hangs = False

    async def inventory(self) -> Inventory:
        """See ``nodeworker.leaks.evidence.container_runtime.ContainerRuntime``."""
        await asyncio.sleep(0)
        if self.hangs:
            raise RuntimeUnknownError("it hangs")
        return Inventory(frozenset(self.pods), frozenset(self.pods), "the runtime")


class _Attacher:
    """Attaches what the lives say; the worker's own would look into the namespaces."""

    def __init__(self, journal: Journal, runners: PluginRunners, pods: dict[str, Pod]) -> None:
        self._journal = journal
        self._runners = runners
        self._pods = pods

    async def attach(self, event: Event, request: AttachRequested, *_: Any, **__: Any) -> Reply:
        key, record = SandboxKey(event.sandbox, ETH0), self._journal.record
        box = self._journal.state.sandboxes[key]
        if box.plan is None:
            await record(self._pods[event.sandbox].plan, event.sandbox, event.id)
            box = self._journal.state.sandboxes[key]
        if box.attachments[0].phase is AttachmentPhase.PLANNED:
            result, _ = await chain.add(self._runners, box.attachments[0].plan, add_target(box), 10.0)
            done = InterfaceAttached(network=NetworkName("net"), ifname=ETH0, result=result, seconds=0.0)
            await record(done, event.sandbox, event.id)
        await record(AttachCompleted(request=request.request, ifname=ETH0, result="{}"), event.sandbox, event.id)
        return OK


class _NoStatuses:
    """No answer waits for a status."""

    def expects(self, _: EventId) -> bool:
        return False

    def forget(self, _: EventId) -> None:
        pass


class Worker:
    """The worker's parts, and the deciding one of the reconciler, until they are killed."""

    def __init__(self, ledger: MemoryLedger, commands: MemoryCommands, world: World) -> None:
        self.journal = Journal(ledger, NODE)
        self.metrics = WorkerMetrics()
        self._commands = commands
        self._world = world
        self._asked: dict[LeakKey, LastReclaim] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run inside the block, and die at its end, even with work in progress."""
        journal, answers = self.journal, Answers()
        places = Footprint(str(self._world.folder / "devinfo"))
        async for stored in journal.load():
            places.learn(stored.event)
        await journal.open_epoch(WorkerStarted(version="0", pid=1))
        journal.subscribe(lambda event, _: places.learn(event))
        journal.subscribe(self._heard)
        executor = PluginExecutor(marker="bench")
        processes = NativePool()
        runners = PluginRunners(executor, "auto", processes)
        shared, results = SharedRuntime(self._world.runtime), str(self._world.folder / "results")
        scanner = LeakScanner(journal.state, journal.boot_id, shared, places, results)
        leaks = LeakReporter(journal, scanner, self.metrics, 0.1)
        attacher = cast("Attacher", _Attacher(journal, runners, self._world.pods))
        statuses = cast("StatusWait", _NoStatuses())
        tasks = asyncio.TaskGroup()
        with contextlib.suppress(asyncio.CancelledError):
            async with tasks:
                collector = cast("GarbageCollector", None)
                scheduler = Scheduler(tasks, 16)
                guard = ReservationGuard(journal, scheduler)
                detacher = Detacher(journal, guard, runners, 20.0, self.metrics)
                forced_release = ForcedRelease(detacher, runners, executor, 10.0)
                reclaimer = Reclaimer(journal, answers, scanner, forced_release, self.metrics, scheduler)
                handler = CommandHandler(journal, {ReclaimRequested: reclaimer.reclaim})
                dispatcher = Dispatcher(scheduler, attacher, detacher, collector, handler, answers, statuses, tasks)
                for pending in sorted(journal.state.pending.values(), key=lambda each: each.sequence):
                    dispatcher.dispatch(pending, resumed=True)

                async def consume() -> None:
                    async for intent in journal.intents():
                        dispatcher.dispatch(intent)

                parts = [consume(), leaks.run(), handler.run(self._commands), self._decide()]
                background = [tasks.create_task(part) for part in parts]
                try:
                    yield
                finally:
                    for task in [*background, *scheduler._queue_tasks]:  # as hard as a kill gets
                        task.cancel()
        await journal.close()
        processes.close()

    def _heard(self, event: Event, _: Sandbox | None) -> None:
        match event.data:
            case LeakReclaimFailed(leak=leak, failure=failure):
                key = LeakKey(event.node, leak.id)
                if key in self._asked:
                    self._asked[key] = decisions.after_refusal(
                        self._asked[key], failure.error_class, time.monotonic() - 5.0
                    )
            case LeakReclaimed(leak=leak):
                self._world.reclaimed += 1
                self._asked.pop(LeakKey(event.node, leak.id), None)
            case _:
                pass

    async def _decide(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            leaks = {LeakKey(*key): leaked for key, leaked in self.journal.state.leaks.items()}
            for reclaim in decisions.reclaims(leaks, self._asked, time.monotonic()):
                order = command(reclaim)
                self._asked[LeakKey(reclaim.node, reclaim.leak.id)] = decisions.after_sending(
                    self._asked, reclaim, order.id, time.monotonic()
                )
                await self._commands.send(order)


class World:
    """The actual state of the simulated node, independent of what the worker knows."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.runtime = Runtime()
        self.pods: dict[str, Pod] = {}
        self.alive: dict[str, Pod] = {}
        self.reclaimed = 0
        self.missed = 0
        self.kills = 0
        self.left: set[str] = set()
        self.false_frees: list[str] = []
        (folder / "netns").mkdir()

    def holders(self) -> set[str]:
        """Return the containers that host-local's files name."""
        return {_holder(path) for path in self._files()} - {""}

    def check(self, journal: Journal) -> None:
        """Record each live pod that was attached and has lost its resources."""
        boxes = {key.container_id: box for key, box in journal.state.sandboxes.items()}
        attached = [pod for pod in self.alive.values() if pod.attached or ((box := boxes.get(pod.id)) and box.result)]
        fresh = [pod for pod in attached if not pod.attached]
        files = {_holder(path): path for path in self._files()} if fresh else {}
        for pod in fresh:
            pod.attached, pod.address = True, files.get(pod.id)
        for pod in attached:
            if pod.id not in boxes or pod.address is None or _holder(pod.address) != pod.id:
                self.false_frees.append(pod.id)

    def _files(self) -> Iterator[Path]:
        return (self.folder / "ipam" / "net").glob("10.*")

    async def live(self, worker: Worker, lives: int, at_once: int) -> int:
        """Start and end pods until *lives* have started, or the worker must be killed; return how many started."""
        came = 0
        kill_after = self.dice.randrange(150, 400)
        while came < min(lives, kill_after):
            await self._step(worker, at_once)
            came += self._born
            self.check(worker.journal)
        return came

    _born = 0

    async def _step(self, worker: Worker, at_once: int) -> None:
        self._born = 0
        if self.dice.random() < (0.1 if self.runtime.hangs else 0.01):
            self.runtime.hangs = not self.runtime.hangs
        if len(worker.journal.state.sandboxes) > 3 * at_once:  # more dead ones than a node ever has
            await asyncio.sleep(0.02)
            return
        for _ in range(8):
            if len(self.alive) < at_once:
                await self._come(worker)
                self._born += 1
        for pod in self.dice.sample(list(self.alive.values()), min(len(self.alive), 8)):
            await self._go_on(worker, pod)
        await asyncio.sleep(0.005)

    async def _come(self, worker: Worker) -> None:
        pod = Pod(self.folder / "netns")
        self.pods[pod.id] = self.alive[pod.id] = pod
        self.runtime.pods.add(pod.id)
        request = RequestId(os.urandom(8).hex())
        add = AttachRequested(request=request, ifname=ETH0, netns=str(pod.netns), config="{}")
        await worker.journal.append_intent(worker.journal.event(add, pod.id))

    async def _go_on(self, worker: Worker, pod: Pod) -> None:
        """Have something happen to *pod*: most get a DEL; the others lose what they have, in either order."""
        throw = self.dice.random()
        if throw < 0.3:
            request = RequestId(os.urandom(8).hex())
            await worker.journal.append_intent(
                worker.journal.event(DetachRequested(request=request, ifname=ETH0), pod.id)
            )
            self._end(pod)
        elif throw < 0.5:
            self.runtime.pods.discard(pod.id)
        elif throw < 0.7:
            pod.netns.unlink(missing_ok=True)
        if pod.id in self.alive and pod.id not in self.runtime.pods and not pod.netns.is_symlink():
            self.missed += 1
            self._end(pod)

    def _end(self, pod: Pod) -> None:
        del self.alive[pod.id]
        self.runtime.pods.discard(pod.id)
        pod.netns.unlink(missing_ok=True)

    async def settle(self, worker: Worker, seconds: float = 60.0) -> set[str]:
        """Return the ended containers that files or the ledger still have after *seconds*."""
        self.runtime.hangs = False
        until = time.monotonic() + seconds
        while True:
            self.check(worker.journal)
            held = self.holders() | {key.container_id for key in worker.journal.state.sandboxes}
            if not (left := held - self.alive.keys()) or time.monotonic() > until:
                return left
            await asyncio.sleep(0.05)


def _holder(path: Path) -> str:
    """Return the container that a file of host-local names; empty if the file is gone."""
    try:
        return path.read_bytes().partition(b"\r\n")[0].decode()
    except FileNotFoundError:
        return ""


async def soak(folder: Path, seed: int, lives: int, at_once: int = 60) -> World:
    """Return the world after that number of *lives*."""
    world = World(folder, seed)
    ledger, commands = MemoryLedger(), MemoryCommands()
    came = 0
    while came < lives:
        worker = Worker(ledger, commands, world)
        async with worker.running():
            came += await world.live(worker, lives - came, at_once)
            await Retention(ledger, worker.journal, hours=0).purge(time.time_ns())
            if came >= lives:
                world.left = await world.settle(worker)
        world.kills += 1
    return world


def quickened() -> contextlib.ExitStack:
    """Have two looks be 20 ms apart, and none of them look into namespaces, meanwhile."""
    stack = contextlib.ExitStack()
    for module, name, value in (
        (reporter, "APART", 0.02),
        (reporter, "_CONFIRM", 0.03),
        (reporter, "_SETTLE", 0.01),
        (scanner, "addresses_in_use", frozenset),
    ):
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)
    return stack


def main(arguments: list[str] | None = None) -> None:
    """Run it and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.leaks", description=__doc__)
    parser.add_argument("--lives", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, quickened():
        world = asyncio.run(soak(Path(folder), options.seed, options.lives))
    report(f"{options.lives} pod lives, worker killed", world.kills, "times")
    report("…, DELs missed", world.missed, "pods")
    report("…, freed of those", world.missed - len(world.left), "pods", world.missed, better="more")
    report("…, LeakReclaimed recorded", world.reclaimed, "pods")
    report("…, false frees", len(world.false_frees), "pods", 0.0)
    report("…, took", time.monotonic() - started, "s")


if __name__ == "__main__":
    main()
