"""How soon after a change to look: at once, unless changes never end.

Pure: time is an argument. A pod may change its own routes all day, and must not keep the worker busy with it.
"""

from __future__ import annotations

DEBOUNCE = 0.02
"""Seconds: one command of an administrator is several changes."""
_BURST = 10
"""Looks that may follow each other at once."""
_PER_SECOND = 1.0
"""Looks in the long run."""


class Pace:
    """The pauses before the looks at one sandbox."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._at = 0.0

    def pause(self, now: float) -> float:
        """Return the seconds to wait for a look that is asked for at *now*, and count it."""
        self._left = min(_BURST, self._left + (now - self._at) * _PER_SECOND) - 1
        self._at = now
        return max(DEBOUNCE, -self._left / _PER_SECOND)
