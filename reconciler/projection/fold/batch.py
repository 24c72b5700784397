"""Fold a batch of events into rows.

Pure. The rows equal a fold of the whole ledger by ``events.fold.State(keep_closed=True)``: each batch starts from the
part of that state that its events can touch (``Loaded``), and the rows contain that part.
``reconciler.projection.batch_cache`` only saves reads. Closed sandboxes are loaded too: a DEL that a runtime repeats
after a week must not overwrite the sandbox's row with an empty one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from events.fold import Anomaly, Leaked, Pending, Sandbox, SandboxKey, State
from events.schema import (
    NO_CAUSE,
    NO_NODE,
    NO_SANDBOX,
    ContainerId,
    Event,
    EventId,
    LeakId,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeName,
    Stored,
)
from reconciler.projection.fold.address_holdings import HoldingRows
from reconciler.projection.fold.history_rows import HistoryRows, NetworkVersionRows
from reconciler.projection.fold.published import PodName, Published, concerns_status
from reconciler.projection.fold.rows import (
    Row,
    anomaly_rows,
    attachment_row,
    node_row,
    pending_row,
    sandbox_row,
    status_row,
)

LeakKey: TypeAlias = tuple[NodeName, LeakId]

_OF_LEAKS = (LeakObserved, LeakReclaimed, LeakReclaimFailed)
"""A constant: ``|`` in ``isinstance`` would build a union type for every event."""


class Needed(msgspec.Struct, frozen=True):
    """The keys of the state that a batch can touch."""

    containers: frozenset[ContainerId]
    intents: frozenset[EventId]
    nodes: frozenset[NodeName]
    leaks: frozenset[LeakKey]


class Loaded(msgspec.Struct, kw_only=True):
    """That part of the state, read from the rows."""

    sequence: int = 0
    sandboxes: dict[SandboxKey, Sandbox] = {}
    created: dict[SandboxKey, int] = {}
    """Sequence of the first event of each sandbox."""
    pending: dict[EventId, Pending] = {}
    epochs: dict[NodeName, int] = {}
    commands: dict[NodeName, int] = {}
    leaks: dict[LeakKey, Leaked] = {}


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of a batch to the tables, and what the listeners need to know about it."""

    sequence: int
    sandboxes: list[Row]
    attachments: list[Row]
    """Only changed ones."""
    unplanned: list[SandboxKey]
    """Sandboxes with fewer attachments than before."""
    pending: list[Row]
    closed: list[EventId]
    """Earlier intents that have an outcome now."""
    nodes: list[Row]
    anomalies: list[Row]
    statuses: list[Row]
    leaks: list[tuple[NodeName, Leaked]]
    """New leaks and leaks with a new observation, if they are still open."""
    freed: list[LeakKey]
    """Leaks that are closed now."""
    holdings: HoldingRows
    versions: list[Row]
    histories: HistoryRows
    events: list[tuple[Event, Sandbox | None]]
    """Each event with its sandbox after the event."""
    folded: dict[SandboxKey, Sandbox]
    """The sandboxes of all containers that the batch touches, oldest first."""
    created: dict[SandboxKey, int]
    """Sequence of the first event of each of those sandboxes."""
    open: dict[EventId, Pending]
    """The intents that the batch touches and that have no outcome."""
    phases: Counter[str]
    """Change of the number of live sandboxes in each phase."""
    published: dict[PodName, Published] = {}
    """The published status of the pods in ``attached_pods``, as far as the ledger knows. Set by the store."""
    detached_pods: frozenset[PodName] = frozenset()
    """The pods in ``closed_pods`` without a live sandbox on any node. Set by the store."""

    @property
    def attached_pods(self) -> frozenset[PodName]:
        """Pods that may need a new publication of their status."""
        return _pods(box for event, box in self.events if concerns_status(event, box))

    @property
    def closed_pods(self) -> frozenset[PodName]:
        """Pods with a sandbox that holds no resources any more."""
        return _pods(box for _, box in self.events if box is not None and not box.holds_resources)


def needed(batch: Sequence[Stored]) -> Needed:
    """Return the keys to load before *batch* can be projected."""
    return Needed(
        containers=frozenset({event.sandbox for _, event in batch}) - {NO_SANDBOX},
        intents=frozenset({event.cause for _, event in batch}) - {NO_CAUSE},
        nodes=frozenset({event.node for _, event in batch}) - {NO_NODE},
        leaks=frozenset(_leaks(batch)),
    )


