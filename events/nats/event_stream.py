"""A stream of events: its newest event, and appends on a condition, past messages that are no events.

The server checks a condition against the last *message* of a subject, and ``Expect`` names the last *event*. Where
anomalies follow that event, the condition that goes to the server names the last of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from events.ledger.anomalies import Decoder
from events.ledger.ledger import ConflictError, Expect
from events.nats.streams import Stream, StreamMessage
from events.schema import Stored

_REMEMBERED = 1000


class _Tail(NamedTuple):
    """The end of a subject: only anomalies follow the event *event* (0: none), up to the message *end*."""

    event: int
    end: int


class EventStream:
    """The events in *stream*, as *decoder* decodes them."""

    def __init__(self, stream: Stream, decoder: Decoder) -> None:
        self._stream = stream
        self._decoder = decoder
        self._tails: dict[str, _Tail] = {}
        """By subject: anomalies that were read need not be read again."""

    async def last(self, subject: str) -> Stored | None:
        """Return the newest event that matches *subject*. Raises LedgerUnavailableError."""
        message = await self._stream.message(last_by_subj=subject)
        if message is None:
            return None
        if (stored := self._decode(message)) is not None:
            return stored
        known = self._tails.get(subject, _Tail(0, 0))
        tail = known if known.end <= message.sequence else _Tail(0, 0)  # else the stream was replaced
        async for later in self._after(subject, tail.end):
            tail = _Tail(tail.event if self._decode(later) is None else later.sequence, later.sequence)
        self._remember(subject, tail)
        newest = await self._stream.message(seq=tail.event) if tail.event else None
        return None if newest is None else self._decode(newest)

    async def store(
        self, subject: str, payload: bytes, *, label: str, headers: Mapping[str, str], expect: Expect | None = None
    ) -> int:
        """Store a message as ``Stream.store`` does. *expect* is about events only."""
        while True:
            condition = None if expect is None else self.condition(expect)
            try:
                return await self._stream.store(subject, payload, label=label, headers=headers, expect=condition)
            except ConflictError:
                if expect is None or not await self.holds(expect):
                    raise

    def condition(self, expect: Expect) -> Expect:
        """Return *expect* as a condition about messages, as far as the anomalies are known."""
        tail = self._tails.get(expect.subject)
        return expect if tail is None or tail.event != expect.sequence else Expect(expect.subject, tail.end)

    async def holds(self, expect: Expect) -> bool:
        """Return whether *expect* holds for events, although the server refused ``condition``. Then that changes."""
        newest = await self._stream.message(last_by_subj=expect.subject)
        known = self.condition(expect).sequence
        replaced = newest is None or newest.sequence < known  # the stream: it is shorter than it was
        end = expect.sequence if replaced else known
        async for later in self._after(expect.subject, end):
            if self._decode(later) is not None:
                return False
            end = later.sequence
        self._remember(expect.subject, _Tail(expect.sequence, end))
        return end != known

    async def _after(self, subject: str, sequence: int) -> AsyncIterator[StreamMessage]:
        """Yield the messages after *sequence*. A node may have no consumer at the hub."""
        while (message := await self._stream.message(seq=sequence + 1, next_by_subj=subject)) is not None:
            sequence = message.sequence
            yield message

    def _remember(self, subject: str, tail: _Tail) -> None:
        if len(self._tails) == _REMEMBERED and subject not in self._tails:
            del self._tails[next(iter(self._tails))]
        self._tails[subject] = tail

    def _decode(self, message: StreamMessage) -> Stored | None:
        return self._decoder.decode(message.sequence, message.subject, message.payload)
