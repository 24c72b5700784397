"""Delay the inspection of a sandbox after a change: briefly, but longer if changes never end.

Pure: time is an argument. A pod may change its own routes all day, and must not use up the worker's time with it.
"""

from __future__ import annotations

DEBOUNCE = 0.02
"""Seconds: one command of an administrator causes several changes."""
_BURST = 10
"""Inspections that may follow each other without a longer delay."""
_PER_SECOND = 1.0
"""Inspections per second in the long run."""


class Debounce:
    """The delays before the inspections of one sandbox: a token bucket."""

    __slots__ = ("_at", "_tokens")

    def __init__(self) -> None:
        self._tokens = float(_BURST)
        self._at = 0.0

    def delay(self, now: float) -> float:
        """Return the seconds until the inspection that is requested at *now*, and count it."""
        self._tokens = min(_BURST, self._tokens + (now - self._at) * _PER_SECOND) - 1
        self._at = now
        return max(DEBOUNCE, -self._tokens / _PER_SECOND)
