"""Turn the events of a pod into lines: one for each effect, intent, outcome and observation.

Pure. An SRE reads these lines during an incident or in a ticket.
"""

from __future__ import annotations

import msgspec

from events.fold import request_of
from events.schema import Event, EventId, Intent, NodeName, Stored, expand_effects, unix_ns
from reconciler.history.words import SANDBOX_LETTERS, duration, words

HEADER = ("TIME", "SINCE REQUEST", "NODE", "SANDBOX", "WHAT HAPPENED")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An event, or an effect inside it, in plain English."""

    sequence: int
    at: str
    """RFC 3339 in UTC with milliseconds."""
    since_request: float | None
    """Seconds since its request; None: the request is unknown."""
    node: NodeName
    sandbox: str
    words: str
    failed: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """What it shows under ``HEADER``."""
        since = "" if self.since_request is None else f"+{duration(self.since_request)}"
        return self.at, since, self.node or "-", self.sandbox or "-", self.words


class Timeline:
    """Turns events into lines, in ledger order. It remembers only the open requests."""

    def __init__(self) -> None:
        self._opened: dict[EventId, Event] = {}

    def lines(self, stored: Stored) -> list[Line]:
        """Return the lines for the next event: one for each effect inside it, and one for itself."""
        sequence, event = stored
        request = self._opened.get(event.cause)
        if isinstance(event.data, Intent):
            self._opened[event.id] = event
        elif request_of(event) is not None:
            self._opened.pop(event.cause, None)
        return [_line(sequence, each, request) for each in expand_effects(event)]


def _line(sequence: int, event: Event, request: Event | None) -> Line:
    """Return the line for *event*; *request* is its request if known."""
    since = None if request is None else _seconds(request.at, event.at)
    description = words(event)
    if request is not None and event.epoch > request.epoch:
        description += f" [by the worker of epoch {event.epoch}, after the worker of epoch {request.epoch} ended]"
    return Line(
        sequence=sequence,
        at=_shown_time(event.at),
        since_request=since,
        node=NodeName(printable(event.named_node or event.node)),
        sandbox=printable(event.sandbox[:SANDBOX_LETTERS]),
        words=printable(description),
        failed=event.failure is not None,
    )


def printable(text: str) -> str:
    """Return *text* on one line, without terminal control characters."""
    return "".join(c if c.isprintable() else " " if c in "\r\n\t" else f"\\x{ord(c):02x}" for c in text)


def _seconds(start: str, end: str) -> float | None:
    try:
        return (unix_ns(end) - unix_ns(start)) / 1e9
    except ValueError:
        return None


def _shown_time(at: str) -> str:
    whole, point, fraction = at.rstrip("Z").partition(".")
    return f"{printable(whole)}.{fraction[:3]}Z" if point and fraction[:3].isdecimal() else printable(at)
