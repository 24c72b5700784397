"""The worker's process: ``python -m nodeworker``. The only module that connects its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from events.ledger.ledger import Ledger, LedgerError
from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.metrics_server import serve_metrics
from events.process.settings import SettingsError, add_config_option, ledger_address, load
from events.schema import Command, ComparisonRequested, NodeName, ReclaimRequested, RepairRequested
from nodeworker.drift.inspector import Inspector
from nodeworker.drift.node_comparison import NodeComparison
from nodeworker.drift.repair.repairer import Repairer
from nodeworker.drift.watch.watcher import Watcher
from nodeworker.intake.check import Checker
from nodeworker.intake.log_files import LogFiles
from nodeworker.intake.recovery import Recovery
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.requests import Requests
from nodeworker.intake.service import Loops, Service
from nodeworker.intake.socket_server import SocketServer
from nodeworker.intake.spool import Spool
from nodeworker.journal.hub_link import HubLink
from nodeworker.journal.journal import Journal
from nodeworker.journal.retention import Retention
from nodeworker.journal.worker_lock import only_worker
from nodeworker.leaks.evidence.container_runtime import CriRuntime, SharedRuntime
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.reclaimer import Reclaimer
from nodeworker.leaks.reporter import LeakReporter
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.cluster.open_source import open_source
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.kubelet import Kubelet
from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.runners import PluginRunners
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import CommandHandler, Handler
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.plan_ahead import PlanAhead
from nodeworker.sandboxes.reservation_guard import ReservationGuard
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait
from nodeworker.settings import REFUSE, WorkerSection, WorkerSettings, check

log = structlog.get_logger(__name__)

_SWITCH_INTERVAL = 0.001
"""Seconds after which a busy thread yields to the event loop; Python's default is 5 ms."""
_GC_THRESHOLDS = (10_000, 20, 20)
"""Python's own thresholds cost a twentieth of an attach's time."""


def main() -> int:
    """Run until SIGINT or SIGTERM; return the exit code: 0 stopped in order, 1 failed, 2 configuration."""
    parser = argparse.ArgumentParser(prog="python -m nodeworker", description=__doc__)
    add_config_option(parser)
    parser.add_argument("--check-config", type=Path, metavar="PATH", help="print PATH as JSON or what is wrong; end")
    options = parser.parse_args()
    exit_code = 0
    try:
        if options.check_config:
            sys.stdout.buffer.write(msgspec.json.encode(check(options.check_config)))
        else:
            settings = load(options.config, WorkerSettings)
            logs.configure(settings.log_level, "worker")
            asyncio.run(run(settings))
    except* SettingsError as group:
        sys.stderr.write(f"plumbline-worker: {logs.sentences(group)}\n")
        exit_code = 2
    except* (LedgerError, OSError) as group:
        log.exception("worker_failed", error=logs.sentences(group))
        exit_code = 1
    return exit_code


