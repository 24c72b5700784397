"""All sandboxes of a ledger, its open requests and its leaks."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from typing import NamedTuple, get_args

from events.fold.sandbox import Effect, Sandbox, SandboxKey, advance
from events.schema import (
    INTENTS,
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ComparisonRequested,
    ContainerId,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Event,
    EventId,
    Failure,
    GcCompleted,
    GcFailed,
    GcRequested,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    LeakId,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeCompared,
    NodeName,
    ReclaimRequested,
    ReconcilerElected,
    RepairRequested,
    RequestId,
    SandboxAdopted,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    Unknown,
    WorkerStarted,
)

MAX_ANOMALIES = 1000

_OUTCOMES = (
    AttachCompleted,
    AttachFailed,
    DetachCompleted,
    DetachFailed,
    GcCompleted,
    GcFailed,
    DriftRepaired,
    DriftRepairFailed,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeCompared,
)


_EFFECTS = frozenset(get_args(Effect))
"""Half of all events. A look into a set is cheaper than to try one class after another."""
_WITH_KEY = (AttachRequested, DetachRequested)
"""Made once: every effect asks, and ``|`` would make a type of them each time."""
_OUTCOME_TYPES = frozenset(_OUTCOMES)


class Pending(NamedTuple):
    """An intent without outcome."""

    event: Event
    sequence: int


class Leaked(NamedTuple):
    """Something that is held without a live attachment, as of the last look at it."""

    observed: LeakObserved
    event: EventId
    """The observation."""
    first_at: str
    """When it was first seen, RFC 3339."""
    at: str
    sequence: int
    refused: Failure | None = None
    """Why it was not freed when that was last tried."""


class Anomaly(NamedTuple):
    """An event that does not fit what came before it."""

    sequence: int
    event_id: EventId
    type: str
    sandbox: ContainerId
    reason: str
    at: str = ""
    """When it happened, RFC 3339."""


class State:
    """The fold of a ledger: sandboxes, open requests, leaks, epochs, anomalies.

    A container for values that are frozen; ``apply`` is its only way forward. Sandboxes that hold nothing any more are
    dropped unless *keep_closed*: a node that has run for a year must not remember every pod it had.

    A reader applies events in the order of the ledger, so one at or before the last is a duplicate. The writer of a
    ledger applies its own events as they are confirmed, where a repeated append may be overtaken by a later one: it
    says so by *in_order* = False. *sandboxes* is where they are kept, for who has more of them than memory.
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
        """The last command that each node took, by its sequence in the stream of commands."""
        self.anomalies: deque[Anomaly] = deque(maxlen=MAX_ANOMALIES)
        self.anomaly_count = 0
        self.sequence = 0
        self._keep_closed = keep_closed
        self._in_order = in_order

    def apply(self, stored: Stored) -> Sandbox | None:
        """Apply one event; return the sandbox it belongs to, as it is now, also when it is dropped hereby.

        An event that was applied already (by sequence) changes nothing.
        """
        sequence, event = stored
        if sequence <= self.sequence and self._in_order:
            self._anomaly(stored, "was applied before")
            return None
        self.sequence = max(sequence, self.sequence)
        if event.epoch < self.epochs.get(event.node, 0):
            self._anomaly(stored, "written by a worker that another had replaced")
        if isinstance(event.data, Unknown):
            name, version = event.data.type, event.data.version
            self._anomaly(stored, f"{name} version {version} is not known to this version of Plumbline")
            return None
        kind = type(event.data)
        if kind in _EFFECTS:
            return self._advance(stored) if event.sandbox and event.node else None
        if event.type in INTENTS:
            self.pending[event.id] = Pending(event, sequence)
        elif kind in _OUTCOME_TYPES and isinstance(event.data, _OUTCOMES) and event.data.request:  # else nobody asked
            self._close(stored)
        match event.data:
            case WorkerStarted():
                self.epochs[event.node] = max(event.epoch, self.epochs.get(event.node, 0))
            case LeakObserved() | LeakReclaimed() | LeakReclaimFailed() as data:
                self._leak(stored, data)
            case RepairRequested() | ReclaimRequested() | ComparisonRequested() as data:
                self.commands[event.node] = max(data.command, self.commands.get(event.node, 0))
            case StatusPublished() | StatusPublishFailed() | ReconcilerElected() | NodeCompared():
                pass  # of a pod's annotation, or of nobody's interfaces
            case _ if event.sandbox and event.node:
                return self._advance(stored)
            case _:
                pass
        return None

    def _close(self, stored: Stored) -> None:
        if self.pending.pop(stored.event.cause, None) is None and not self._undoes_after_all(stored.event):
            self._anomaly(stored, "closes a request that is not open")

    def _undoes_after_all(self, event: Event) -> bool:
        """Return whether *event* is what follows an attach that the ledger confirmed too late to be answered."""
        if not isinstance(event.data, AttachFailed):
            return False
        sandbox = self.sandboxes.get(SandboxKey(event.sandbox, event.data.ifname))
        return sandbox is not None and sandbox.intent == event.cause and bool(sandbox.result)

    def _planned_for_nothing(self, stored: Stored) -> bool:
        """Return whether a plan came into the ledger before its request, or without it.

        It is appended behind that without a wait. Where an append has to be repeated, the ledger may have the two the
        other way round, and another plan follows; or it may not have the request at all.
        """
        intent = self.pending.get(stored.event.cause)
        return intent is None or stored.sequence < intent.sequence

    def _leak(self, stored: Stored, data: LeakObserved | LeakReclaimed | LeakReclaimFailed) -> None:
        event, key = stored.event, (stored.event.node, data.leak.id)
        known = self.leaks.get(key)
        match data:
            case LeakObserved(gone=True):
                self.leaks.pop(key, None)
            case LeakObserved():
                first_at = event.at if known is None else known.first_at
                refused = None if known is None else known.refused
                self.leaks[key] = Leaked(data, event.id, first_at, event.at, stored.sequence, refused)
            case LeakReclaimed():
                self.leaks.pop(key, None)
            case LeakReclaimFailed(failure=failure):
                if known is not None:
                    self.leaks[key] = known._replace(refused=failure)

    def _advance(self, stored: Stored) -> Sandbox | None:
        sequence, event = stored
        key = self._key(event)
        if key is None:
            if not isinstance(event.data, InterfaceDetached):  # which may come behind the outcome that tells of it
                self._anomaly(stored, "no request for this sandbox came before it")
            return None
        if isinstance(event.data, AttachPlanned) and self._planned_for_nothing(stored):
            return None
        before = self.sandboxes.get(key)
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

    def _key(self, event: Event) -> SandboxKey | None:
        """Return the sandbox key of *event*: effects name their own interface, so their request tells the key."""
        if type(event.data) in _EFFECTS:
            return self._key_by_request(event)
        match event.data:
            case (
                AttachRequested(ifname=ifname)
                | DetachRequested(ifname=ifname)
                | AttachPlanned(ifname=ifname)
                | AttachCompleted(ifname=ifname)
                | AttachFailed(ifname=ifname)
                | DetachCompleted(ifname=ifname)
                | DetachFailed(ifname=ifname)
                | SandboxAdopted(ifname=ifname)
                | DriftObserved(ifname=ifname)
                | DriftRepaired(ifname=ifname)
                | DriftRepairFailed(ifname=ifname)
            ):
                return SandboxKey(event.sandbox, ifname)
            case _:
                return self._key_by_request(event)

    def _key_by_request(self, event: Event) -> SandboxKey | None:
        pending = self.pending.get(event.cause)
        if pending is not None and isinstance(pending.event.data, _WITH_KEY):
            return SandboxKey(event.sandbox, pending.event.data.ifname)
        same = (key for key in self.sandboxes if key.container_id == event.sandbox)
        return next((key for key in same if _has_place_for(self.sandboxes[key], event)), None)

    def _anomaly(self, stored: Stored, reason: str) -> None:
        self.anomaly_count += 1
        event = stored.event
        self.anomalies.append(Anomaly(stored.sequence, event.id, event.type, event.sandbox, reason, event.at))


