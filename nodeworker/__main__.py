"""The worker's process: reads the configuration, composes the parts, and runs them until it is stopped.

This is the only place that knows all parts. ``_Worker`` is the order of start and stop, ``_Parts`` the composition.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from events.ledger.ledger import ConflictError, Ledger, LedgerError
from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.metrics_server import serve_metrics
from events.process.settings import DEFAULT_PATH, SettingsError, hub_address, ledger_address, load
from events.schema import ComparisonRequested, NodeName, ReclaimRequested, RepairRequested, WorkerStarted, WorkerStopped
from nodeworker.deadline import seconds_since
from nodeworker.drift.inspector import Inspector
from nodeworker.drift.node_comparison import NodeComparison
from nodeworker.drift.repair.repairer import Repairer
from nodeworker.drift.watch.watcher import Watcher
from nodeworker.intake import recovery
from nodeworker.intake.check import Checker
from nodeworker.intake.log_files import LogFiles
from nodeworker.intake.recovery import Recovery
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.requests import Requests
from nodeworker.intake.socket_server import SocketServer
from nodeworker.intake.spool import Spool
from nodeworker.journal.hub_link import HubLink
from nodeworker.journal.journal import Journal
from nodeworker.journal.retention import Retention
from nodeworker.journal.worker_lock import only_worker, version
from nodeworker.leaks.evidence.container_runtime import CriRuntime, SharedRuntime
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.reclaimer import Reclaimer
from nodeworker.leaks.reporter import LeakReporter
from nodeworker.leaks.scanner import LeakScanner, node_link_names
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.kubelet import Kubelet
from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.orphans import end_orphans
from nodeworker.plugins.runners import PluginRunners
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import Command, CommandHandler, Handler
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.plan_ahead import PlanAhead
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait
from nodeworker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_ORPHAN_TIMEOUT = 5.0
_SOURCE_TIMEOUT = 5.0
"""Seconds that the start waits for pods and networks; after that the copy on disk and single look-ups serve."""
_SETTLE_TIMEOUT = 2.0
"""Seconds that the hub gets to take the last events: a node that is drained may not come back."""
_SWITCH_INTERVAL = 0.001
"""Seconds after which a busy thread yields to the event loop; Python's default is 5 ms."""
_GC_THRESHOLDS = (10_000, 20, 20)
"""Python's own thresholds cost a twentieth of an attach's time."""
_GRACE = 5.0
"""Seconds that requests in progress get to finish when the worker is stopped."""


class _Base:
    """The parts that exist before the worker takes the node over."""

    def __init__(
        self,
        settings: WorkerSettings,
        metrics: WorkerMetrics,
        ledger: Ledger,
        connection: JetStreamLedger,
        hub: HubLink | None,
    ) -> None:
        """*ledger* is *connection*, unless a test wraps it."""
        self.settings = settings
        self.metrics = metrics
        self.ledger = ledger
        self.connection = connection
        self.hub = hub
        self.journal = Journal(ledger, NodeName(settings.node_name))
        self.answers = Answers()
        self.spool = Spool(settings.spool, self.journal, self.answers, metrics)
        self.footprint = Footprint(settings.worker.devices.info_folder)
        self.source = _open_source(settings, metrics)
        self.log_files = LogFiles()


