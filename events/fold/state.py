"""All sandboxes of a ledger, its pending requests and its leaks.

An event type that changes a sandbox has a step in ``events.fold.steps``; one that changes other state has a step in
``_STEPS`` here. Every other type does only what its kind says: an intent opens a request, an outcome closes one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from events.fold.sandbox import Sandbox, SandboxKey
from events.fold.steps import SANDBOX_TYPES, advance
from events.schema import (
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    Command,
    ContainerId,
    Data,
    DetachRequested,
    Effect,
    Event,
    EventId,
    Failure,
    IfName,
    Intent,
    InterfaceDetached,
    LeakId,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeName,
    Outcome,
    RequestId,
    Stored,
    Unknown,
    WorkerStarted,
    types_of,
)

MAX_ANOMALIES = 1000

# A lookup in a set is cheaper than an isinstance check, and every event needs several. Half of all events are effects.
_EFFECTS = types_of(Effect)
_INTENTS = types_of(Intent)
_OUTCOMES = types_of(Outcome)
_OF_WHOLE_SANDBOX = SANDBOX_TYPES - _EFFECTS
"""They have the sandbox's ``ifname``, not that of one attachment."""


class Pending(NamedTuple):
    """An intent without outcome."""

    event: Event
    sequence: int


class Leaked(NamedTuple):
    """A resource without a live attachment, as of the last scan."""

    observed: LeakObserved
    event: EventId
    """The observation."""
    first_at: str
    """Time of the first observation, RFC 3339."""
    at: str
    sequence: int
    refused: Failure | None = None
    """Why the last attempt to free it failed."""


class Anomaly(NamedTuple):
    """An event that does not fit what came before it."""

    sequence: int
    event_id: EventId
    type: str
    sandbox: ContainerId
    reason: str
    at: str = ""
    """Time of the event, RFC 3339."""


class State:
    """The fold of a ledger: sandboxes, pending requests, leaks, epochs, anomalies.

    A container of frozen values; only ``apply`` changes it. Sandboxes without resources are dropped unless
    *keep_closed*, because a node that has run for a year must not remember every pod.

    A reader applies events in ledger order, so an event at or before the last sequence is a duplicate. The ledger's
    writer applies its own events as they are confirmed, where a later one may overtake a repeated append: it passes
    *in_order* = False. *sandboxes* is the mapping to use, for ledgers whose sandboxes do not fit into memory.
    """

    def __init__(
        self,
        *,
        keep_closed: bool = False,
        in_order: bool = True,
        sandboxes: MutableMapping[SandboxKey, Sandbox] | None = None,
    ) -> None:
        self.sandboxes: MutableMapping[SandboxKey, Sandbox] = {} if sandboxes is None else sandboxes
        self.pending: dict[EventId, Pending] = {}
        self.epochs: dict[NodeName, int] = {}
        self.leaks: dict[tuple[NodeName, LeakId], Leaked] = {}
        self.commands: dict[NodeName, int] = {}
        """Sequence in the stream of commands of the last command that each node took."""
        self.anomalies: deque[Anomaly] = deque(maxlen=MAX_ANOMALIES)
        self.anomaly_count = 0
        self.sequence = 0
        self._keep_closed = keep_closed
        self._in_order = in_order

    def apply(self, stored: Stored) -> Sandbox | None:
        """Apply one event; return its sandbox after it, even if the event ends the sandbox.

        An event that was applied already (by sequence) changes nothing.
        """
        sequence, event = stored
        if sequence <= self.sequence and self._in_order:
            self._anomaly(stored, "was applied before")
            return None
        self.sequence = max(sequence, self.sequence)
        if event.epoch < self.epochs.get(event.node, 0):
            self._anomaly(stored, "written by a worker that another had replaced")
        data = event.data
        kind = type(data)
        if kind in _EFFECTS:
            return self._advance(stored, self._key_by_request(event)) if event.sandbox and event.node else None
        if isinstance(data, Unknown):
            self._anomaly(stored, f"{data.type} version {data.version} is not known to this version of Plumbline")
            return None
        if kind in _INTENTS:
            self.pending[event.id] = Pending(event, sequence)
        elif kind in _OUTCOMES and request_of(event):  # without a request it closes none
            self._close(stored)
        if kind in _OF_WHOLE_SANDBOX:
            key = SandboxKey(event.sandbox, getattr(data, "ifname", IfName("")))
            return self._advance(stored, key) if event.sandbox and event.node else None
        if (step := _STEPS.get(kind)) is not None:
            step(self, stored, data)
        return None

    def _close(self, stored: Stored) -> None:
        pending = self.pending.get(stored.event.cause)
        if pending is not None and pending.event.node != stored.event.node:
            self._anomaly(stored, f"closes a request of node {pending.event.node}, and another wrote this")
        elif self.pending.pop(stored.event.cause, None) is None and not self._undoes_after_all(stored.event):
            self._anomaly(stored, "closes a request that is not open")

    def _undoes_after_all(self, event: Event) -> bool:
        """Return whether *event* undoes an attach that the ledger confirmed too late for the answer to the runtime."""
        if not isinstance(event.data, AttachFailed):
            return False
        sandbox = self.sandboxes.get(SandboxKey(event.sandbox, event.data.ifname))
        return sandbox is not None and sandbox.intent == event.cause and bool(sandbox.result)

    def _planned_for_nothing(self, stored: Stored) -> bool:
        """Return whether the ledger has this plan before its request, or has no such request.

        The worker appends the plan right after the request, without waiting. If it repeats an append, the ledger may
        have the two in the other order, and another plan follows; or it may not have the request at all.
        """
        intent = self.pending.get(stored.event.cause)
        return intent is None or stored.sequence < intent.sequence

    def _advance(self, stored: Stored, key: SandboxKey | None) -> Sandbox | None:
        sequence, event = stored
        if key is None:
            if not isinstance(event.data, InterfaceDetached):  # it may come after the outcome that carries it
                self._anomaly(stored, "no request for this sandbox came before it")
            return None
        if isinstance(event.data, AttachPlanned) and self._planned_for_nothing(stored):
            return None
        before = self.sandboxes.get(key)
        if before is not None and before.node != event.node:
            self._anomaly(stored, f"the sandbox is of node {before.node}, and node {event.node} wrote this")
            return None
        after, reason = advance(before, event, sequence)
        if reason:
            self._anomaly(stored, reason)
        if after is None:
            return None
        if after.holds_resources or self._keep_closed:
            self.sandboxes[key] = after
        else:
            self.sandboxes.pop(key, None)
        return after

    def _key_by_request(self, event: Event) -> SandboxKey | None:
        """Return the key of the sandbox of an effect, which names the interface of an attachment instead."""
        pending = self.pending.get(event.cause)
        if pending is not None and isinstance(pending.event.data, (AttachRequested, DetachRequested)):
            return SandboxKey(event.sandbox, pending.event.data.ifname)
        same = (key for key in self.sandboxes if key.container_id == event.sandbox)
        return next((key for key in same if _has_place_for(self.sandboxes[key], event)), None)

    def _anomaly(self, stored: Stored, reason: str) -> None:
        self.anomaly_count += 1
        event = stored.event
        self.anomalies.append(Anomaly(stored.sequence, event.id, event.type, event.sandbox, reason, event.at))


