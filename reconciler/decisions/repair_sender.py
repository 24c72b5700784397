"""Send the repair commands that ``reconciler.decisions.drift`` decides on.

This module feeds the decisions with events. It keeps no state over a restart: the projection has the open drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from events.fold import Sandbox
from events.ledger.commands import Commands
from events.ledger.ledger import ConflictError, LedgerError
from events.ledger.new_event import new_event
from events.schema import (
    NO_NODE,
    DetachRequested,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Event,
    RepairRequested,
    RequestId,
    rfc3339,
    unix_ns,
)
from reconciler.decisions.drift import RepairOrder, RepairSchedule
from reconciler.follow.listeners import Query
from reconciler.metrics import DriftMetrics
from reconciler.projection.fold.batch import Changes

log = structlog.get_logger(__name__)

_RETRY = 1.0


class RepairSender:
    """Sends ``RepairRequested``. A ``reconciler.follow.listeners.Listener``."""

    def __init__(self, commands: Commands, policy: Callable[[str], str], metrics: DriftMetrics) -> None:
        self._commands = commands
        self._metrics = metrics
        self._repairs = RepairSchedule(policy)
        self._changed = asyncio.Event()
        metrics.open.set_function(lambda: self._repairs.open)

    async def caught_up(self, query: Query) -> None:
        """Take up the open drift."""
        now = rfc3339(time.time_ns())
        for sandbox in await query(lambda store: store.drifting()):
            self._repairs.observed(sandbox, now, time.monotonic())
        self._changed.set()

    def changed(self, changes: Changes) -> None:
        """Record observations and the results of repairs."""
        for event, sandbox in changes.events:
            if event.node != NO_NODE and sandbox is not None:
                self._process(event, sandbox)
        self._changed.set()

    async def run(self) -> None:
        """Send due commands until cancelled. Raises ConflictError when another reconciler was elected."""
        while True:
            self._changed.clear()
            orders, wait = self._repairs.due(time.monotonic())
            for order in orders:
                wait = await self._send(order) or wait
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _process(self, event: Event, sandbox: Sandbox) -> None:
        now = time.monotonic()
        match event.data:
            case DriftObserved():
                self._metrics.count_observed(self._repairs.observed(sandbox, event.at, now))
            case DriftRepaired(drifts=drifts):
                since = self._repairs.repaired(sandbox, now)
                self._metrics.count_repaired(drifts, _seconds(since, event.at) if since else None)
            case DriftRepairFailed(failure=failure):
                self._metrics.failed.labels(failure.error_class.value).inc()
                if self._repairs.failed(sandbox, failure, now):
                    self._metrics.given_up.inc()
                    log.warning(
                        "drift_given_up",
                        pod=str(sandbox.pod),
                        sandbox=sandbox.key.container_id[:12],
                        node=sandbox.node,
                        error=failure.message,
                    )
            case DetachRequested():
                self._repairs.forget(sandbox.key)
            case _:
                pass

    async def _send(self, order: RepairOrder) -> float | None:
        """Send the command; return None, or the seconds to wait before a retry."""
        try:
            await self._commands.send(_command(order))
        except ConflictError:
            raise
        except LedgerError as error:
            log.warning("repair_not_sent", sandbox=order.sandbox.container_id[:12], error=str(error))
            self._repairs.not_sent(order)
            return _RETRY
        log.info(
            "repair_requested",
            sandbox=order.sandbox.container_id[:12],
            node=order.node,
            drift=[f"{each.ifname} {each.kind.value}" for each in order.drifts],
        )
        return None


def _command(order: RepairOrder) -> Event:
    data = RepairRequested(request=RequestId(""), ifname=order.sandbox.ifname, drifts=order.drifts)
    return new_event(data, node=order.node, sandbox=order.sandbox.container_id, cause=order.cause)


def _seconds(since: str, until: str) -> float:
    return max(0.0, (unix_ns(until) - unix_ns(since)) / 1e9)
