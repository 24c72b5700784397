"""Decide what of a node's ledger can be forgotten.

The ledger forgets by subject, up to a sequence. So the events that depend on one another are one matter: all of a
container, or those of the node that answer each other. A matter can be forgotten up to any point at which nothing of it
was open, because what follows then means the same as if nothing had come before it.

Pure: it is told of the events that are old enough, in their order, and says what can go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from events import subjects
from events.fold import State
from events.schema import (
    INTENTS,
    NO_NODE,
    NO_SANDBOX,
    TYPES,
    ComparisonRequested,
    ContainerId,
    DriftObserved,
    Event,
    NodeName,
    ReclaimRequested,
    RepairRequested,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    Unknown,
)

_LAST_STAYS = frozenset({"WorkerStarted", "ReconcilerElected"})
"""Fences: the newest says who may write, and what the next epoch is."""
_ANSWERED = (
    frozenset({"ComparisonRequested", "NodeCompared"}),
    frozenset({"GcRequested", "GcCompleted", "GcFailed"}),
    frozenset({"LeakObserved", "ReclaimRequested", "LeakReclaimed", "LeakReclaimFailed"}),
    frozenset({"WorkerStopped"}),
)
"""Types of events of the node that say something of each other."""
_OTHERS = frozenset(TYPES).difference(_LAST_STAYS, *_ANSWERED)
"""Of requests that named no usable container ID."""
_MATTER_OF = {name: index for index, names in enumerate((*_ANSWERED, _OTHERS)) for name in names}
_OPENING = INTENTS | {"LeakObserved"}


class Purge(NamedTuple):
    """Arguments of ``Ledger.purge``."""

    subject: str
    up_to: int


class _Matter:
    """Events that depend on one another, and up to where nothing of them is open."""

    def __init__(self) -> None:
        self.over = 0
        """At this event nothing was open. 0: that never was."""
        self.subjects: dict[str, int] = {}
        """What to purge, each with its first event."""
        self._open: State | None = None
        self._understood = True

    def add(self, stored: Stored, subject: str) -> None:
        """Take note of the next event."""
        self.subjects.setdefault(subject, stored.sequence)
        if isinstance(stored.event.data, Unknown):
            self._understood = False  # a newer Plumbline may have begun something with it
        state = self._open or State()
        state.apply(stored)
        self._open = state if state.sandboxes or state.pending or state.leaks else None
        if self._open is None and self._understood:
            self.over = stored.sequence


class Forgetting:
    """What can be forgotten of the ledger of *node*, as far as it was told. Containers that are *live* stay whole."""

    def __init__(self, node: NodeName, live: Collection[ContainerId] = ()) -> None:
        self._node = node
        self._live = live
        self._matters: dict[ContainerId | int, _Matter] = {}
        """By container, or the place in ``_ANSWERED``."""
        self._fences: dict[str, tuple[int, int]] = {}
        """Subject to its first and its newest event."""
        self._command = 0
        self._commanded: tuple[ContainerId | int, int] | None = None
        """What the newest command belongs to, and up to where that was over before."""

    def add(self, stored: Stored) -> None:
        """Take note of the next event. What is of other nodes is theirs to forget."""
        event = stored.event
        if self._node not in (event.node, _told_of(event)) and (event.node or event.sandbox):
            return
        if event.sandbox:
            key, subject = event.sandbox, subjects.pattern(event.node, event.sandbox)
        else:
            subject = subjects.subject(event.node, NO_SANDBOX, event.type)
            if event.type in _LAST_STAYS:
                first, _ = self._fences.get(subject, (stored.sequence, 0))
                self._fences[subject] = (first, stored.sequence)
                return
            if event.type not in _MATTER_OF:
                return
            key = _MATTER_OF[event.type]
        matter = self._matters.setdefault(key, _Matter())
        if (command := _command_of(event)) > self._command:
            self._command, self._commanded = command, (key, matter.over)
        matter.add(stored, subject)

    @property
    def containers(self) -> int:
        """How many containers have something that can go."""
        return sum(1 for key in self._matters if isinstance(key, str) and self._end(key))

    def purges(self) -> Iterator[Purge]:
        """Yield what can go, in an order in which nothing that is closed is open in between."""
        for subject, (first, newest) in self._fences.items():
            if first < newest:
                yield Purge(subject, newest - 1)
        for key, matter in self._matters.items():
            end = self._end(key)
            for subject in _openings_first(matter.subjects):
                if matter.subjects[subject] <= end:
                    yield Purge(subject, end)

    def _end(self, key: ContainerId | int) -> int:
        """Return up to where a matter can go. By its newest command a node knows which commands it has had."""
        if key in self._live:
            return 0
        return self._commanded[1] if self._commanded and self._commanded[0] == key else self._matters[key].over


def _told_of(event: Event) -> NodeName:
    """Return the node that the reconciler's *event* is about."""
    match event.data:
        case StatusPublished(node=node) | StatusPublishFailed(node=node) | DriftObserved(node=node):
            return node
        case _:
            return NO_NODE


def _command_of(event: Event) -> int:
    return event.data.command if isinstance(event.data, RepairRequested | ReclaimRequested | ComparisonRequested) else 0


def _openings_first(names: Iterable[str]) -> list[str]:
    """Return *names* as they are to go: an answer without its request does no harm, a request without would be done."""
    return sorted(names, key=lambda name: name.rpartition(".")[2] not in _OPENING)
