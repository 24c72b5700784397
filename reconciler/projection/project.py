"""Fold a batch of events into rows.

Pure. The rows equal the fold of the whole ledger by ``events.fold.State(keep_closed=True)``, because every batch begins
with exactly the part of that state which its events can touch (``Loaded``), and the part is in the rows. So there is no
state in memory that a restart could lose or rebuild wrongly: every batch is a restart. Closed sandboxes take part too:
a runtime that repeats DEL after a week must not turn the story of a sandbox into that of an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from events.fold import Anomaly, Pending, Sandbox, SandboxKey, State
from events.ledger import Stored
from events.schema import (
    ContainerId,
    Event,
    EventId,
    NodeName,
    Pod,
    StatusPublished,
    StatusPublishFailed,
    encode,
)
from reconciler.due import Published, became_attached
from reconciler.results import ResultError, read
from reconciler.status import PodName

Row: TypeAlias = dict[str, Any]

_BIGINT = 2**63 - 1

_encode_sandbox = msgspec.json.Encoder().encode
_sandbox_decoder = msgspec.json.Decoder(Sandbox)


class Needed(msgspec.Struct, frozen=True):
    """What of the state a batch can touch."""

    containers: frozenset[ContainerId]
    intents: frozenset[EventId]
    nodes: frozenset[NodeName]


class Loaded(msgspec.Struct, kw_only=True):
    """That part of the state, as the rows have it."""

    sequence: int = 0
    sandboxes: dict[SandboxKey, Sandbox] = {}
    """In the order of ``created``."""
    created: dict[SandboxKey, int] = {}
    pending: dict[EventId, Pending] = {}
    epochs: dict[NodeName, int] = {}


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
    )


def project(loaded: Loaded, batch: Sequence[Stored]) -> Changes:
    """Return what *batch*, whose sequences all lie behind *loaded*, does to the tables."""
    state = State(keep_closed=True)
    state.sequence = loaded.sequence
    state.sandboxes.update(loaded.sandboxes)
    state.pending.update(loaded.pending)
    state.epochs.update(loaded.epochs)
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
    opened = {stored.event.id for stored in batch} | loaded.pending.keys()
    return Changes(
        sequence=state.sequence,
        sandboxes=[sandbox_row(sandbox, created[sandbox.key]) for sandbox in changed],
        attachments=[row for sandbox in changed for row in attachment_rows(sandbox)],
        pending=[pending_row(*entry) for entry in state.pending.values() if entry.sequence > loaded.sequence],
        closed=sorted(opened - state.pending.keys()),
        nodes=[node_row(stored, state.epochs.get(node, 0)) for node, stored in latest.items()],
        anomalies=anomaly_rows(odd),
        statuses=list(statuses.values()),
        story=story,
        folded=state.sandboxes,
        attached=_pods(box for event, box in story if became_attached(event, box)),
        closed_pods=_pods(box for _, box in story if box is not None and not box.holds_something),
    )


def _pods(sandboxes: Iterable[Sandbox | None]) -> frozenset[PodName]:
    return frozenset(PodName(box.pod.namespace, box.pod.name) for box in sandboxes if box is not None and box.pod.name)


def sandbox_row(sandbox: Sandbox, created: int) -> Row:
    """Return the row of *sandbox*, whose first event had the sequence *created*."""
    failure = sandbox.failure
    return {
        "container_id": sandbox.key.container_id,
        "ifname": sandbox.key.ifname,
        "node": sandbox.node,
        "namespace": sandbox.pod.namespace,
        "pod": sandbox.pod.name,
        "uid": sandbox.pod.uid,
        "netns": sandbox.netns,
        "phase": sandbox.phase.value,
        "live": sandbox.holds_something,
        "error_class": failure.error_class.value if failure is not None else "",
        "failure": failure.message if failure is not None else "",
        "requested_at": sandbox.requested_at,
        "changed_at": sandbox.changed_at,
        "created": created,
        "sequence": sandbox.sequence,
        "fold": _encode_sandbox(sandbox),
    }


def sandbox_of(fold: bytes) -> Sandbox:
    """Return the sandbox that ``sandbox_row`` put away. Raises msgspec.MsgspecError."""
    return _sandbox_decoder.decode(fold)


def attachment_rows(sandbox: Sandbox) -> list[Row]:
    """Return the rows of the attachments of *sandbox*, in plan order."""
    return [
        {
            "container_id": sandbox.key.container_id,
            "sandbox_ifname": sandbox.key.ifname,
            "place": place,
            "ifname": attachment.plan.ifname,
            "network": attachment.plan.network,
            "cni_name": attachment.plan.cni_name,
            "is_default": attachment.plan.default,
            "phase": attachment.phase.value,
            "addresses": _addresses(attachment.result, attachment.plan.cni_version),
        }
        for place, attachment in enumerate(sandbox.attachments)
    ]


def pending_row(event: Event, sequence: int) -> Row:
    """Return the row of an intent without outcome."""
    return {
        "event_id": event.id,
        "sequence": sequence,
        "node": event.node,
        "container_id": event.sandbox,
        "type": event.type,
        "at": event.at,
        "event": encode(event),
    }


def node_row(last: Stored, epoch: int) -> Row:
    """Return the row of the node whose latest event is *last*."""
    event = last.event
    return {
        "node": event.node,
        "epoch": min(epoch, _BIGINT),  # a forged one must not stop everybody's projection
        "boot_id": event.boot_id,
        "changed_at": event.at,
        "sequence": last.sequence,
    }


def status_row(stored: Stored) -> Row | None:
    """Return the row of the pod whose status *stored* says the last word of; None for any other event."""
    match stored.event.data:
        case StatusPublished(ifname=ifname, pod=Pod(name=name) as pod, text=text) if name:
            refused = False
        case StatusPublishFailed(ifname=ifname, pod=Pod(name=name) as pod, final=True) if name:
            text, refused = "", True
        case _:
            return None
    return {
        "namespace": pod.namespace,
        "pod": pod.name,
        "uid": pod.uid,
        "container_id": stored.event.sandbox,
        "ifname": ifname,
        "intent": stored.event.cause,
        "text": text,
        "refused": refused,
        "at": stored.event.at,
        "sequence": stored.sequence,
    }


def anomaly_rows(odd: Iterable[Anomaly]) -> list[Row]:
    """Return the rows of anomalies."""
    return [
        {
            "sequence": anomaly.sequence,
            "reason": anomaly.reason,
            "event_id": anomaly.event_id,
            "type": anomaly.type,
            "container_id": anomaly.sandbox,
        }
        for anomaly in odd
    ]


def _addresses(result: str, cni_version: str) -> str:
    if not result:
        return ""
    try:
        return " ".join(ip.address for ip in read(result, cni_version).ips)
    except ResultError:
        return ""  # the recorded text itself is in the fold, and whoever publishes it complains
