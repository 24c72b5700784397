"""The reconciler's process: ``python -m reconciler``. The one place that knows all its parts."""

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
from reconciler.follow.batching import collect_seldom
from reconciler.follow.connections import connect, hub_replicas, open_publisher
from reconciler.follow.leadership import Replicas, Term
from reconciler.follow.loop import Listener, Reconciler
from reconciler.follow.periodic_snapshots import Beginning, PeriodicSnapshots, SnapshotFolder
from reconciler.follow.retention import Retention
from reconciler.metrics import Metrics
from reconciler.projection.sql.engine import ProjectionError
from reconciler.projection.store import Store
from reconciler.settings import ReconcilerSettings
from reconciler.status.fenced_sink import FencedSink
from reconciler.status.guard.guard import StatusGuard
from reconciler.status.kubernetes.pod_events import PodEvent
from reconciler.status.publishing import StatusPublishing
from reconciler.status.sink import StatusSink
from reconciler.verify.periodic import PeriodicVerification

if TYPE_CHECKING:
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_GRACE = 1.0
_SAFE = 3
"""Servers of a hub that can lose one."""

_REFUSALS = (SettingsError, ProjectionError, LedgerError)
"""What another start would not mend: people have to."""


def main() -> int:
    """Run until SIGINT or SIGTERM; return the exit code: 0, or 2 when the configuration can't be used."""
    parser = argparse.ArgumentParser(prog="python -m reconciler", description=__doc__)
    parser.add_argument("--config", type=Path, help=f"configuration file (default: {DEFAULT_PATH}, if it is there)")
    path = parser.parse_args().config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    try:
        settings = load(path, ReconcilerSettings)
        logs.configure(settings.log_level, "reconciler")
        collect_seldom()
        asyncio.run(_until_signalled(settings, path))
    except _REFUSALS as error:
        return _refuse(error)
    except BaseExceptionGroup as group:
        refusals, others = group.split(_REFUSALS)
        if refusals is None or others is not None:
            raise
        return _refuse(_first(refusals))
    return 0


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _refuse(error: BaseException) -> int:
    print(f"plumbline: {error}", file=sys.stderr)  # noqa: T201  # also for those who configured no log
    return 2


async def _until_signalled(settings: ReconcilerSettings, config: Path | None) -> None:
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    serving = asyncio.create_task(_serve(settings, config), name="serve")
    waiting = asyncio.create_task(signalled.wait(), name="wait-for-signal")
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    # Before Python 3.12 asyncio.wait_for, which nats-py uses, loses a cancellation that comes with the answer. Whoever
    # missed it is cancelled again by asyncio.run.
    await asyncio.wait({serving}, timeout=_GRACE)
    if serving.done() and not serving.cancelled():
        serving.result()
    log.info("reconciler_stopped")


async def _serve(settings: ReconcilerSettings, config: Path | None) -> None:
    metrics = Metrics()
    async with serve_metrics(metrics.registry, settings.reconciler.metrics), contextlib.AsyncExitStack() as stack:
        if settings.hub is not None and settings.hub.replicas < _SAFE:
            log.warning("hub_can_lose_no_server", replicas=settings.hub.replicas, wanted=_SAFE)
        ledger = await _until_there(lambda: connect(settings, "plumbline-reconciler"))
        stack.push_async_callback(ledger.close)
        commands = JetStreamCommands(ledger)
        await _until_there(lambda: commands.make(command_stream(hub_replicas(settings))))
        store = Store(settings.database, ledger.stream)
        stack.callback(store.close)
        publisher = await open_publisher(settings)
        if publisher is not None:
            stack.push_async_callback(publisher.close)

        kept = settings.reconciler.snapshots
        folder = SnapshotFolder(settings.snapshots, kept.keep)

        def appoint(turn: Term) -> list[Listener]:
            found = _listeners(settings, publisher, ledger, turn, metrics)
            if settings.reconciler.verify_interval:
                found.append(PeriodicVerification(config, settings.reconciler.verify_interval, metrics))
            if kept.interval:
                found.append(PeriodicSnapshots(folder, settings.database, kept.interval, metrics))
            return found

        contest = Replicas(ledger, ledger, commands, appoint, metrics, name=_name(settings), alone=settings.hub is None)
        shared = not settings.database.startswith("sqlite")
        days = settings.reconciler.retention_days
        upkeep = [Retention(days, metrics)] if days else []
        beginning = Beginning(folder, ledger, ledger.stream)
        await Reconciler(ledger, store, contest, metrics, shared=shared, beginning=beginning, upkeep=upkeep).run()


def _listeners(
    settings: ReconcilerSettings, publisher: StatusSink | None, notices: Notices, turn: Term, metrics: Metrics
) -> list[Listener]:
    """Return who acts during *turn*: all that they append and send goes through its fence."""
    listeners: list[Listener] = []
    if publisher is not None:
        certain = FencedSink(publisher, turn)
        publication = StatusPublishing(certain, turn.ledger, notices, metrics)
        writer = _pod_event_writer(publisher, settings, metrics)
        listeners += [publication, *([] if writer is None else [writer])]
        if settings.drift.enabled:
            warn = _unsaid if writer is None else writer.say
            keeper = StatusGuard(certain, publication, turn.ledger, metrics, settings.drift.of, warn=warn)
            listeners.append(keeper)
    if settings.drift.enabled:
        listeners.append(RepairSender(turn.commands, settings.drift.of, metrics.drift))
    if settings.leaks.policy == "reclaim":
        listeners.append(ReclaimSender(turn.commands, metrics))
    return listeners


def _unsaid(event: PodEvent) -> None:
    """Say it to nobody: there is no API server, or no wish to tell it."""


def _name(settings: ReconcilerSettings) -> str:
    """Return a name that no other replica has, also on this machine."""
    return f"{settings.node_name}-{os.getpid()}-{secrets.token_hex(4)}"


def _pod_event_writer(publisher: StatusSink, settings: ReconcilerSettings, metrics: Metrics) -> PodEventWriter | None:
    """Return who writes Kubernetes Events: nobody without an API server, or where they are not wanted."""
    if settings.reconciler.kubernetes is None or not settings.reconciler.kubernetes.events:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # as above
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter  # noqa: PLC0415

    assert isinstance(publisher, AnnotationSink)
    return PodEventWriter(publisher.api, metrics)


async def _until_there(work: Callable[[], Awaitable[_T]]) -> _T:
    """Return what *work* returns, for which it is repeated until the ledger answers."""
    for delay in delays():
        try:
            return await work()
        except LedgerUnavailableError as error:
            log.warning("ledger_away", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
