"""The time by which a request must be answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

from events.schema import ErrorClass, Failure, Phase, rfc3339, unix_ns
from nodeworker.errors import RequestFailedError, failed

T = TypeVar("T")


def deadline_in(seconds: float) -> str:
    """Return the RFC 3339 time that is *seconds* from now."""
    return rfc3339(time.time_ns() + int(seconds * 1e9))


def seconds_until(deadline: str) -> float:
    """Return the seconds until *deadline*; 0 if it has passed, or if the text is empty."""
    return max(0.0, (unix_ns(deadline) - time.time_ns()) / 1e9) if deadline else 0.0


def seconds_since(at: str) -> float:
    """Return the seconds since *at*, an RFC 3339 time."""
    return max(0.0, (time.time_ns() - unix_ns(at)) / 1e9)


class Deadline:
    """Expires after *seconds*, or when ``end`` is called because the runtime no longer waits.

    As a context manager it cancels its block when it expires and raises TimeoutError, as ``asyncio.timeout`` does. Work
    that must not be cancelled, such as an append to the ledger or a rollback, stands outside such a block.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._scope: asyncio.Timeout | None = None
        self.failure: Failure = failed(
            ErrorClass.ABANDONED, Phase.ADD, "the time that the runtime gave for it has passed"
        ).failure
        """Why it expired, or will expire."""

    @property
    def left(self) -> float:
        """Seconds that are left, not below 0."""
        return max(0.0, self._until - self._loop.time())

    def end(self, failure: Failure) -> None:
        """Expire now, because of *failure*."""
        if not self.left:
            return
        self.failure = failure
        self._until = self._loop.time()
        if self._scope is not None:
            self._scope.reschedule(self._until)

    async def within(self, work: Awaitable[T]) -> T:
        """Return what *work* returns. Raises RequestFailedError with ``failure`` if the deadline expires first."""
        try:
            async with self:
                return await work
        except TimeoutError as error:
            raise RequestFailedError(self.failure) from error

    async def __aenter__(self) -> None:
        self._scope = asyncio.timeout_at(self._until)
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        scope, self._scope = self._scope, None
        assert scope is not None
        return await scope.__aexit__(kind, error, trace)
