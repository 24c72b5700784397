"""Compare the whole node with the ledger: at the start, from time to time, and when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

import structlog
from msgspec.structs import replace

from events.ledger.ledger import LedgerError
from events.schema import ComparisonRequested, Event, NodeCompared, RequestId
from nodeworker.deadline import seconds_since
from nodeworker.drift.watch.watcher import Watcher
from nodeworker.journal.journal import Journal

log = structlog.get_logger(__name__)

_UNASKED = RequestId("")


class Findings(NamedTuple):
    """What a look at something else than sandboxes came to."""

    leaks: int = 0
    unseen: tuple[str, ...] = ()
    """What could not be looked at, and why."""


LookBeside: TypeAlias = Callable[[], Awaitable[Findings]]
"""Looks at what a comparison of the node has to cover beside its sandboxes."""


class NodeComparison:
    """Compares the node."""

    def __init__(self, journal: Journal, observer: Watcher, interval: float, beside: Sequence[LookBeside] = ()) -> None:
        self._journal = journal
        self._observer = observer
        self._interval = interval
        self._beside = beside
        self._told: NodeCompared | None = None

    async def run(self) -> None:
        """Compare now and at every interval, without end. The ledger is told where that comes to something new."""
        while True:
            started = asyncio.get_running_loop().time()
            compared = await self._compare(_UNASKED)
            if compared != self._told:
                self._told = compared
                seconds = asyncio.get_running_loop().time() - started
                log.info("node_compared", sandboxes=compared.sandboxes, drifted=compared.drifted, seconds=seconds)
                try:
                    await self._journal.record(replace(compared, seconds=seconds))
                except LedgerError as error:
                    log.warning("comparison_not_recorded", error=str(error))
            await asyncio.sleep(self._interval)

    async def compare(self, event: Event, order: ComparisonRequested) -> NodeCompared:
        """Fulfil the *order* to compare the node."""
        return replace(await self._compare(order.request), seconds=seconds_since(event.at))

    async def _compare(self, request: RequestId) -> NodeCompared:
        sandboxes, drifted, unseen = await self._observer.compare_all()
        findings = [await look() for look in self._beside]
        return NodeCompared(
            request=request,
            sandboxes=sandboxes,
            drifted=drifted,
            leaks=sum(each.leaks for each in findings),
            unseen=(*unseen, *(reason for each in findings for reason in each.unseen)),
        )
