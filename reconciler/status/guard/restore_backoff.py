"""Restore repeatedly changed statuses ever more rarely, so that two controllers do not flood the API server.

Pure.
"""

from __future__ import annotations

from collections import OrderedDict

FIRST_BACKOFF, MAX_BACKOFF = 1.0, 600.0
"""Seconds before the second restore, and the maximum."""
QUIET_TIME = 900.0
"""Seconds without a change after which the backoff restarts."""
CONTESTED = 3
"""From this number of restores on, another controller is the probable cause."""
_MAX_REMEMBERED = 4096


class RestoreBackoff:
    """The recent restores of each pod. Evicts the least recently changed ones."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, thing: str, now: float) -> float:
        """Return the seconds until *thing* may be restored; *now* is of a monotonic clock."""
        times, at = self._times.get(thing, (0, now))
        if times == 0 or now - at >= QUIET_TIME:
            return 0.0
        return max(0.0, at + min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(times - 1, 30)) - now)

    def restored(self, thing: str, now: float) -> int:
        """Record a restore of *thing*; return the number of consecutive restores."""
        times, at = self._times.pop(thing, (0, now))
        times = 1 if now - at >= QUIET_TIME else times + 1
        self._times[thing] = times, now
        if len(self._times) > _MAX_REMEMBERED:
            self._times.popitem(last=False)
        return times

    def contested(self, now: float) -> int:
        """Return the number of things that another writer keeps changing. Thread-safe."""
        return sum(times >= CONTESTED and now - at < QUIET_TIME for times, at in tuple(self._times.values()))