def _has_place_for(sandbox: Sandbox, event: Event) -> bool:
    """Return whether the effect *event* is of an attachment of *sandbox*."""
    data = event.data
    return isinstance(data, Effect) and any(
        (each.plan.network, each.plan.ifname) == (data.network, data.ifname) for each in sandbox.attachments
    )


def request_of(event: Event) -> RequestId | None:
    """Return the request that *event* opens or closes; None if it does neither."""
    data = event.data
    return data.request if isinstance(data, (Intent, Outcome)) else None


def _start_worker(state: State, stored: Stored, data: WorkerStarted) -> None:
    event = stored.event
    state.epochs[event.node] = max(event.epoch, state.epochs.get(event.node, 0))


def _take_command(state: State, stored: Stored, data: Command) -> None:
    node = stored.event.node
    state.commands[node] = max(data.command, state.commands.get(node, 0))


def _observe_leak(state: State, stored: Stored, data: LeakObserved) -> None:
    event, key = stored.event, (stored.event.node, data.leak.id)
    if data.gone:
        state.leaks.pop(key, None)
        return
    known = state.leaks.get(key)
    first_at = event.at if known is None else known.first_at
    refused = None if known is None else known.refused
    state.leaks[key] = Leaked(data, event.id, first_at, event.at, stored.sequence, refused)


def _reclaim_leak(state: State, stored: Stored, data: LeakReclaimed) -> None:
    state.leaks.pop((stored.event.node, data.leak.id), None)


def _refuse_reclaim(state: State, stored: Stored, data: LeakReclaimFailed) -> None:
    key = (stored.event.node, data.leak.id)
    if (known := state.leaks.get(key)) is not None:
        state.leaks[key] = known._replace(refused=data.failure)


_STEPS: Mapping[type[Data], Callable[[State, Stored, Any], None]] = {
    **dict.fromkeys(types_of(Command), _take_command),
    WorkerStarted: _start_worker,
    LeakObserved: _observe_leak,
    LeakReclaimed: _reclaim_leak,
    LeakReclaimFailed: _refuse_reclaim,
}
