"""Run a reconciler inside a test, and wait for its effects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from events.ledger.memory import MemoryLedger
from events.nats.ledger import JetStreamLedger
from reconciler.follow.listeners import Bootstrap, Listener, Maintenance, Serve
from reconciler.follow.loop import Reconciler
from reconciler.metrics import Metrics
from reconciler.projection.store import Store
from reconciler.status.guard.guard import StatusGuard
from reconciler.status.kubernetes.pod_events import PodEvent
from reconciler.status.publishing import StatusPublisher
from reconciler.status.sink import StatusSink
from tests.support.waiting import until


class Alone:
    """A ``Leadership`` of the only replica."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    async def run(self, serve: Serve) -> None:
        await serve(0, self._listeners)


class Running:
    """A running reconciler."""

    def __init__(self, reconciler: Reconciler, metrics: Metrics, task: asyncio.Task[None]) -> None:
        self.reconciler = reconciler
        self.metrics = metrics
        self.task = task

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"plumbline_reconciler_{name}", labels)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for *reached*, while the reconciler runs."""
        await until(reached, self.task)

    async def at(self, sequence: int) -> None:
        """Wait until the ledger is projected and published up to *sequence*."""
        await self.until(lambda: self.reconciler.sequence >= sequence)


@asynccontextmanager
async def running(
    ledger: MemoryLedger | JetStreamLedger,
    database: Path | str,
    publisher: StatusSink | None = None,
    *,
    keep: Callable[[str], str] | str = "off",
    warn: Callable[[PodEvent], None] = lambda event: None,
    maintenance: Callable[[Metrics], Sequence[Maintenance]] = lambda metrics: (),
    also: Callable[[Metrics], Sequence[Listener]] = lambda metrics: (),
    bootstrap: Bootstrap | None = None,
) -> AsyncIterator[Running]:
    """Run a reconciler during the block. *keep* is the drift policy for changed statuses, maybe by network."""
    metrics = Metrics()
    store = Store(database if isinstance(database, str) else f"sqlite:///{database}", "NODE")
    listeners: list[Listener] = [*also(metrics)]
    if publisher is not None:
        listeners.append(publication := StatusPublisher(publisher, ledger, ledger, metrics))
        if keep != "off":
            policy = (lambda _: keep) if isinstance(keep, str) else keep
            listeners.append(StatusGuard(publisher, publication, ledger, metrics, policy, warn=warn))
    reconciler = Reconciler(
        ledger,
        store,
        Alone(listeners),
        metrics,
        metrics_interval=0.01,
        bootstrap=bootstrap,
        maintenance=maintenance(metrics),
    )
    task = asyncio.create_task(reconciler.run())
    try:
        yield Running(reconciler, metrics, task)
    finally:
        task.cancel()
        await asyncio.wait({task})
        store.close()
