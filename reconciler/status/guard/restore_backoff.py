"""Bring back what somebody keeps changing, but ever more rarely, so that two controllers don't drown the API server.

Pure.
"""

from __future__ import annotations

from collections import OrderedDict

FIRST, LONGEST = 1.0, 600.0
"""Seconds before something is brought back for the second time, and at most."""
QUIET = 900.0
"""Seconds without a change after which it counts as the first again."""
CONTESTED = 3
"""From so many times on it is no accident."""
_REMEMBERED = 4096


class RestoreBackoff:
    """How often each thing was brought back lately. The least recently changed are forgotten."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, thing: str, now: float) -> float:
        """Return in how many seconds *thing* may be brought back; *now* is of a clock that rises."""
        times, at = self._times.get(thing, (0, now))
        if times == 0 or now - at >= QUIET:
            return 0.0
        return max(0.0, at + min(LONGEST, FIRST * 2.0 ** min(times - 1, 30)) - now)

    def brought_back(self, thing: str, now: float) -> int:
        """Note that *thing* is brought back now; return how many times it was in a row."""
        times, at = self._times.pop(thing, (0, now))
        times = 1 if now - at >= QUIET else times + 1
        self._times[thing] = times, now
        if len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)
        return times

    def contested(self, now: float) -> int:
        """Return how many things somebody keeps changing."""
        return sum(times >= CONTESTED and now - at < QUIET for times, at in self._times.values())