def _leaks(batch: Sequence[Stored]) -> set[LeakKey]:
    """Return the leaks that the events of *batch* are about."""
    return {(event.node, event.data.leak.id) for _, event in batch if isinstance(event.data, _OF_LEAKS)}


def project(loaded: Loaded, batch: Sequence[Stored]) -> Changes:
    """Return the changes of *batch* to the tables. All its sequences are greater than that of *loaded*."""
    state = _state(loaded)
    created = dict(loaded.created)
    now: dict[SandboxKey, Sandbox] = {}
    latest: dict[NodeName, Stored] = {}
    odd: list[Anomaly] = []
    statuses: dict[PodName, Row] = {}
    events: list[tuple[Event, Sandbox | None]] = []
    holdings, versions, histories = HoldingRows(), NetworkVersionRows(), HistoryRows()
    for stored in batch:
        sandbox = state.apply(stored)
        event = stored.event
        events.append((event, sandbox))
        if sandbox is not None:
            key = sandbox.key
            before = now.get(key) or loaded.sandboxes.get(key)
            if before is None:
                created[key] = stored.sequence
            holdings.step(stored, before, sandbox)
            now[key] = sandbox
        if event.node:
            latest[event.node] = stored
        versions.step(stored)
        histories.step(stored, sandbox)
        if (row := status_row(stored)) is not None:
            statuses[PodName(row["namespace"], row["pod"])] = row
        if state.anomalies:
            odd.extend(state.anomalies)
            state.anomalies.clear()
    leaks = sorted(_leaks(batch))
    return Changes(
        sequence=state.sequence,
        sandboxes=[sandbox_row(now[key], created[key]) for key in sorted(now)],
        attachments=[row for key in sorted(now) for row in _attachments(loaded.sandboxes.get(key), now[key])],
        unplanned=[key for key, box in now.items() if _fewer(loaded.sandboxes.get(key), box)],
        pending=[pending_row(*entry) for entry in state.pending.values() if entry.sequence > loaded.sequence],
        closed=sorted(loaded.pending.keys() - state.pending.keys()),
        nodes=[
            node_row(stored, state.epochs.get(node, 0), state.commands.get(node, 0)) for node, stored in latest.items()
        ],
        anomalies=anomaly_rows(odd),
        statuses=list(statuses.values()),
        leaks=[(key[0], state.leaks[key]) for key in leaks if key in state.leaks],
        freed=[key for key in leaks if key not in state.leaks],
        holdings=holdings,
        versions=versions.rows,
        histories=histories,
        events=events,
        folded=dict(state.sandboxes),
        created=created,
        open=state.pending,
        phases=_phases(loaded.sandboxes, now),
    )


def _state(loaded: Loaded) -> State:
    state = State(keep_closed=True)
    state.sequence = loaded.sequence
    oldest_first = sorted(loaded.sandboxes, key=loaded.created.__getitem__)
    state.sandboxes.update((key, loaded.sandboxes[key]) for key in oldest_first)
    state.pending.update(loaded.pending)
    state.epochs.update(loaded.epochs)
    state.commands.update(loaded.commands)
    state.leaks.update(loaded.leaks)
    return state


def _attachments(before: Sandbox | None, after: Sandbox) -> list[Row]:
    """Return the rows of the attachments of *after* that differ from *before*."""
    had = before.attachments if before is not None else ()
    return [
        attachment_row(after, place)
        for place, attachment in enumerate(after.attachments)
        if place >= len(had) or had[place] != attachment
    ]


def _fewer(before: Sandbox | None, after: Sandbox) -> bool:
    return before is not None and len(before.attachments) > len(after.attachments)


def _phases(before: Mapping[SandboxKey, Sandbox], after: Mapping[SandboxKey, Sandbox]) -> Counter[str]:
    """Return the change of the number of live sandboxes in each phase."""
    more: Counter[str] = Counter()
    for key, sandbox in after.items():
        had = before.get(key)
        if had is not None and had.holds_resources:
            more[had.phase.value] -= 1
        if sandbox.holds_resources:
            more[sandbox.phase.value] += 1
    return more


def _pods(sandboxes: Iterable[Sandbox | None]) -> frozenset[PodName]:
    return frozenset(PodName(box.pod.namespace, box.pod.name) for box in sandboxes if box is not None and box.pod.name)
