"""Fold a batch of events into rows.

Pure. The rows equal the fold of the whole ledger by ``events.fold.State(keep_closed=True)``, because every batch begins
with exactly the part of that state which its events can touch (``Loaded``), and the part is in the rows. So there is no
state in memory that a restart could lose or rebuild wrongly: every batch is a restart. Closed sandboxes take part too:
a runtime that repeats DEL after a week must not turn the story of a sandbox into that of an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from events.fold import Anomaly, Leaked, Pending, Sandbox, SandboxKey, State
from events.ledger import Stored
from events.schema import (
    ContainerId,
    Event,
    EventId,
    LeakId,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeName,
)
from reconciler.due import Published, became_attached
from reconciler.projection.rows import (
    Row,
    anomaly_rows,
    attachment_rows,
    node_row,
    pending_row,
    sandbox_row,
    status_row,
)
from reconciler.status import PodName

LeakKey: TypeAlias = tuple[NodeName, LeakId]


class Needed(msgspec.Struct, frozen=True):
    """What of the state a batch can touch."""

    containers: frozenset[ContainerId]
    intents: frozenset[EventId]
    nodes: frozenset[NodeName]
    leaks: frozenset[LeakKey]


class Loaded(msgspec.Struct, kw_only=True):
    """That part of the state, as the rows have it."""

    sequence: int = 0
    sandboxes: dict[SandboxKey, Sandbox] = {}
    """In the order of ``created``."""
    created: dict[SandboxKey, int] = {}
    pending: dict[EventId, Pending] = {}
    epochs: dict[NodeName, int] = {}
    commands: dict[NodeName, int] = {}
    leaks: dict[LeakKey, Leaked] = {}


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch does to the tables, and what whoever acts on it has to know."""

    sequence: int
    sandboxes: list[Row]
    attachments: list[Row]
    pending: list[Row]
    closed: list[EventId]
    """Intents that have an outcome now."""
    nodes: list[Row]
    anomalies: list[Row]
    statuses: list[Row]
    leaks: list[tuple[NodeName, Leaked]]
    """What came to be known, or was looked at again, and is held still."""
    freed: list[LeakKey]
    """Leaks that are none any more."""
    story: list[tuple[Event, Sandbox | None]]
    """Each event with the sandbox that it belongs to, as it was after it."""
    folded: dict[SandboxKey, Sandbox]
    """The sandboxes of all containers that the batch touches, oldest first."""
    attached: frozenset[PodName]
    """Pods of which a sandbox became attached."""
    published: dict[PodName, Published] = {}
    """What is published of those, as far as the ledger knows; the store's to say."""
    closed_pods: frozenset[PodName]
    """Pods of which a sandbox came to hold nothing any more."""
    left: frozenset[PodName] = frozenset()
    """Those of them that have nothing on any node now; the store's to say."""


def needed(batch: Sequence[Stored]) -> Needed:
    """Return what must be loaded before *batch* can be projected."""
    return Needed(
        containers=frozenset(event.sandbox for _, event in batch if event.sandbox),
        intents=frozenset(event.cause for _, event in batch if event.cause),
        nodes=frozenset(event.node for _, event in batch if event.node),
        leaks=frozenset(key for _, event in batch if (key := leak_key(event)) is not None),
    )


def leak_key(event: Event) -> LeakKey | None:
    """Return the leak that *event* tells of; None: it tells of none."""
    match event.data:
        case LeakObserved(leak=leak) | LeakReclaimed(leak=leak) | LeakReclaimFailed(leak=leak):
            return event.node, leak.id
        case _:
            return None


def project(loaded: Loaded, batch: Sequence[Stored]) -> Changes:
    """Return what *batch*, whose sequences all lie behind *loaded*, does to the tables."""
    state = State(keep_closed=True)
    state.sequence = loaded.sequence
    state.sandboxes.update(loaded.sandboxes)
    state.pending.update(loaded.pending)
    state.epochs.update(loaded.epochs)
    state.commands.update(loaded.commands)
    state.leaks.update(loaded.leaks)
    created = dict(loaded.created)
    touched: set[SandboxKey] = set()
    latest: dict[NodeName, Stored] = {}
    odd: list[Anomaly] = []
    statuses: dict[PodName, Row] = {}
    story: list[tuple[Event, Sandbox | None]] = []
    for stored in batch:
        sandbox = state.apply(stored)
        story.append((stored.event, sandbox))
        if sandbox is not None:
            created.setdefault(sandbox.key, stored.sequence)
            touched.add(sandbox.key)
        if stored.event.node:
            latest[stored.event.node] = stored
        if (row := status_row(stored)) is not None:
            statuses[PodName(row["namespace"], row["pod"])] = row
        odd.extend(state.anomalies)
        state.anomalies.clear()
    changed = [state.sandboxes[key] for key in sorted(touched)]
    leaks = sorted({key for stored in batch if (key := leak_key(stored.event)) is not None})
    opened = {stored.event.id for stored in batch} | loaded.pending.keys()
    return Changes(
        sequence=state.sequence,
        sandboxes=[sandbox_row(sandbox, created[sandbox.key]) for sandbox in changed],
        attachments=[row for sandbox in changed for row in attachment_rows(sandbox)],
        pending=[pending_row(*entry) for entry in state.pending.values() if entry.sequence > loaded.sequence],
        closed=sorted(opened - state.pending.keys()),
        nodes=[
            node_row(stored, state.epochs.get(node, 0), state.commands.get(node, 0)) for node, stored in latest.items()
        ],
        anomalies=anomaly_rows(odd),
        statuses=list(statuses.values()),
        leaks=[(key[0], state.leaks[key]) for key in leaks if key in state.leaks],
        freed=[key for key in leaks if key not in state.leaks],
        story=story,
        folded=state.sandboxes,
        attached=_pods(box for event, box in story if became_attached(event, box)),
        closed_pods=_pods(box for _, box in story if box is not None and not box.holds_something),
    )


def _pods(sandboxes: Iterable[Sandbox | None]) -> frozenset[PodName]:
    return frozenset(PodName(box.pod.namespace, box.pod.name) for box in sandboxes if box is not None and box.pod.name)
