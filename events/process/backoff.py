"""When a server that is away, or refuses, is tried again.

An attach waits for the node's own server, which is on loopback and has few clients: it is tried ten times a second. A
hub has thousands, and each attempt may cost it a TLS handshake: so often, they would keep it from coming back. So the
pauses before a hub is tried again grow, and each client has its own. nats-py knows none but a fixed one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

LOCAL_PAUSE = 0.1
"""Seconds of the first pause, but for jitter, and of each before a node's own server is tried."""

MAX_HUB_PAUSE = 5.0
"""Seconds of the longest pause before a hub is tried: so long may it take until a hub that is back has its clients."""


_FIRST = 0.2
_LONGEST = 30.0


def delays() -> Iterator[float]:
    """Yield the seconds to wait between attempts, without end: 0.2, doubling up to 30."""
    delay = _FIRST
    while True:
        yield delay
        delay = min(2 * delay, _LONGEST)


class Backoff:
    """Lets each server be tried once, and all again after a pause, which doubles up to *longest* seconds.

    It outlives the clients, which are given up and made anew while a server is away.
    """

    def __init__(self, longest: float = LOCAL_PAUSE) -> None:
        self._longest = longest
        self.reset()

    def reset(self) -> None:
        """Begin anew: there was a connection."""
        self._pause = LOCAL_PAUSE
        self._due = 0.0
        self._untried = 0

    async def wait(self, servers: int) -> None:
        """Return when the next of so many *servers*, which are tried in turn, may be tried.

        Who waits anew, because the last wait was cancelled, waits for the rest.
        """
        loop = asyncio.get_running_loop()
        if not self._untried:
            await asyncio.sleep(self._due - loop.time())
            self._due = loop.time() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
            self._pause = min(2 * self._pause, self._longest)
            self._untried = servers
        self._untried -= 1
