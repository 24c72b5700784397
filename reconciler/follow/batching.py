"""Hand events on in batches, and read the next batch while one is at work."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from events.schema import Stored

BATCH = 2000
"""Events projected in one transaction, at most. Of most sandboxes it has the whole attach, so they are written once."""


_GARBAGE = (50_000, 20, 100)


def collect_seldom() -> None:
    """Have this process look for garbage seldom: events and folds are trees, which go without that.

    To look at those of a batch and of ``reconciler.projection.batch_cache`` as often as Python does would take a fourth
    of the
    time that a batch takes.
    """
    gc.set_threshold(*_GARBAGE)


async def in_batches(
    events: AsyncIterator[Stored], work: Callable[[Sequence[Stored]], Coroutine[Any, Any, object]]
) -> None:
    """Call *work* with all of *events*, one batch after another."""
    batch: list[Stored] = []
    under_way: asyncio.Task[object] | None = None
    try:
        async for stored in events:
            batch.append(stored)
            if len(batch) == BATCH:
                await _done(under_way)
                under_way, batch = asyncio.create_task(work(batch), name="batch"), []
        await _done(under_way)
    finally:
        if under_way is not None and not under_way.done():
            under_way.cancel()
            await asyncio.wait({under_way})
    if batch:
        await work(batch)


async def _done(task: Awaitable[object] | None) -> None:
    if task is not None:
        await task
