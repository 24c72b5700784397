"""Delete rows of the projection that ended longer ago than the configured days.

Each step deletes few rows, on the projection's thread: old rows can wait, new events can't.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from events.schema import rfc3339
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics

log = structlog.get_logger(__name__)

INTERVAL = 600.0
"""Seconds between two rounds."""
STEP_PAUSE = 0.25
"""Seconds between two steps of a round. A step delays new events by milliseconds."""
_STEP_ROWS = 500
_DAY_NS = 86_400 * 10**9


class Retention:
    """Deletes what ended more than *days* ago. *now* returns the time in nanoseconds since 1970."""

    def __init__(
        self,
        days: float,
        metrics: Metrics,
        *,
        interval: float = INTERVAL,
        step_pause: float = STEP_PAUSE,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._age = round(days * _DAY_NS)
        self._metrics = metrics
        self._interval = interval
        self._step_pause = step_pause
        self._now = now

    async def run(self, query: Query) -> None:
        """Delete old rows until cancelled."""
        while True:
            await asyncio.sleep(self._interval)  # also before the first round: a new leader has more urgent work
            before, rows, more = rfc3339(max(0, self._now() - self._age)), 0, True
            while more:
                deleted = await query(lambda store, before=before: store.forget(before, _STEP_ROWS))
                rows, more = rows + deleted.rows, deleted.more
                self._metrics.forgotten.inc(deleted.rows)
                await asyncio.sleep(self._step_pause)
            if rows:
                log.info("projection_forgot", rows=rows, before=before)
