"""How long to wait before something that failed is tried again."""

from __future__ import annotations

from collections.abc import Iterator

_FIRST = 0.2
_LAST = 30.0


def delays() -> Iterator[float]:
    """Yield the seconds to wait between attempts, without end."""
    delay = _FIRST
    while True:
        yield delay
        delay = min(2 * delay, _LAST)
