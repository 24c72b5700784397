"""The reconciler's process: ``python -m reconciler``. The one place that knows all its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import structlog

from events import logs
from events.jetstream import JetStreamLedger
from events.ledger import LedgerError, LedgerUnavailableError
from events.settings import DEFAULT_PATH, LedgerAddress, SettingsError, ledger_address, load
from reconciler.delays import delays
from reconciler.metrics import Metrics
from reconciler.projection.engine import ProjectionError
from reconciler.projection.store import Store
from reconciler.publication import Publication
from reconciler.publisher import Publisher
from reconciler.reconcile import Listener, Reconciler
from reconciler.settings import ReconcilerSettings
from reconciler.status_folder import StatusFolder

log = structlog.get_logger(__name__)

_GRACE = 1.0

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
        asyncio.run(_until_signalled(settings))
    except _REFUSALS as error:
        return _refuse(error)
    except BaseExceptionGroup as group:
        refusals, others = group.split(_REFUSALS)
        if refusals is None or others is not None:
            raise
        return _refuse(refusals.exceptions[0])
    return 0


def _refuse(error: BaseException) -> int:
    print(f"plumbline: {error}", file=sys.stderr)  # noqa: T201  # also for those who configured no log
    return 2


async def _until_signalled(settings: ReconcilerSettings) -> None:
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    serving = asyncio.create_task(_serve(settings), name="serve")
    waiting = asyncio.create_task(signalled.wait(), name="wait-for-signal")
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    # Before Python 3.12 asyncio.wait_for, which nats-py uses, loses a cancellation that comes with the answer. Whoever
    # missed it is cancelled again by asyncio.run.
    await asyncio.wait({serving}, timeout=_GRACE)
    if serving.done() and not serving.cancelled():
        serving.result()
    log.info("reconciler_stopped")


async def _serve(settings: ReconcilerSettings) -> None:
    metrics = Metrics()
    with metrics.served(settings.reconciler.metrics):
        async with contextlib.AsyncExitStack() as stack:
            ledger = await _connect(ledger_address(settings))
            stack.push_async_callback(ledger.close)
            store = Store(settings.database, ledger.stream)
            stack.callback(store.close)
            listeners: list[Listener] = []
            if (publisher := await _open_publisher(settings)) is not None:
                stack.push_async_callback(publisher.close)
                listeners.append(Publication(publisher, ledger, ledger, metrics))
                listeners += _speakers(publisher, settings, metrics)
            await Reconciler(ledger, store, listeners, metrics).run()


async def _open_publisher(settings: ReconcilerSettings) -> Publisher | None:
    """Return where statuses go; None: nowhere. Raises SettingsError."""
    if settings.manifests:
        return StatusFolder(Path(settings.manifests))
    if (cluster := settings.reconciler.kubernetes) is None:
        return None
    from reconciler.pod_annotation import PodAnnotation  # noqa: PLC0415  # 50 MB that only its user pays

    return await PodAnnotation.connect(cluster.kubeconfig)


def _speakers(publisher: Publisher, settings: ReconcilerSettings, metrics: Metrics) -> list[Listener]:
    """Return who writes Kubernetes Events: nobody without an API server, or where they are not wanted."""
    if settings.reconciler.kubernetes is None or not settings.reconciler.kubernetes.events:
        return []
    from reconciler.pod_annotation import PodAnnotation  # noqa: PLC0415  # as above
    from reconciler.pod_event_writer import PodEventWriter  # noqa: PLC0415

    assert isinstance(publisher, PodAnnotation)
    return [PodEventWriter(publisher.api, metrics)]


async def _connect(address: LedgerAddress) -> JetStreamLedger:
    for delay in delays():
        try:
            return await JetStreamLedger.connect(address.url, address.token, name="plumbline-reconciler")
        except LedgerUnavailableError as error:
            log.warning("ledger_away", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
