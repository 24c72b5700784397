"""The reconciler's process: ``python -m reconciler``. The only module that connects its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.ledger.notices import Notices
from events.nats.commands import JetStreamCommands
from events.nats.streams import command_stream
from events.process import logs
from events.process.backoff import delays
from events.process.metrics_server import serve_metrics
from events.process.settings import DEFAULT_PATH, SettingsError, load
from reconciler.decisions.reclaim_sender import ReclaimSender
from reconciler.decisions.repair_sender import RepairSender
from reconciler.follow.connections import connect, hub_replicas
from reconciler.follow.leadership import ElectedLeadership
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
from reconciler.status.kubernetes.pod_events import PodEvent
from reconciler.status.open_sink import open_sink
from reconciler.status.publishing import StatusPublisher
from reconciler.status.sink import StatusSink
from reconciler.verify.periodic import PeriodicVerification

if TYPE_CHECKING:
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_GRACE = 1.0
_SAFE_REPLICAS = 3
"""Number of servers with which a hub survives the loss of one."""

_CONFIGURATION_ERRORS = (SettingsError, ProjectionError, LedgerError)
"""Errors that a restart can't solve: an operator has to."""


def main() -> int:
    """Run until SIGINT or SIGTERM; return the exit code: 0, or 2 when the configuration can't be used."""
    parser = argparse.ArgumentParser(prog="python -m reconciler", description=__doc__)
    parser.add_argument("--config", type=Path, help=f"configuration file (default: {DEFAULT_PATH}, if it exists)")
    path = parser.parse_args().config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    try:
        settings = load(path, ReconcilerSettings)
        logs.configure(settings.log_level, "reconciler")
        collect_garbage_rarely()
        asyncio.run(_until_signalled(settings, path))
    except _CONFIGURATION_ERRORS as error:
        return _refuse(error)
    except BaseExceptionGroup as group:
        refusals, others = group.split(_CONFIGURATION_ERRORS)
        if refusals is None or others is not None:
            raise
        return _refuse(_first(refusals))
    return 0


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _refuse(error: BaseException) -> int:
    print(f"plumbline: {error}", file=sys.stderr)  # noqa: T201  # also without a configured log
    return 2


async def _until_signalled(settings: ReconcilerSettings, config: Path | None) -> None:
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
        ledger = await _retry_until_reachable(lambda: connect(settings, "plumbline-reconciler"))
        stack.push_async_callback(ledger.close)
        commands = JetStreamCommands(ledger)
        await _retry_until_reachable(lambda: commands.make(command_stream(hub_replicas(settings))))
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
            name=_replica_name(settings),
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
    writer = _pod_event_writer(sink, settings, metrics)
    if writer is not None:
        listeners.append(writer)
    if settings.drift.enabled:
        warn = _discard if writer is None else writer.write
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


def _discard(event: PodEvent) -> None:
    """Write no Kubernetes Event: there is no API server, or the configuration turns them off."""


def _replica_name(settings: ReconcilerSettings) -> str:
    """Return a name that no other replica has, on any machine."""
    return f"{settings.node_name}-{os.getpid()}-{secrets.token_hex(4)}"


def _pod_event_writer(sink: StatusSink, settings: ReconcilerSettings, metrics: Metrics) -> PodEventWriter | None:
    """Return the writer of Kubernetes Events; None without an API server, or when the configuration turns them off."""
    if settings.reconciler.kubernetes is None or not settings.reconciler.kubernetes.events:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # costs 50 MB
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter  # noqa: PLC0415

    assert isinstance(sink, AnnotationSink)
    return PodEventWriter(sink.api, metrics)


async def _retry_until_reachable(work: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of *work*. Retries while the ledger does not answer."""
    for delay in delays():
        try:
            return await work()
        except LedgerUnavailableError as error:
            log.warning("ledger_away", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
