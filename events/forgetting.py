"""Decide what of a node's ledger can be deleted.

A ledger purges a subject up to a sequence. Events that depend on one another form a group: all events of a container,
or the events of the node with one topic. A group can be purged up to any event after which nothing of it is open: a
sandbox, a pending request, a leak. What follows then means the same as if nothing had come before it.

Pure: ``Forgetting`` takes the events that are old enough, in ledger order, and returns what to purge.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, NewType, TypeAlias

from events import subjects
from events.fold import State
from events.schema import NO_SANDBOX, TYPES, Command, ContainerId, Event, Fence, NodeName, Stored, Unknown

Topic = NewType("Topic", str)
"""``topic`` of the node's events in the group; empty for requests that named no usable container ID."""
_Group: TypeAlias = tuple[ContainerId, Topic]
"""A container, or a topic of the node's events; the other of the two is empty."""

_FENCES = frozenset(name for name, kind in TYPES.items() if issubclass(kind, Fence))
_TOPICS = {name: Topic(kind.topic) for name, kind in TYPES.items() if name not in _FENCES}
_OPENING = frozenset(name for name, kind in TYPES.items() if kind.opens)


class Purge(NamedTuple):
    """Arguments of ``Ledger.purge``."""

    subject: str
    up_to: int


class _Progress:
    """The subjects of one group, and up to which event nothing of it is open."""

    def __init__(self) -> None:
        self.closed_at = 0
        """Sequence of the last event after which nothing was open; 0: there was none."""
        self.subjects: dict[str, int] = {}
        """What to purge: each subject with its first sequence."""
        self._open: State | None = None
        self._understood = True

    def add(self, stored: Stored, subject: str) -> None:
        """Take in the next event."""
        self.subjects.setdefault(subject, stored.sequence)
        if isinstance(stored.event.data, Unknown):
            self._understood = False  # a newer Plumbline may have opened something with it
        state = self._open or State()
        state.apply(stored)
        self._open = state if state.sandboxes or state.pending or state.leaks else None
        if self._open is None and self._understood:
            self.closed_at = stored.sequence


class Forgetting:
    """Finds what can be deleted from the ledger of *node*. The containers in *live* stay whole."""

    def __init__(self, node: NodeName, live: Collection[ContainerId] = ()) -> None:
        self._node = node
        self._live = live
        self._groups: dict[_Group, _Progress] = {}
        self._fences: dict[str, tuple[int, int]] = {}
        """Each fence's subject with its first and its newest sequence."""
        self._command = 0
        self._commanded: tuple[_Group, int] | None = None
        """The group of the newest command, and its ``closed_at`` before that command."""

    def add(self, stored: Stored) -> None:
        """Take in the next event. Events of other nodes are ignored: their own workers delete them."""
        event = stored.event
        if self._node not in (event.node, event.named_node) and (event.node or event.sandbox):
            return
        if event.sandbox:
            group, subject = (event.sandbox, Topic("")), subjects.pattern(event.node, event.sandbox)
        else:
            subject = subjects.subject(event.node, NO_SANDBOX, event.type)
            if event.type in _FENCES:
                first, _ = self._fences.get(subject, (stored.sequence, 0))
                self._fences[subject] = (first, stored.sequence)
                return
            if event.type not in _TOPICS:
                return
            group = (NO_SANDBOX, _TOPICS[event.type])
        progress = self._groups.setdefault(group, _Progress())
        if (command := _command_of(event)) > self._command:
            self._command, self._commanded = command, (group, progress.closed_at)
        progress.add(stored, subject)

    @property
    def containers(self) -> int:
        """Number of containers with something to purge."""
        return sum(1 for group in self._groups if group[0] and self._end(group))

    def purges(self) -> Iterator[Purge]:
        """Yield what to purge, in an order in which a crash between two purges reopens nothing."""
        for subject, (first, newest) in self._fences.items():
            if first < newest:
                yield Purge(subject, newest - 1)
        for group, progress in self._groups.items():
            end = self._end(group)
            for subject in _openings_first(progress.subjects):
                if progress.subjects[subject] <= end:
                    yield Purge(subject, end)

    def _end(self, group: _Group) -> int:
        """Return up to which sequence *group* can go. The newest command stays: by it a node knows where to resume."""
        if group[0] in self._live:
            return 0
        if self._commanded is not None and self._commanded[0] == group:
            return self._commanded[1]
        return self._groups[group].closed_at


def _command_of(event: Event) -> int:
    return event.data.command if isinstance(event.data, Command) else 0


def _openings_first(names: Iterable[str]) -> list[str]:
    """Return *names* with opening events first: an outcome without its intent is harmless, the reverse is not."""
    return sorted(names, key=lambda name: name.rpartition(".")[2] not in _OPENING)
