"""The worker's process: the only place that knows all its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from events.fold import request_of
from events.ledger.ledger import ConflictError, Ledger, LedgerError
from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.metrics_server import serve_metrics
from events.process.settings import DEFAULT_PATH, SettingsError, hub_address, ledger_address, load
from events.schema import (
    INTENTS,
    Event,
    EventId,
    NodeName,
    WorkerStarted,
    WorkerStopped,
)
from nodeworker.deadline import seconds_since, seconds_until
from nodeworker.intake.recovery import Retention
from nodeworker.journal.hub_link import HubLink
from nodeworker.journal.journal import Journal
from nodeworker.journal.worker_lock import only_worker, version
from nodeworker.leaks.scanner import node_link_names
from nodeworker.metrics import WorkerMetrics
from nodeworker.parts import Memory, Parts
from nodeworker.planning.cluster.source import Source
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.orphans import end_orphans
from nodeworker.sandboxes.answers import reply_of
from nodeworker.sandboxes.commands import Orders
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_ORPHAN_PATIENCE = 5.0
_SOURCE_PATIENCE = 5.0
"""Seconds that a start waits for pods and networks; after that the copy on disk and single look-ups must do."""
_SETTLE = 2.0
"""Seconds that the hub gets to take the last events: a node that is drained may not come back."""
_SWITCH = 0.001
"""Seconds after which a thread at work, looking at a sandbox say, lets the event loop go on; by default it is 5 ms."""
_GARBAGE = (10_000, 20, 20)
"""How seldom garbage is looked for: as often as Python does by itself it takes a twentieth of an attach's time."""
_GRACE = 5.0
"""Seconds that requests under way get to finish when the worker is told to stop."""


async def run(settings: WorkerSettings, wrap: Callable[[Ledger], Ledger] = lambda ledger: ledger) -> None:
    """Serve until SIGTERM or SIGINT.

    *wrap* lets a test put something between the worker and its ledger. Raises LedgerError and SettingsError when the
    worker can't start.
    """
    sys.setswitchinterval(_SWITCH)
    gc.set_threshold(*_GARBAGE)
    metrics = WorkerMetrics()
    address = ledger_address(settings)
    hub_at = hub_address(settings)
    connection = await JetStreamLedger.connect(
        address, config=NODE_STREAM, name="worker", observe_ack=metrics.ledger_acked
    )
    try:
        hub = None
        if hub_at is not None and settings.hub is not None:
            hub = HubLink(hub_at, settings.hub.replicas, connection, NodeName(settings.node_name))
        await _Worker(settings, wrap(connection), connection, hub, metrics).run()
    finally:
        await connection.close()


