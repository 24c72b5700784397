"""The reconciler's process: ``python -m reconciler``. The only module that connects its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import structlog

from events.ledger.ledger import LedgerError
from events.ledger.notices import Notices
from events.nats.commands import JetStreamCommands
from events.nats.streams import command_stream
from events.process import logs
from events.process.metrics_server import serve_metrics
from events.process.settings import SettingsError, add_config_option, load
from reconciler.decisions.reclaim_sender import ReclaimSender
from reconciler.decisions.repair_sender import RepairSender
from reconciler.follow.connections import connect, hub_replicas, retry_until_reachable
from reconciler.follow.leadership import ElectedLeadership, replica_name
from reconciler.follow.listeners import Listener
from reconciler.follow.loop import Reconciler
from reconciler.follow.periodic_snapshots import PeriodicSnapshots, SnapshotBootstrap, SnapshotFolder
from reconciler.follow.retention import Retention
from reconciler.follow.term import Term
from reconciler.metrics import Metrics
from reconciler.projection.batching import collect_garbage_rarely
from reconciler.projection.sql.engine import ProjectionError
from reconciler.projection.store import Store
from reconciler.settings import ReconcilerSettings
from reconciler.status.fenced_sink import FencedSink
from reconciler.status.guard.guard import StatusGuard
from reconciler.status.open_sink import open_pod_events, open_sink
from reconciler.status.publishing import StatusPublisher
from reconciler.status.sink import StatusSink
from reconciler.verify.periodic import PeriodicVerification

log = structlog.get_logger(__name__)

_GRACE = 1.0
_SAFE_REPLICAS = 3
"""Number of servers with which a hub survives the loss of one."""

_CONFIGURATION_ERRORS = (SettingsError, ProjectionError, LedgerError)
"""Errors that a restart can't solve: an operator has to."""


def main() -> int:
    """Run until SIGINT or SIGTERM; return the exit code: 0 stopped in order, 2 the configuration can't be used."""
    parser = argparse.ArgumentParser(prog="python -m reconciler", description=__doc__)
    add_config_option(parser)
    path = parser.parse_args().config
    exit_code = 0
    try:
        settings = load(path, ReconcilerSettings)
        logs.configure(settings.log_level, "reconciler")
        collect_garbage_rarely()
        asyncio.run(run(settings, path))
    except* _CONFIGURATION_ERRORS as group:
        sys.stderr.write(f"plumbline: {logs.sentences(group)}\n")
        exit_code = 2
    return exit_code


async def run(settings: ReconcilerSettings, config: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. Raises SettingsError, ProjectionError, LedgerError."""
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    serving = asyncio.create_task(_serve(settings, config), name="serve")
    waiting = asyncio.create_task(signalled.wait(), name="wait-for-signal")
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    # Before Python 3.12 asyncio.wait_for, which nats-py uses, loses a cancellation that arrives together with the
    # answer. asyncio.run cancels the remaining tasks again.
    await asyncio.wait({serving}, timeout=_GRACE)
    if serving.done() and not serving.cancelled():
        serving.result()
    log.info("reconciler_stopped")


async def _serve(settings: ReconcilerSettings, config: Path | None) -> None:
    metrics = Metrics()
    async with serve_metrics(metrics.registry, settings.reconciler.metrics), contextlib.AsyncExitStack() as stack:
        if settings.hub is not None and settings.hub.replicas < _SAFE_REPLICAS:
            log.warning("hub_can_lose_no_server", replicas=settings.hub.replicas, wanted=_SAFE_REPLICAS)
        ledger = await retry_until_reachable(lambda: connect(settings, "plumbline-reconciler", metrics.ledger_anomaly))
        stack.push_async_callback(ledger.close)
        commands = JetStreamCommands(ledger)
        await retry_until_reachable(lambda: commands.make(command_stream(hub_replicas(settings))))
        store = Store(settings.database, ledger.stream)
        stack.callback(store.close)
        sink = await open_sink(settings)
        if sink is not None:
            stack.push_async_callback(sink.close)
        snapshots = SnapshotFolder(settings.snapshots, settings.reconciler.snapshots.keep)

        def make_listeners(term: Term) -> list[Listener]:
            return [
                *_status_listeners(settings, sink, ledger, term, metrics),
                *_senders(settings, term, metrics),
                *_periodic(settings, config, snapshots, metrics),
            ]

        leadership = ElectedLeadership(
            ledger,
            ledger,
            commands,
            make_listeners,
            metrics,
            name=replica_name(settings.node_name),
            only_replica=settings.hub is None,
        )
        days = settings.reconciler.retention_days
        await Reconciler(
            ledger,
            store,
            leadership,
            metrics,
            shared=not settings.database.startswith("sqlite"),
            bootstrap=SnapshotBootstrap(snapshots, ledger, ledger.stream),
            maintenance=[Retention(days, metrics)] if days else [],
        ).run()


def _status_listeners(
    settings: ReconcilerSettings, sink: StatusSink | None, notices: Notices, term: Term, metrics: Metrics
) -> list[Listener]:
    """Return the listeners that publish and guard network-statuses. All their writes go through the fence of *term*."""
    if sink is None:
        return []
    fenced = FencedSink(sink, term.confirm)
    publisher = StatusPublisher(fenced, term.ledger, notices, metrics)
    listeners: list[Listener] = [publisher]
    writer = open_pod_events(sink, settings, metrics)
    if writer is not None:
        listeners.append(writer)
    if settings.drift.enabled:
        warn = (lambda _: None) if writer is None else writer.write
        listeners.append(StatusGuard(fenced, publisher, term.ledger, metrics, settings.drift.of, warn=warn))
    return listeners


def _senders(settings: ReconcilerSettings, term: Term, metrics: Metrics) -> list[Listener]:
    """Return the listeners that send commands to nodes. All their commands go through the fence of *term*."""
    listeners: list[Listener] = []
    if settings.drift.enabled:
        listeners.append(RepairSender(term.commands, settings.drift.of, metrics.drift))
    if settings.leaks.policy == "reclaim":
        listeners.append(ReclaimSender(term.commands, metrics))
    return listeners


def _periodic(
    settings: ReconcilerSettings, config: Path | None, snapshots: SnapshotFolder, metrics: Metrics
) -> list[Listener]:
    """Return the listeners that work by the clock."""
    listeners: list[Listener] = []
    if settings.reconciler.verify_interval:
        listeners.append(PeriodicVerification(config, settings.reconciler.verify_interval, metrics))
    if settings.reconciler.snapshots.interval:
        interval = settings.reconciler.snapshots.interval
        listeners.append(PeriodicSnapshots(snapshots, settings.database, interval, metrics))
    return listeners


if __name__ == "__main__":
    sys.exit(main())
