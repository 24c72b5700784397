"""Decide which leaks to reclaim, and when.

Pure. A node reports what it holds without an owner, with the evidence. This module decides to reclaim it, and the node
checks again before it acts. The API server's view of pods is ignored: a pod that is missing there is often still alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from events.fold import Leaked
from events.schema import ContainerId, ErrorClass, EventId, Leak, LeakId, NodeName

MIN_SIGHTINGS = 2
"""Observations before a leak is reclaimed: a single one may have met a transient state."""
MAX_CONCURRENT = 32
"""Maximum number of reclaims in progress on one node."""
COMMAND_TIMEOUT = 120.0
"""Seconds until a command without an answer is sent again: the node may have lost it, or been unavailable."""
_FIRST_BACKOFF = 5.0
_MAX_BACKOFF = 3600.0


class LeakKey(NamedTuple):
    """Node and ID of a leak."""

    node: NodeName
    leak: LeakId


class LastReclaim(NamedTuple):
    """The last command for a leak."""

    cause: EventId
    """The observation that it rests on."""
    at: float
    """Time of the command, in seconds of the caller's clock."""
    attempts: int
    """Number of commands for this leak so far."""
    refused: bool = False
    """True if the node refused the command."""
    command: EventId = EventId("")
    """ID of the command."""


class Reclaim(NamedTuple):
    """A command to send."""

    node: NodeName
    cause: EventId
    leak: Leak

    @property
    def sandbox(self) -> ContainerId:
        """The sandbox that the command belongs to."""
        return self.leak.sandbox


def reclaims(
    leaks: Mapping[LeakKey, Leaked],
    sent: Mapping[LeakKey, LastReclaim],
    now: float,
    *,
    max_concurrent: int = MAX_CONCURRENT,
) -> list[Reclaim]:
    """Return the leaks to reclaim now: observed twice, oldest first, within the limit of each node.

    After a refusal, the leak is retried with a growing backoff, or at once after a new observation.
    """
    in_progress = Counter(key.node for key, last in sent.items() if key in leaks and _in_progress(last, now))
    due: list[Reclaim] = []
    for key, leaked in sorted(leaks.items(), key=lambda item: (item[1].first_at, item[0])):
        if in_progress[key.node] < max_concurrent and _due(leaked, sent.get(key), now):
            in_progress[key.node] += 1
            due.append(Reclaim(key.node, leaked.event, leaked.observed.leak))
    return due


def next_retry(leaks: Mapping[LeakKey, Leaked], sent: Mapping[LeakKey, LastReclaim], now: float) -> float | None:
    """Return the seconds until a retry may become due; None: no retry is scheduled."""
    remaining = [
        last.at + (backoff(last.attempts) if last.refused else COMMAND_TIMEOUT) - now
        for key, last in sent.items()
        if key in leaks
    ]
    return max(0.0, min(remaining)) if remaining else None


def backoff(attempts: int) -> float:
    """Return the seconds to wait after *attempts* failed attempts."""
    return min(_MAX_BACKOFF, _FIRST_BACKOFF * 2 ** min(attempts - 1, 16))


def after_sending(sent: Mapping[LeakKey, LastReclaim], reclaim: Reclaim, command: EventId, now: float) -> LastReclaim:
    """Return the record of *reclaim* after it was sent as *command*."""
    before = sent.get(LeakKey(reclaim.node, reclaim.leak.id))
    return LastReclaim(reclaim.cause, now, 1 + (before.attempts if before is not None else 0), command=command)


def after_refusal(last: LastReclaim, error_class: ErrorClass, now: float) -> LastReclaim:
    """Return *last* after the node refused the command.

    Changed evidence is not a failure: the node will observe again.
    """
    attempts = 1 if error_class is ErrorClass.EVIDENCE_CHANGED else last.attempts
    return last._replace(refused=True, at=now, attempts=attempts)


def without_freed(sent: Mapping[LeakKey, LastReclaim], freed: Iterable[LeakKey]) -> dict[LeakKey, LastReclaim]:
    """Return *sent* without the leaks in *freed*."""
    gone = set(freed)
    return {key: last for key, last in sent.items() if key not in gone}


def _due(leaked: Leaked, last: LastReclaim | None, now: float) -> bool:
    if leaked.observed.sightings < MIN_SIGHTINGS:
        return False
    if last is None:
        return True
    if not last.refused:
        return now - last.at > COMMAND_TIMEOUT
    return last.cause != leaked.event or now - last.at >= backoff(last.attempts)


def _in_progress(last: LastReclaim, now: float) -> bool:
    return not last.refused and now - last.at <= COMMAND_TIMEOUT
