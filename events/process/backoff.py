"""Backoff between attempts to reach a server that is unavailable, or refuses.

An attach waits for the node's own server, which is on loopback and has few clients, so the worker tries it ten times a
second. A hub has thousands of clients, and each attempt may cost it a TLS handshake: at that rate they would keep it
down. So the pause before a hub is tried again grows, with jitter for each client. nats-py has a fixed pause only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

LOCAL_PAUSE = 0.1
"""Seconds, before jitter: each pause for a node's own server, and the first one for a hub."""

MAX_HUB_PAUSE = 5.0
"""Seconds of the longest pause for a hub. So long may a hub that is back wait for its clients."""


_FIRST = 0.2
_LONGEST = 30.0


def delays() -> Iterator[float]:
    """Yield the seconds to wait between attempts, without end: 0.2, doubling up to 30."""
    delay = _FIRST
    while True:
        yield delay
        delay = min(2 * delay, _LONGEST)


class Backoff:
    """Tries each server once, and all again after a pause, which doubles up to *longest* seconds.

    It outlives the clients, because the connection replaces its client while a server is unavailable.
    """

    def __init__(self, longest: float = LOCAL_PAUSE) -> None:
        self._longest = longest
        self.reset()

    def reset(self) -> None:
        """Start again with the first pause: a connection succeeded."""
        self._pause = LOCAL_PAUSE
        self._due = 0.0
        self._untried = 0

    async def wait(self, servers: int) -> None:
        """Return when the client may try the next of its *servers*, which it tries in turn.

        After a cancelled wait the next call waits for the remaining time.
        """
        loop = asyncio.get_running_loop()
        if not self._untried:
            await asyncio.sleep(self._due - loop.time())
            self._due = loop.time() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
            self._pause = min(2 * self._pause, self._longest)
            self._untried = servers
        self._untried -= 1
