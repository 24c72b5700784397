"""Wait for what a test expects to happen; a bound ends only a test that fails."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

BOUND = 90.0
"""Seconds: far more than a busy machine needs, and less than a test may take."""

_TURNS = 100
"""How often the event loop goes round before ``until`` pauses."""
_POLL, _LONGEST_PAUSE = 0.005, 0.1
_PAUSES = 4
"""Seconds of pause for a second that a look costs."""


def eventually(look: Callable[[], T], what: str, seconds: float = BOUND) -> T:
    """Return what *look* returns once that is true. Raises AssertionError after *seconds*.

    The pause between two looks grows with what a look costs, so that waiting takes a small part of a processor.
    """
    end = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if seen := look():
            return seen
        now = time.monotonic()
        assert now < end, f"not within {seconds} s: {what}"
        time.sleep(min(max(_POLL, _PAUSES * (now - begin)), _LONGEST_PAUSE))


async def until(look: Callable[[], T | Awaitable[T]], running: asyncio.Task[Any] | None = None) -> T:
    """Return what *look* returns, or what it returns to await, once that is true. Raises TimeoutError.

    Raises what the task *running* raised if it ends first.
    """
    turns = 0
    async with asyncio.timeout(BOUND):
        while True:
            outcome = look()
            seen: Any = await outcome if inspect.isawaitable(outcome) else outcome
            if seen:
                return seen
            assert running is None or not running.done() or running.result()
            await asyncio.sleep(0 if turns < _TURNS else min(_POLL * turns / _TURNS, _LONGEST_PAUSE))
            turns += 1