async def run(settings: WorkerSettings, wrap: Callable[[Ledger], Ledger] = lambda ledger: ledger) -> None:
    """Serve until SIGINT or SIGTERM.

    With *wrap* a test puts something between the worker and its ledger. Raises SettingsError, LedgerError, OSError.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_GC_THRESHOLDS)
    metrics = WorkerMetrics()
    async with contextlib.AsyncExitStack() as stack:
        lock = stack.enter_context(only_worker(Path(settings.run_dir)))
        connection = await JetStreamLedger.connect(
            ledger_address(settings),
            config=NODE_STREAM,
            name="worker",
            observe_ack=metrics.ledger_acked,
            observe_anomaly=metrics.ledger_anomaly,
        )
        stack.push_async_callback(connection.close)
        signalled = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, signalled.set)
        pool = stack.enter_context(contextlib.closing(NativePool(keep=(lock,))))
        tasks = asyncio.TaskGroup()
        service = _compose(settings, metrics, wrap(connection), connection, pool, tasks, stack)
        async with tasks, serve_metrics(metrics.registry, settings.worker.metrics):
            await service.run(tasks, signalled)
    log.info("worker_stopped")


def _compose(
    settings: WorkerSettings,
    metrics: WorkerMetrics,
    ledger: Ledger,
    connection: JetStreamLedger,
    pool: NativePool,
    tasks: asyncio.TaskGroup,
    stack: contextlib.AsyncExitStack,
) -> Service:
    """Build each part from those above it. *ledger* is *connection*, unless a test wraps it."""
    section, timeout, node = settings.worker, settings.worker.delegate_timeout, NodeName(settings.node_name)
    hub = HubLink.configured(settings, connection)
    journal, answers, scheduler = Journal(ledger, node), Answers(), Scheduler(tasks, section.concurrency)
    source = open_source(settings.manifests, section.kubernetes, node, Path(settings.state_dir), metrics)
    executor = PluginExecutor(marker=node)
    runners = PluginRunners(executor, section.native, pool)
    readiness = Readiness(seats=section.concurrency // 2)
    planner = _make_planner(section, source, runners, readiness)
    plans = PlanAhead(journal, scheduler, planner)
    statuses = StatusWait(hub or connection, node, section.status_wait, metrics)
    guard = ReservationGuard(journal, scheduler)
    detacher = Detacher(journal, guard, runners, timeout, metrics)
    attacher = Attacher(
        journal,
        scheduler,
        guard,
        plans,
        detacher,
        runners,
        timeout,
        metrics,
        statuses,
        refuse_default_routes=section.unrequested_default_route == REFUSE,
    )
    collector = GarbageCollector(journal, scheduler, answers, runners, planner, readiness, timeout)

    inspector = stack.enter_context(contextlib.closing(Inspector(settings.drift, journal.boot_id)))
    repairer = Repairer(journal, inspector, runners, timeout, metrics)
    footprint = Footprint(section.devices.info_folder)
    release = ForcedRelease(detacher, runners, executor, timeout)
    handlers, upkeep = _upkeep(settings, metrics, journal, answers, scheduler, inspector, repairer, footprint, release)
    commands = CommandHandler(journal, handlers)
    dispatcher = Dispatcher(scheduler, attacher, detacher, collector, commands, answers, statuses, tasks)

    spool = Spool(settings.spool, journal, answers, metrics)
    recovery = Recovery(journal, scheduler, dispatcher, spool, answers, metrics)
    checker = Checker(journal, runners, planner, timeout, lambda: connection.connected, inspector)
    request_log = RequestLog(section.network, stack.enter_context(LogFiles()))
    request_log.warn_of_keys(section.unknown_network_keys, "worker.network")
    requests = Requests(journal, scheduler, dispatcher, plans, checker, answers, spool, metrics, request_log)
    server = SocketServer(settings.socket, requests)
    retention = Retention(ledger, journal, settings.ledger.retention_hours, None if hub is None else lambda: hub.done)

    async def take_commands() -> None:
        await commands.run(await (ensure_commands(connection) if hub is None else hub.commands()))

    loops: Loops = {
        "dispatch": lambda: dispatcher.run(journal.intents()),
        "stop-when-replaced": journal.fail_when_replaced,
        "stop-when-pool-died": pool.fail_when_process_died,
        "status-wait": statuses.run,
        "commands": take_commands,
        "retention": retention.run,
    }
    _watch(metrics, journal, scheduler, connection, hub)
    later_loops = {"recovery": recovery.run, **upkeep}
    return Service(journal, answers, footprint, source, hub, spool, dispatcher, recovery, server, loops, later_loops)


def _make_planner(
    section: WorkerSection, source: Source | None, runners: PluginRunners, readiness: Readiness
) -> Planner:
    devices: list[DeviceSource] = [Kubelet(Path(section.devices.pod_resources), Path(section.devices.checkpoint))]
    if source is not None and source.claims is not None:
        devices.append(source.claims)
    return Planner(
        source,
        devices,
        runners,
        readiness,
        node_defaults=section.network,
        native=section.native,
        info_folder=section.devices.info_folder,
    )


def _watch(
    metrics: WorkerMetrics, journal: Journal, scheduler: Scheduler, connection: JetStreamLedger, hub: HubLink | None
) -> None:
    metrics.watch(
        queue_depth=lambda: scheduler.queue_depth,
        in_progress=lambda: scheduler.in_progress,
        oldest_pending=lambda: journal.oldest_pending,
        sandboxes=lambda: len(journal.state.sandboxes),
        ledger_connected=lambda: float(connection.connected),
    )
    if hub is not None:
        metrics.watch_hub(
            connected=lambda: float(hub.connected),
            lag_events=lambda: hub.lag_events,
            lag_seconds=lambda: hub.lag_seconds,
        )


def _upkeep(
    settings: WorkerSettings,
    metrics: WorkerMetrics,
    journal: Journal,
    answers: Answers,
    scheduler: Scheduler,
    inspector: Inspector,
    repairer: Repairer,
    footprint: Footprint,
    release: ForcedRelease,
) -> tuple[Mapping[type[Command], Handler], Loops]:
    """Return what fulfils the hub's commands, and the loops that look for drift and leaks."""
    drift, leaks = settings.drift, settings.leaks
    watcher = Watcher(journal, inspector, scheduler)
    journal.subscribe(lambda event, _: footprint.learn(event))
    runtime = SharedRuntime(CriRuntime(leaks.cri_socket))
    scanner = LeakScanner(journal.state, journal.boot_id, runtime, footprint, leaks.results_dir)
    reporter = LeakReporter(journal, scanner, metrics, leaks.interval)
    leak_scan = None if leaks.policy == "off" else reporter.scan_now
    comparison = NodeComparison(journal, watcher, drift.interval, leak_scan)
    handlers: dict[type[Command], Handler] = {ComparisonRequested: comparison.compare}
    if drift.enabled:
        handlers[RepairRequested] = repairer.repair
    if leaks.policy == "reclaim":
        handlers[ReclaimRequested] = Reclaimer(journal, answers, scanner, release, metrics, scheduler).reclaim
    drift_loops: Loops = {"drift": watcher.run, "comparison": comparison.run} if drift.enabled else {}
    leak_loops: Loops = {} if leaks.policy == "off" else {"leaks": reporter.run}
    return handlers, {**drift_loops, **leak_loops}


if __name__ == "__main__":
    sys.exit(main())
