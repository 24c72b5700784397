"""The ledger and the notices in memory, for tests."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from operator import itemgetter

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerFullError, LedgerUnavailableError
from events.ledger.notices import PENDING_LIMIT, Notice
from events.schema import (
    Event,
    EventId,
    Stored,
    decode,
    encode,
)
from events.subjects import matches


class MemoryLedger:
    """The ``Ledger`` protocol on a list, and ``Notices``. Events are encoded and decoded, as in any ledger."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, str, bytes]] = []
        """(sequence, subject, encoded event), in ledger order."""
        self._newest: dict[str, int] = {}
        """Each subject's newest sequence."""
        self._sequences: dict[EventId, int] = {}
        self._next = 1
        self._changed = asyncio.Condition()
        self._subscribers: list[_Subscriber] = []
        self.available = True
        self.full = False

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """See ``Ledger.append``."""
        subject, text = subjects.subject(event.node, event.sandbox, event.type), encode(event)
        async with self._changed:
            self._check()
            if (known := self._sequences.get(event.id)) is not None:
                return known
            if self.full:
                raise LedgerFullError("the ledger is full")
            if expect is not None:
                last = self._newest_of(expect.subject)
                if last != expect.sequence:
                    raise ConflictError(f"the last event of {expect.subject} is {last}, not {expect.sequence}")
            sequence, self._next = self._next, self._next + 1
            self._entries.append((sequence, subject, text))
            self._newest[subject] = sequence
            self._sequences[event.id] = sequence
            self._changed.notify_all()
        self._notify(Notice(subject, text))
        return sequence

    async def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.read``."""
        self._check()
        for sequence, name, text in self._behind(after):
            if matches(name, subject):
                yield Stored(sequence, decode(text))

    async def follow(
        self, patterns: tuple[str, ...] = ("plumbline.ev.>",), after: int = 0
    ) -> AsyncGenerator[Stored, None]:
        """See ``Ledger.follow``."""
        while True:
            async with self._changed:
                while self._next - 1 <= after:
                    await self._changed.wait()
                fresh = self._behind(after)
                after = self._next - 1
            for sequence, name, text in fresh:
                if any(matches(name, pattern) for pattern in patterns):
                    yield Stored(sequence, decode(text))

    async def last(self, subject: str) -> Stored | None:
        """See ``Ledger.last``."""
        self._check()
        if not (newest := self._newest_of(subject)):
            return None
        sequence, _, text = self._behind(newest - 1)[0]
        return Stored(sequence, decode(text))

    async def last_sequence(self) -> int:
        """See ``Ledger.last_sequence``."""
        self._check()
        return self._next - 1

    async def purge(self, subject: str, up_to: int) -> int:
        """See ``Ledger.purge``."""
        self._check()
        start = subject.partition("*")[0].rstrip(">")
        gone = {name for name in self._newest if name.startswith(start) and matches(name, subject)}
        remaining = [entry for entry in self._entries if entry[0] > up_to or entry[1] not in gone]
        self._newest = {name: newest for name, newest in self._newest.items() if newest > up_to or name not in gone}
        purged = len(self._entries) - len(remaining)
        self._entries = remaining
        return purged

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """See ``Notices.publish``."""
        if self.available:
            self._notify(Notice(subject, payload))

    @asynccontextmanager
    async def subscribe(self, *subjects: str) -> AsyncGenerator[AsyncIterator[Notice], None]:
        """See ``Notices.subscribe``."""
        self._check()
        subscriber = _Subscriber(subjects)
        self._subscribers.append(subscriber)
        try:
            yield subscriber.notices()
        finally:
            self._subscribers.remove(subscriber)

    async def close(self) -> None:
        """See ``Ledger.close``."""
        self.available = False

    def _newest_of(self, subject: str) -> int:
        """Return the newest sequence that matches *subject*, or 0. Without wildcards, as for fences, it is known."""
        if (known := self._newest.get(subject)) is not None:
            return known
        return next((sequence for sequence, name, _ in reversed(self._entries) if matches(name, subject)), 0)

    def _behind(self, after: int) -> list[tuple[int, str, bytes]]:
        return self._entries[bisect_right(self._entries, after, key=itemgetter(0)) :]

    def _notify(self, notice: Notice) -> None:
        for subscriber in self._subscribers:
            subscriber.put(notice)

    def _check(self) -> None:
        if not self.available:
            raise LedgerUnavailableError("the ledger is unavailable")


class _Subscriber:
    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(PENDING_LIMIT)

    def put(self, notice: Notice) -> None:
        for pattern in self._patterns:
            if matches(notice.subject, pattern):
                if self._queue.full():
                    self._queue.get_nowait()
                self._queue.put_nowait(notice)

    async def notices(self) -> AsyncIterator[Notice]:
        while True:
            yield await self._queue.get()