async def run(settings: WorkerSettings, wrap: Callable[[Ledger], Ledger] = lambda ledger: ledger) -> None:
    """Serve until SIGTERM or SIGINT.

    With *wrap* a test puts something between the worker and its ledger. Raises LedgerError and SettingsError if the
    worker can't start.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_GC_THRESHOLDS)
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
        await _Worker(_Base(settings, metrics, wrap(connection), connection, hub)).run()
    finally:
        await connection.close()


class _Worker:
    """Start and stop, in order."""

    def __init__(self, base: _Base) -> None:
        self._base = base
        self._settings = base.settings
        self._journal = base.journal

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with (
            only_worker(Path(self._settings.run_dir)) as lock,
            contextlib.closing(NativePool(keep=(lock,))) as pool,
            self._base.log_files,
        ):
            await self._take_over(stop, pool)

    async def _take_over(self, stop: asyncio.Event, pool: NativePool) -> None:
        """Read the ledger, end what an earlier worker left running, and continue from there."""
        links = await asyncio.to_thread(node_link_names)
        async for event in recovery.load(self._journal, self._base.answers):
            self._base.footprint.learn(event, links)
        killed = await end_orphans(self._settings.node_name, _ORPHAN_TIMEOUT)
        pending = len(self._journal.state.pending)
        await self._journal.open_epoch(
            WorkerStarted(version=version(), pid=os.getpid(), pending=pending, spooled=len(self._base.spool))
        )
        log.info("worker_started", node=self._settings.node_name, pending=pending, orphans_killed=killed)
        async with asyncio.TaskGroup() as tasks:
            service = tasks.create_task(self._serve(tasks, stop, pool))
            service.add_done_callback(lambda _: stop.set())

    async def _serve(self, tasks: asyncio.TaskGroup, stop: asyncio.Event, pool: NativePool) -> None:
        """Finish what is open, open the socket, and serve until *stop*."""
        parts = self._compose(tasks, pool)
        hub_task = None if self._base.hub is None else tasks.create_task(self._base.hub.run(), name="hub")
        background = [
            tasks.create_task(self._consume(parts.dispatcher), name="consume"),
            tasks.create_task(self._stop_when_replaced(), name="stop-when-replaced"),
            tasks.create_task(_stop_when_pool_died(pool), name="stop-when-pool-died"),
            tasks.create_task(parts.statuses.run(), name="status-wait"),
            tasks.create_task(self._take_commands(parts.commands), name="commands"),
            tasks.create_task(self._retention().run(), name="retention"),
        ]
        if (source := self._base.source) is not None:
            background.append(tasks.create_task(source.run(), name="source"))
            if not await source.ready(_SOURCE_TIMEOUT):
                log.warning("source_not_ready", after=_SOURCE_TIMEOUT)
        async with serve_metrics(self._base.metrics.registry, self._settings.worker.metrics):
            for request in [*parts.recovery.resume(), *await self._base.spool.drain()]:
                await self._base.answers.wait(request)
            background += map(tasks.create_task, parts.after_recovery())
            await parts.server.open()
            log.info("worker_open", socket=str(self._settings.socket))
            await stop.wait()
            await parts.server.close()
            await parts.dispatcher.finish(_GRACE)
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        await self._close_ledgers(hub_task)
        parts.inspector.close()
        if source is not None:
            source.close()
        log.info("worker_stopped")

    def _compose(self, tasks: asyncio.TaskGroup, pool: NativePool) -> _Parts:
        connection, state = self._base.connection, self._journal.state
        parts = _Parts(self._base, tasks, pool)
        self._base.metrics.watch(
            queue_depth=lambda: parts.scheduler.queue_depth,
            in_progress=lambda: parts.scheduler.in_progress,
            oldest_pending=lambda: max((seconds_since(p.event.at) for p in tuple(state.pending.values())), default=0.0),
            sandboxes=lambda: len(state.sandboxes),
            ledger_connected=lambda: float(connection.connected),
        )
        if (hub := self._base.hub) is not None:
            self._base.metrics.watch_hub(
                connected=lambda: float(hub.connected),
                lag_events=lambda: hub.lag_events,
                lag_seconds=lambda: hub.lag_seconds,
            )
        return parts

    async def _close_ledgers(self, hub_task: asyncio.Task[None] | None) -> None:
        with contextlib.suppress(LedgerError):
            await self._journal.record(WorkerStopped(reason="signal"))
        await self._journal.close()
        if (hub := self._base.hub) is not None and hub_task is not None:
            await hub.settle(_SETTLE_TIMEOUT)
            hub_task.cancel()
            await asyncio.wait({hub_task})
            await hub.close()

    async def _consume(self, dispatcher: Dispatcher) -> None:
        """Dispatch every intent that the ledger sends back after ``Journal.append_intent``."""
        async for intent in self._journal.intents():
            dispatcher.dispatch(intent)

    async def _stop_when_replaced(self) -> None:
        """End everything at once if another worker takes the node over: that one continues, as after a crash."""
        await self._journal.replaced.wait()
        raise ConflictError(f"another worker has taken node {self._settings.node_name} over: this one stops")

    async def _take_commands(self, commands: CommandHandler) -> None:
        hub, connection = self._base.hub, self._base.connection
        await commands.run(await (ensure_commands(connection) if hub is None else hub.commands()))

    def _retention(self) -> Retention:
        hub, hours = self._base.hub, self._settings.ledger.retention_hours
        copied = () if hub is None else (lambda: hub.done,)
        return Retention(self._base.ledger, self._journal, hours, *copied)


class _Parts:
    """The parts that serve the node, each built from those above it."""

    def __init__(self, base: _Base, tasks: asyncio.TaskGroup, pool: NativePool) -> None:
        settings, section = base.settings, base.settings.worker
        self._base = base
        self._executor = PluginExecutor(marker=settings.node_name)
        self._runners = PluginRunners(self._executor, section.native, pool)
        self._readiness = Readiness(seats=section.concurrency // 2)
        self._planner = self._make_planner()
        self.scheduler = Scheduler(tasks, section.concurrency)
        self.statuses = StatusWait(base.hub or base.connection, base.journal.node, section.status_wait, base.metrics)
        self._detacher = Detacher(base.journal, self._runners, section.delegate_timeout, base.metrics)
        self._plans = PlanAhead(base.journal, self.scheduler, self._planner)
        self.inspector = Inspector(settings.drift, base.journal.boot_id)
        self._watcher = Watcher(base.journal, self.inspector, self.scheduler)
        self._leaks, reclaimer = self._make_leak_parts()
        leak_scan = None if settings.leaks.policy == "off" else self._leaks.scan_now
        self._comparison = NodeComparison(base.journal, self._watcher, settings.drift.interval, leak_scan)
        self.commands = CommandHandler(base.journal, self._command_handlers(reclaimer))
        self.dispatcher = self._make_dispatcher(tasks)
        self.recovery = Recovery(base.journal, self.scheduler, self.dispatcher, base.spool, base.metrics)
        self.server = self._make_server()

    def after_recovery(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return the endless loops that start once the worker has finished what was open."""
        settings = self._base.settings
        loops = [self.recovery.run()]
        if settings.drift.enabled:
            loops += [self._watcher.run(), self._comparison.run()]
        if settings.leaks.policy != "off":
            loops.append(self._leaks.run())
        return loops

    def _make_planner(self) -> Planner:
        section, source = self._base.settings.worker, self._base.source
        kubelet = Kubelet(Path(section.devices.pod_resources), Path(section.devices.checkpoint))
        claims = source.claims if source else None
        devices: list[DeviceSource] = [kubelet, claims] if claims else [kubelet]
        return Planner(
            source,
            devices,
            self._runners,
            self._readiness,
            node_defaults=section.network,
            native=section.native,
            info_folder=section.devices.info_folder,
        )

    def _make_leak_parts(self) -> tuple[LeakReporter, Reclaimer]:
        base, settings = self._base, self._base.settings.leaks
        base.journal.subscribe(lambda event, _: base.footprint.learn(event))
        runtime = SharedRuntime(CriRuntime(settings.cri_socket))
        scanner = LeakScanner(base.journal.state, base.journal.boot_id, runtime, base.footprint, settings.results_dir)
        timeout = base.settings.worker.delegate_timeout
        forced_release = ForcedRelease(self._detacher, self._runners, self._executor, timeout)
        return (
            LeakReporter(base.journal, scanner, base.metrics, settings.interval),
            Reclaimer(base.journal, base.answers, scanner, forced_release, base.metrics, self.scheduler),
        )

    def _command_handlers(self, reclaimer: Reclaimer) -> Mapping[type[Command], Handler]:
        base, settings = self._base, self._base.settings
        handlers: dict[type[Command], Handler] = {ComparisonRequested: self._comparison.compare}
        if settings.drift.enabled:
            timeout = settings.worker.delegate_timeout
            repairer = Repairer(base.journal, self.inspector, self._runners, timeout, base.metrics)
            handlers[RepairRequested] = repairer.repair
        if settings.leaks.policy == "reclaim":
            handlers[ReclaimRequested] = reclaimer.reclaim
        return handlers

    def _make_dispatcher(self, tasks: asyncio.TaskGroup) -> Dispatcher:
        base, timeout = self._base, self._base.settings.worker.delegate_timeout
        attacher = Attacher(
            base.journal,
            self.scheduler,
            self._plans,
            self._detacher,
            self._runners,
            timeout,
            base.metrics,
            self.statuses,
        )
        collector = GarbageCollector(
            base.journal, self.scheduler, base.answers, self._runners, self._planner, self._readiness, timeout
        )
        return Dispatcher(
            self.scheduler, attacher, self._detacher, collector, self.commands, base.answers, self.statuses, tasks
        )

    def _make_server(self) -> SocketServer:
        base, section, connection = self._base, self._base.settings.worker, self._base.connection
        checker = Checker(
            base.journal,
            self._runners,
            self._planner,
            section.delegate_timeout,
            lambda: connection.connected,
            self.inspector,
        )
        request_log = RequestLog(section.network, base.log_files)
        request_log.warn_of_keys(section.unknown_network_keys, "worker.network")
        requests = Requests(
            base.journal,
            self.scheduler,
            self.dispatcher,
            self._plans,
            checker,
            base.answers,
            base.spool,
            base.metrics,
            request_log,
        )
        return SocketServer(base.settings.socket, requests)


