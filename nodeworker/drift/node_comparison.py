"""Compare the whole node with the ledger: at the start, at an interval, and on request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import structlog
from msgspec.structs import replace

from events.ledger.ledger import LedgerError
from events.schema import ComparisonRequested, Event, NodeCompared, RequestId
from nodeworker.deadline import seconds_since
from nodeworker.drift.watch.watcher import Watcher
from nodeworker.journal.journal import Journal

log = structlog.get_logger(__name__)

_NO_REQUEST = RequestId("")


class LeakCount(Protocol):
    """The result of a leak scan, as far as a comparison reports it."""

    @property
    def leaks(self) -> int:
        """How many leaks there are."""
        ...

    @property
    def unseen(self) -> tuple[str, ...]:
        """Sentences that say which part of the node could not be scanned, and why."""
        ...


LeakScan: TypeAlias = Callable[[], Awaitable[LeakCount]]
"""Scans the node for leaks. Raises LedgerError."""


class NodeComparison:
    """Compares the sandboxes of the node with the ledger, and scans for leaks if it has a *leak_scan*."""

    def __init__(self, journal: Journal, watcher: Watcher, interval: float, leak_scan: LeakScan | None = None) -> None:
        self._journal = journal
        self._watcher = watcher
        self._interval = interval
        self._leak_scan = leak_scan
        self._last: NodeCompared | None = None

    async def run(self) -> None:
        """Compare now and at every interval, without end. Records a comparison that differs from the last one."""
        while True:
            started = asyncio.get_running_loop().time()
            compared = await self._compare(_NO_REQUEST)
            if compared != self._last:
                self._last = compared
                seconds = asyncio.get_running_loop().time() - started
                log.info("node_compared", sandboxes=compared.sandboxes, drifted=compared.drifted, seconds=seconds)
                try:
                    await self._journal.record(replace(compared, seconds=seconds))
                except LedgerError as error:
                    log.warning("comparison_not_recorded", error=str(error))
            await asyncio.sleep(self._interval)

    async def compare(self, intent: Event, command: ComparisonRequested) -> NodeCompared:
        """Carry out the *command* to compare the node, and return its outcome."""
        return replace(await self._compare(command.request), seconds=seconds_since(intent.at))

    async def _compare(self, request: RequestId) -> NodeCompared:
        sandboxes, drifted, unseen = await self._watcher.compare_all()
        leaks = 0
        if self._leak_scan is not None:
            scan = await self._leak_scan()
            leaks, unseen = scan.leaks, (*unseen, *scan.unseen)
        return NodeCompared(request=request, sandboxes=sandboxes, drifted=drifted, leaks=leaks, unseen=unseen)
