"""Have the projection forget what has been over for longer than people want to look back.

A little at a time, on the projection's own thread: what is old can wait, an event can't.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from events.schema import rfc3339
from reconciler.follow.loop import Query
from reconciler.metrics import Metrics

log = structlog.get_logger(__name__)

INTERVAL = 600.0
"""Seconds between two looks."""
_SOME = 500
PAUSE = 0.25
"""Seconds between two steps, each of which keeps events waiting for milliseconds."""
_DAY_NS = 86_400 * 10**9


class Retention:
    """Forgets what ended more than *days* ago. *now* tells the time, in nanoseconds."""

    def __init__(
        self,
        days: float,
        metrics: Metrics,
        *,
        interval: float = INTERVAL,
        pauses: float = PAUSE,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._age = round(days * _DAY_NS)
        self._metrics = metrics
        self._interval = interval
        self._pauses = pauses
        self._now = now

    async def run(self, query: Query) -> None:
        """Forget without end."""
        while True:
            await asyncio.sleep(self._interval)  # also at first: whoever has just started has more urgent things to do
            before, rows, more = rfc3339(max(0, self._now() - self._age)), 0, True
            while more:
                gone = await query(lambda store, before=before: store.forget(before, _SOME))
                rows, more = rows + gone.rows, gone.more
                self._metrics.forgotten.inc(gone.rows)
                await asyncio.sleep(self._pauses)
            if rows:
                log.info("projection_forgot", rows=rows, before=before)
