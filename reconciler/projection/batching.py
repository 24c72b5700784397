"""Apply events in batches, and read the next batch while the current one is applied."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from events.schema import Stored

BATCH_SIZE = 2000
"""Maximum number of events per transaction. It covers a whole attach of most sandboxes, so each is written once."""

_GC_THRESHOLDS = (50_000, 20, 100)


def collect_garbage_rarely() -> None:
    """Raise the thresholds of the garbage collector of this process.

    Events and folds form no cycles, so reference counts free them. With Python's default thresholds, scans of a batch
    and of ``reconciler.projection.batch_cache`` cost a quarter of the time of a batch.
    """
    gc.set_threshold(*_GC_THRESHOLDS)


async def in_batches(
    events: AsyncIterator[Stored], work: Callable[[Sequence[Stored]], Coroutine[Any, Any, object]]
) -> None:
    """Call *work* with all *events*, one batch after another."""
    batch: list[Stored] = []
    running: asyncio.Task[object] | None = None
    try:
        async for stored in events:
            batch.append(stored)
            if len(batch) == BATCH_SIZE:
                await _finish(running)
                running, batch = asyncio.create_task(work(batch), name="batch"), []
        await _finish(running)
    finally:
        if running is not None and not running.done():
            running.cancel()
            await asyncio.wait({running})
    if batch:
        await work(batch)


async def _finish(task: Awaitable[object] | None) -> None:
    if task is not None:
        await task
