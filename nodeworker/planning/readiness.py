"""Delay requests until the default network has made the file that ``readinessindicatorfile`` names.

The file is polled, not watched: a poll costs microseconds, happens only while a request waits, and works although the
file's folder may not exist yet.
"""

from __future__ import annotations

import asyncio
import os

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed

LONGEST = 45.0
"""Seconds that a request waits at most; Multus' own limit."""
_POLL = 0.25
_MARGIN = 1.0
"""Seconds before the deadline at which waiting ends, so that the runtime still gets the reason."""


class Readiness:
    """The requests that wait for the file: a few, because each takes a slot that a DEL may need."""

    def __init__(self, seats: int) -> None:
        """*seats*: how many requests may wait. The others fail at once, and their runtime retries."""
        self._seats = seats
        self._waiting = 0

    async def wait(self, file: str, left: float, phase: Phase) -> None:
        """Return once *file* exists, or at once if none is named.

        *left* are the seconds until the request's deadline. Raises RequestFailedError (NODE_NOT_READY, CNI code 11)
        shortly before that, or after ``LONGEST``.
        """
        if not (reason := absence(file)):
            return
        if self._waiting < self._seats:
            reason = await self._wait(file, min(left - _MARGIN, LONGEST))
        if reason:
            raise not_ready(file, reason, phase)

    async def _wait(self, file: str, seconds: float) -> str:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._waiting += 1
        try:
            while (reason := absence(file)) and (left := until - loop.time()) > 0:  # noqa: ASYNC110  # polled, see above
                await asyncio.sleep(min(_POLL, left))
        finally:
            self._waiting -= 1
        return reason


def absence(file: str) -> str:
    """Return why *file* can't be seen; empty if it exists, or if none is named."""
    if not file:
        return ""
    try:
        os.stat(file)
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        return getattr(error, "strerror", None) or str(error)
    return ""


def not_ready(file: str, reason: str, phase: Phase, code: int | None = None) -> RequestFailedError:
    """Return the error for a node whose default network has not made *file*."""
    return failed(
        ErrorClass.NODE_NOT_READY,
        phase,
        f"the default network is not ready: readinessindicatorfile {file} can't be seen ({reason}); "
        f"look after the network's own pods on this node; the runtime will retry",
        code=code,
    )