class _Worker:
    def __init__(
        self,
        settings: WorkerSettings,
        ledger: Ledger,
        connection: JetStreamLedger,
        hub: HubLink | None,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._connection = connection
        self._hub = hub
        self._metrics = metrics
        self._journal = Journal(ledger, NodeName(settings.node_name))
        self._memory = Memory(settings, self._journal, _open_source(settings, metrics))

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with (
            only_worker(Path(self._settings.run_dir)) as lock,
            contextlib.closing(NativePool(keep=(lock,))) as processes,
            self._memory.log_files,
        ):
            await self._take_over(stop, processes)

    async def _take_over(self, stop: asyncio.Event, processes: NativePool) -> None:
        """Learn what was, and go on from there."""
        await self._load()
        killed = await end_orphans(self._settings.node_name, _ORPHAN_PATIENCE)
        pending = len(self._journal.state.pending)
        await self._journal.open_epoch(
            WorkerStarted(version=version(), pid=os.getpid(), pending=pending, spooled=len(self._memory.spool))
        )
        log.info("worker_started", node=self._settings.node_name, pending=pending, orphans_killed=killed)
        async with asyncio.TaskGroup() as tasks:
            service = tasks.create_task(self._serve(tasks, stop, processes))
            service.add_done_callback(lambda _: stop.set())

    async def _serve(self, tasks: asyncio.TaskGroup, stop: asyncio.Event, processes: NativePool) -> None:
        """Finish what is open, open the door, and stay until *stop*."""
        notices, source = self._hub or self._connection, self._memory.source
        parts = Parts(self._settings, self._memory, notices, self._ledger_connected, processes, self._metrics, tasks)
        self._watch(parts.dispatcher)
        hub_task = None if self._hub is None else tasks.create_task(self._hub.run(), name="hub")
        background = [
            tasks.create_task(self._consume(parts.dispatcher), name="consume"),
            tasks.create_task(self._give_way(), name="give-way"),
            tasks.create_task(_give_up(processes), name="give-up"),
            tasks.create_task(parts.statuses.run(), name="hear-publisher"),
            tasks.create_task(self._take_orders(parts.orders), name="orders"),
            tasks.create_task(self._retention().run(), name="retention"),
        ]
        if source is not None:
            background.append(tasks.create_task(source.run(), name="source"))
            if not await source.ready(_SOURCE_PATIENCE):
                log.warning("source_not_ready", after=_SOURCE_PATIENCE)
        async with serve_metrics(self._metrics.registry, self._settings.worker.metrics):
            for request in [*parts.upkeep.resume(), *await parts.upkeep.drain_spool()]:
                await self._memory.answers.wait(request)
            background += map(tasks.create_task, parts.watching())
            await parts.door.open()
            log.info("worker_open", socket=str(self._settings.socket))
            await stop.wait()
            await parts.door.close()
            await parts.dispatcher.finish(_GRACE)
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        await self._say_goodbye(hub_task)
        parts.inspector.close()
        if source is not None:
            source.close()
        log.info("worker_stopped")

    async def _say_goodbye(self, hub_task: asyncio.Task[None] | None) -> None:
        with contextlib.suppress(LedgerError):
            await self._journal.record(WorkerStopped(reason="signal"))
        await self._journal.close()
        if self._hub is not None and hub_task is not None:
            await self._hub.settle(_SETTLE)
            hub_task.cancel()
            await asyncio.wait({hub_task})
            await self._hub.close()

    async def _consume(self, dispatcher: Dispatcher) -> None:
        async for intent in self._journal.intents():
            dispatcher.dispatch(intent)

    async def _give_way(self) -> None:
        """End everything at once when another worker has the node: as after a crash, that one goes on with it."""
        await self._journal.replaced.wait()
        raise ConflictError(f"another worker has taken node {self._settings.node_name} over: this one stops")

    async def _take_orders(self, orders: Orders) -> None:
        await orders.run(await (ensure_commands(self._connection) if self._hub is None else self._hub.commands()))

    def _retention(self) -> Retention:
        hub, hours = self._hub, self._settings.ledger.retention_hours
        return Retention(self._ledger, self._journal, hours, *(() if hub is None else (lambda: hub.done,)))

    def _ledger_connected(self) -> bool:
        return self._connection.connected

    async def _load(self) -> None:
        """Learn what the ledger says, and keep the answers that an entry point may still come back for."""
        waiting: dict[EventId, Event] = {}
        there = await asyncio.to_thread(node_link_names)
        async for stored in self._journal.load():
            event, request = stored.event, request_of(stored.event)
            self._memory.places.learn(event, there)
            if request is None:
                continue
            if event.type in INTENTS:
                if seconds_until(getattr(event.data, "deadline", "")) > 0:
                    waiting[event.id] = event
            elif (intent := waiting.pop(event.cause, None)) is not None:
                self._memory.answers.give(request, reply_of(event.data, getattr(intent.data, "config", "")))

    def _watch(self, dispatcher: Dispatcher) -> None:
        state = self._journal.state
        self._metrics.watch(
            queue_depth=lambda: dispatcher.queue_depth,
            in_progress=lambda: dispatcher.in_progress,
            oldest_pending=lambda: max((seconds_since(p.event.at) for p in tuple(state.pending.values())), default=0.0),
            sandboxes=lambda: len(state.sandboxes),
            ledger_connected=lambda: float(self._ledger_connected()),
        )
        if (hub := self._hub) is not None:
            self._metrics.watch_hub(
                connected=lambda: float(hub.connected),
                lag_events=lambda: hub.lag_events,
                lag_seconds=lambda: hub.lag_seconds,
            )


async def _give_up(processes: NativePool) -> None:
    """End everything once a process that makes interfaces has ended: whoever starts anew makes all of them."""
    await processes.died.wait()
    raise ChildProcessError("a process that makes interfaces ended unasked: the worker starts anew")


def _open_source(settings: WorkerSettings, metrics: WorkerMetrics) -> Source | None:
    """Return where pods and networks come from. Raises SettingsError."""
    if settings.manifests:
        from nodeworker.planning.cluster.manifests import Manifests  # noqa: PLC0415  # each costs memory that only its user pays

        return Manifests(Path(settings.manifests))
    if (cluster := settings.worker.kubernetes) is None:
        return None
    from nodeworker.planning.cluster.apiserver.credentials import from_kubeconfig, in_cluster  # noqa: PLC0415
    from nodeworker.planning.cluster.apiserver.source import Kubernetes  # noqa: PLC0415

    credentials = from_kubeconfig(Path(cluster.kubeconfig)) if cluster.kubeconfig else in_cluster()
    folder = Path(settings.state_dir) / "cluster"
    source = Kubernetes(credentials, settings.node_name, folder, pod_wait=cluster.pod_wait)
    metrics.watch_cluster(source.watches)
    return source


def main() -> int:
    """Run the worker; return its exit code: 0 stopped in order, 1 could not go on, 2 configuration."""
    parser = argparse.ArgumentParser(prog="plumbline-worker", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    parser.add_argument("--check-config", type=Path, metavar="PATH", help="say what is wrong with PATH, and end")
    options = parser.parse_args()
    try:
        settings = load(options.check_config or options.config, WorkerSettings)
        if options.check_config:
            return 0
        logs.configure(settings.log_level, "worker")
        return _serve(settings)
    except SettingsError as error:
        sys.stderr.write(f"plumbline-worker: {error}\n")
        return 2


def _serve(settings: WorkerSettings) -> int:
    exit_code = 0
    try:
        asyncio.run(run(settings))
    except* (LedgerError, OSError) as group:
        log.exception("worker_failed", error="; ".join(str(error) for error in group.exceptions))
        exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
