"""Decide what of that which nobody owns is freed, and when.

Pure. A node says what it holds without an owner, with the evidence; here is decided that it is freed, and the node
looks again before it does. Nothing of what a cluster knows about pods enters: a pod that is missing from an API server
has often been alive all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from events.fold import Leaked
from events.schema import ContainerId, ErrorClass, EventId, Leak, LeakId, NodeName

SIGHTINGS = 2
"""Looks that must have found it so: one may have met a moment."""
AT_ONCE = 32
"""Reclaims under way on one node."""
OVERDUE = 120.0
"""Seconds after which a command that nobody has answered is sent again: the node may have lost it, or been away."""
_FIRST_PAUSE = 5.0
_LAST_PAUSE = 3600.0


class LeakKey(NamedTuple):
    """What is held, and where."""

    node: NodeName
    leak: LeakId


class LastReclaim(NamedTuple):
    """What was sent last for a leak."""

    cause: EventId
    """The observation that it rests on."""
    at: float
    """When, in seconds of the asker's clock."""
    attempts: int
    """How many were sent for the same leak, this one included."""
    answered: bool = False
    """Whether the node has said that it did not free it."""
    by: EventId = EventId("")
    """The command."""


class Reclaim(NamedTuple):
    """A command to be sent."""

    node: NodeName
    cause: EventId
    leak: Leak

    @property
    def sandbox(self) -> ContainerId:
        """The sandbox that the command belongs to."""
        return self.leak.sandbox


def reclaims(
    leaks: Mapping[LeakKey, Leaked], asked: Mapping[LeakKey, LastReclaim], now: float, *, at_once: int = AT_ONCE
) -> list[Reclaim]:
    """Return what is to be freed now: what was seen twice, oldest first, so much on each node.

    One that a node did not free is tried again with growing pauses, at once if the node has looked again since.
    """
    under_way = Counter(key.node for key, last in asked.items() if key in leaks and _under_way(last, now))
    found: list[Reclaim] = []
    for key, leaked in sorted(leaks.items(), key=lambda item: (item[1].first_at, item[0])):
        if under_way[key.node] < at_once and _due(leaked, asked.get(key), now):
            under_way[key.node] += 1
            found.append(Reclaim(key.node, leaked.event, leaked.observed.leak))
    return found


def next_look(leaks: Mapping[LeakKey, Leaked], asked: Mapping[LeakKey, LastReclaim], now: float) -> float | None:
    """Return the seconds until something may become due by time alone; None: nothing does."""
    left = [
        last.at + (pause(last.attempts) if last.answered else OVERDUE) - now
        for key, last in asked.items()
        if key in leaks
    ]
    return max(0.0, min(left)) if left else None


def pause(attempts: int) -> float:
    """Return the seconds to wait after so many attempts that freed nothing."""
    return min(_LAST_PAUSE, _FIRST_PAUSE * 2 ** min(attempts - 1, 16))


def sent(asked: Mapping[LeakKey, LastReclaim], reclaim: Reclaim, command: EventId, now: float) -> LastReclaim:
    """Return what is to be remembered once *reclaim* was sent as *command*."""
    before = asked.get(LeakKey(reclaim.node, reclaim.leak.id))
    return LastReclaim(reclaim.cause, now, 1 + (before.attempts if before is not None else 0), by=command)


def refused(last: LastReclaim, error_class: ErrorClass, now: float) -> LastReclaim:
    """Return *last* once the node has said that it did not free it.

    What had changed meanwhile is the node's to look at again, and no failure.
    """
    attempts = 1 if error_class is ErrorClass.EVIDENCE_CHANGED else last.attempts
    return last._replace(answered=True, at=now, attempts=attempts)


def only_known(asked: Mapping[LeakKey, LastReclaim], freed: Iterable[LeakKey]) -> dict[LeakKey, LastReclaim]:
    """Return *asked* without what is *freed*."""
    gone = set(freed)
    return {key: last for key, last in asked.items() if key not in gone}


def _due(leaked: Leaked, last: LastReclaim | None, now: float) -> bool:
    if leaked.observed.sightings < SIGHTINGS:
        return False
    if last is None:
        return True
    if not last.answered:
        return now - last.at > OVERDUE
    return last.cause != leaked.event or now - last.at >= pause(last.attempts)


def _under_way(last: LastReclaim, now: float) -> bool:
    return not last.answered and now - last.at <= OVERDUE