def _has_place_for(sandbox: Sandbox, event: Event) -> bool:
    """Return whether *event* tells of an attachment of *sandbox*."""
    match event.data:
        case (
            InterfaceAttached(network=network, ifname=ifname)
            | InterfaceAttachFailed(network=network, ifname=ifname)
            | InterfaceDetached(network=network, ifname=ifname)
            | InterfaceDetachFailed(network=network, ifname=ifname)
        ):
            return any((a.plan.network, a.plan.ifname) == (network, ifname) for a in sandbox.attachments)
        case _:
            return False


def request_of(event: Event) -> RequestId | None:
    """Return the runtime's request that *event* opens or closes, None when it does neither."""
    match event.data:
        case (
            AttachRequested(request=request)
            | DetachRequested(request=request)
            | GcRequested(request=request)
            | NodeCompared(request=request)
            | RepairRequested(request=request)
            | ReclaimRequested(request=request)
            | ComparisonRequested(request=request)
            | DriftRepaired(request=request)
            | DriftRepairFailed(request=request)
            | LeakReclaimed(request=request)
            | LeakReclaimFailed(request=request)
            | AttachCompleted(request=request)
            | AttachFailed(request=request)
            | DetachCompleted(request=request)
            | DetachFailed(request=request)
            | GcCompleted(request=request)
            | GcFailed(request=request)
        ):
            return request
        case _:
            return None
