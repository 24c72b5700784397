"""Messages in a stream that are no events. They have no effect: no reader stops at them, and no writer waits for them.

A client decides under which subject it publishes and what it sends. It also names a reply subject, where the server
stores its answer if a stream has that subject. So a message is an event only if it can be decoded, and if it is stored
under the subject that follows from its envelope. This is the one place that decides that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import structlog

from events import subjects
from events.schema import Event, Head, MalformedEventError, Stored, decode, decode_head

log = structlog.get_logger(__name__)

_REMEMBERED = 1000
"""Anomalies that are remembered; all are counted."""
LISTED = 20
"""Anomalies that are logged and listed one by one; then only every ``_REMEMBERED``-th is logged."""


class Anomaly(NamedTuple):
    """A message that is no event."""

    sequence: int
    subject: str
    reason: str
    number: int
    """This is the number-th that the process found."""

    def __str__(self) -> str:
        return f"message {self.sequence} under {self.subject!r} has no effect: {self.reason}"


Observe: TypeAlias = Callable[[Anomaly], None]


def log_anomaly(anomaly: Anomaly) -> None:
    """Log *anomaly*, unless there are many."""
    if anomaly.number <= LISTED or anomaly.number % _REMEMBERED == 0:
        log.warning("ledger_anomaly", **anomaly._asdict())


class Decoder:
    """Decodes the messages of one stream for all its readers, and counts each anomaly once."""

    def __init__(self, subject_of: Callable[[Event | Head], str], observe: Observe = log_anomaly) -> None:
        """*subject_of* returns the subject of an event in this stream. *observe* gets each anomaly."""
        self._subject_of = subject_of
        self.observe = observe
        self.count = 0
        """Number of anomalies that were found."""
        self.anomalies: dict[int, Anomaly] = {}
        """By sequence, the last ones that were found."""

    def decode(self, sequence: int, subject: str, payload: bytes) -> Stored | None:
        """Return the event; None if the message is an anomaly."""
        try:
            event = decode(payload)
        except MalformedEventError as error:
            return self._refuse(sequence, subject, str(error))
        if event.node and event.named_node:
            return self._refuse(sequence, subject, f"only a reconciler writes {event.type}, and this is of a node")
        return Stored(sequence, event) if self._belongs(event, sequence, subject) else None

    def decode_head(self, sequence: int, subject: str, payload: bytes) -> Head | None:
        """Return the head of the event; None if the message is an anomaly."""
        head = decode_head(payload)
        if head is None:
            return self._refuse(sequence, subject, "not an event")
        return head if self._belongs(head, sequence, subject) else None

    def _belongs(self, event: Event | Head, sequence: int, subject: str) -> bool:
        try:
            own = self._subject_of(event)
        except ValueError as error:
            own = str(error)
        if own != subject:
            self._refuse(sequence, subject, f"its envelope belongs under another subject: {own}")
        return own == subject

    def lines(self) -> list[str]:
        """Return a line for people about each anomaly that was found, the first ones only if there are many."""
        listed = sorted(self.anomalies.values())[:LISTED]
        hidden = self.count - len(listed)
        return [*map(str, listed), *([f"… and {hidden} more messages without effect"] if hidden else [])]

    def _refuse(self, sequence: int, subject: str, reason: str) -> None:
        """Count an anomaly, unless it was found before: readers may read a message again and again."""
        if sequence in self.anomalies:
            return
        if len(self.anomalies) == _REMEMBERED:
            del self.anomalies[next(iter(self.anomalies))]
        self.count += 1
        anomaly = self.anomalies[sequence] = Anomaly(sequence, subject, reason, self.count)
        self.observe(anomaly)


def event_subject(event: Event | Head) -> str:
    """Return the subject of an event in a ledger. Raises ValueError."""
    return subjects.subject(event.node, event.sandbox, event.type)


def command_subject(event: Event | Head) -> str:
    """Return the subject of an event in the stream of commands. Raises ValueError."""
    return subjects.command(event.node, event.type)