async def _stop_when_pool_died(pool: NativePool) -> None:
    """End everything once a native process has ended: the next worker starts all of them."""
    await pool.died.wait()
    raise ChildProcessError("a process that makes interfaces ended unasked: the worker starts anew")


def _open_source(settings: WorkerSettings, metrics: WorkerMetrics) -> Source | None:
    """Return where pods and networks come from. Raises SettingsError."""
    if settings.manifests:
        # Each source costs memory that only its users pay.
        from nodeworker.planning.cluster.manifests import Manifests  # noqa: PLC0415

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
    """Run the worker; return its exit code: 0 stopped in order, 1 failed, 2 configuration."""
    parser = argparse.ArgumentParser(prog="plumbline-worker", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    parser.add_argument("--check-config", type=Path, metavar="PATH", help="say what is wrong with PATH, and end")
    options = parser.parse_args()
    try:
        settings = load(options.check_config or options.config, WorkerSettings)
        if options.check_config:
            return 0
        logs.configure(settings.log_level, "worker")
        return _exit_code_of(settings)
    except SettingsError as error:
        sys.stderr.write(f"plumbline-worker: {error}\n")
        return 2


def _exit_code_of(settings: WorkerSettings) -> int:
    exit_code = 0
    try:
        asyncio.run(run(settings))
    except* (LedgerError, OSError) as group:
        log.exception("worker_failed", error="; ".join(str(error) for error in group.exceptions))
        exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
