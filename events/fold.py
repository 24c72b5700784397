"""Compute from events what is true: which sandboxes are attached, how, and which requests are still open.

``advance`` is the pure step for one sandbox; ``State`` keeps the sandboxes of many events and routes each to its own.
Nothing here raises on an event that makes no sense where it stands (unknown, duplicated, out of order): the state stays
as it is and the anomaly is recorded, because a reader at three in the morning needs the rest of the story.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import MutableMapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from events.ledger import Stored
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
    Drift,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Event,
    EventId,
    Failure,
    GcCompleted,
    GcFailed,
    GcRequested,
    IfName,
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
    PlannedAttachment,
    Pod,
    ReclaimRequested,
    ReconcilerElected,
    RepairRequested,
    RequestId,
    SandboxAdopted,
    StatusPublished,
    StatusPublishFailed,
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


_EFFECTS = frozenset({InterfaceAttached, InterfaceAttachFailed, InterfaceDetached, InterfaceDetachFailed})
"""Half of all events. A look into a set is cheaper than to try one class after another."""
_OUTCOME_TYPES = frozenset(_OUTCOMES)


class SandboxKey(NamedTuple):
    """What ADD and DEL address (CNI specification 1.1, section 2): a container ID and the interface name given with it.

    kubelet's runtimes attach a sandbox once, as ``eth0``; podman attaches one container to several networks, each under
    a name of its own.
    """

    container_id: ContainerId
    ifname: IfName


class SandboxPhase(enum.StrEnum):
    """Where a sandbox is between its ADD and its DEL."""

    REQUESTED = "requested"
    PLANNED = "planned"
    ATTACHED = "attached"
    ATTACH_FAILED = "attach_failed"
    DETACHING = "detaching"
    DETACHED = "detached"
    DETACH_FAILED = "detach_failed"


class AttachmentPhase(enum.StrEnum):
    """Where one attachment is."""

    PLANNED = "planned"
    ATTACHED = "attached"
    ATTACH_FAILED = "attach_failed"
    DETACHED = "detached"
    DETACH_FAILED = "detach_failed"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One planned attachment and what became of it."""

    plan: PlannedAttachment
    phase: AttachmentPhase = AttachmentPhase.PLANNED
    result: str = ""
    """The delegate's result once it is attached; stays for DEL and CHECK."""
    device_info: str = ""
    """As in ``InterfaceAttached``."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox as the ledger tells it."""

    key: SandboxKey
    node: NodeName
    phase: SandboxPhase
    pod: Pod = Pod()
    netns: str = ""
    request: AttachRequested | None = None
    """The ADD that the sandbox was made by, of an adopted one as far as it is known. None: there was only a DEL."""
    intent: EventId = EventId("")
    """The event of ``request``, or that of the adoption."""
    plan: AttachPlanned | None = None
    attachments: tuple[Attachment, ...] = ()
    result: str = ""
    """What the runtime was answered."""
    failure: Failure | None = None
    requested_at: str = ""
    changed_at: str = ""
    boot_id: str = ""
    sequence: int = 0
    """Of the last event of its life; what was observed of it meanwhile is none."""
    drifts: tuple[Drift, ...] = ()
    """How the node differs from all this, as of the last look at it."""
    drift: EventId = EventId("")
    """The ``DriftObserved`` that says so, for as long as something differs."""
    waiting: tuple[Sandbox, ...] = ()
    """What ADDs that came while this sandbox held something, and have no outcome yet, make of it once it is closed."""

    @property
    def holds_something(self) -> bool:
        """False once nothing that this sandbox had can be left on the node."""
        if self.phase is SandboxPhase.DETACHED:
            return False
        if self.phase in {SandboxPhase.ATTACH_FAILED, SandboxPhase.DETACH_FAILED}:
            return any(a.phase is not AttachmentPhase.DETACHED for a in self.attempted())
        return True

    def attempted(self) -> tuple[Attachment, ...]:
        """Return the attachments that may have left something on the node, in plan order.

        Attachments are made in order, and undone in reverse once one has failed. Until then each may have been made,
        because the worker goes on to the next before the ledger has confirmed the last.
        """
        if all(attachment.phase in _UNDISTURBED for attachment in self.attachments):
            return self.attachments
        known = [a.phase is not AttachmentPhase.PLANNED for a in self.attachments]
        return self.attachments[: len(known) - known[::-1].index(True)]


_UNDISTURBED = frozenset({AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED})


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


def advance(sandbox: Sandbox | None, event: Event, sequence: int) -> tuple[Sandbox | None, str]:
    """Return the sandbox after *event*, and the reason when the event does not fit (else an empty text)."""
    data = event.data
    match data:
        case AttachRequested():
            return _attach_requested(sandbox, event, data, sequence)
        case DetachRequested():
            return _detach_requested(sandbox, event, data, sequence)
        case SandboxAdopted():
            return _adopted(sandbox, event, data, sequence)
        case DriftObserved() | DriftRepaired() | DriftRepairFailed():
            return _drifted(sandbox, event, data)
        case DetachCompleted() | DetachFailed() if sandbox is None:
            return None, ""  # the ADD that it overtook was undone, so there was nothing to detach
        case _:
            pass
    if sandbox is None:
        return None, "no request for this sandbox came before it"
    after, reason = _effect_or_outcome(sandbox, event)
    if reason:
        return sandbox, reason
    if after.waiting and not after.holds_something:
        first, *others = after.waiting
        return replace(first, waiting=tuple(others)), ""
    return replace(after, changed_at=event.at, sequence=sequence), ""


def _attach_requested(
    sandbox: Sandbox | None, event: Event, data: AttachRequested, sequence: int
) -> tuple[Sandbox, str]:
    requested = Sandbox(
        key=SandboxKey(event.sandbox, data.ifname),
        node=event.node,
        phase=SandboxPhase.REQUESTED,
        pod=data.pod,
        netns=data.netns,
        request=data,
        intent=event.id,
        requested_at=event.at,
        changed_at=event.at,
        boot_id=event.boot_id,
        sequence=sequence,
    )
    if sandbox is not None and sandbox.holds_something:
        return replace(sandbox, waiting=(*sandbox.waiting, requested), sequence=sequence), ""
    return requested, ""


def _detach_requested(
    sandbox: Sandbox | None, event: Event, data: DetachRequested, sequence: int
) -> tuple[Sandbox, str]:
    if sandbox is None:
        sandbox = Sandbox(
            key=SandboxKey(event.sandbox, data.ifname),
            node=event.node,
            phase=SandboxPhase.DETACHING,
            pod=data.pod,
            netns=data.netns,
            requested_at=event.at,
            boot_id=event.boot_id,
        )
    phase = SandboxPhase.DETACHING if sandbox.phase in _DETACHABLE else sandbox.phase
    return replace(sandbox, phase=phase, changed_at=event.at, sequence=sequence, drifts=(), drift=EventId("")), ""


def _adopted(sandbox: Sandbox | None, event: Event, data: SandboxAdopted, sequence: int) -> tuple[Sandbox, str]:
    if sandbox is not None and sandbox.holds_something:
        return sandbox, f"adopted while {sandbox.phase}"
    attachments = tuple(
        Attachment(plan=plan, phase=AttachmentPhase.ATTACHED, result=result)
        for plan, result in zip(data.plan.attachments, data.results, strict=False)
    )
    adopted = Sandbox(
        key=SandboxKey(event.sandbox, data.ifname),
        node=event.node,
        phase=SandboxPhase.ATTACHED,
        pod=data.plan.pod,
        netns=data.plan.netns,
        request=AttachRequested(
            request=RequestId(""),
            ifname=data.ifname,
            netns=data.plan.netns,
            config=data.config,
            args=data.args,
            path=data.plan.path,
            pod=data.plan.pod,
        ),
        intent=event.id,
        plan=data.plan,
        attachments=attachments,
        result=data.result,
        requested_at=event.at,
        changed_at=event.at,
        boot_id=event.boot_id,
        sequence=sequence,
    )
    if len(attachments) != len(data.plan.attachments):
        return adopted, f"adopted with {len(data.results)} results for {len(data.plan.attachments)} attachments"
    return adopted, ""


def _drifted(
    sandbox: Sandbox | None, event: Event, data: DriftObserved | DriftRepaired | DriftRepairFailed
) -> tuple[Sandbox | None, str]:
    """Return *sandbox* as it was seen. One that is on its way out, or gone, has no drift any more."""
    if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED:
        return sandbox, ""
    drifts = data.drifts if isinstance(data, DriftObserved) else data.left
    drift = event.id if isinstance(data, DriftObserved) else sandbox.drift
    return replace(sandbox, drifts=drifts, drift=drift if drifts else EventId("")), ""


_DETACHABLE = frozenset({SandboxPhase.ATTACHED, SandboxPhase.DETACH_FAILED, SandboxPhase.ATTACH_FAILED})


def _effect_or_outcome(sandbox: Sandbox, event: Event) -> tuple[Sandbox, str]:
    match event.data:
        case AttachPlanned() as data:
            if sandbox.phase is not SandboxPhase.REQUESTED:
                return sandbox, f"planned while {sandbox.phase}"
            attachments = tuple(Attachment(plan=plan) for plan in data.attachments)
            return replace(sandbox, phase=SandboxPhase.PLANNED, plan=data, attachments=attachments), ""
        case InterfaceAttached() as data:
            return _attachment(sandbox, data.network, data.ifname, AttachmentPhase.ATTACHED, data)
        case InterfaceAttachFailed() as data:
            return _attachment(sandbox, data.network, data.ifname, AttachmentPhase.ATTACH_FAILED)
        case InterfaceDetached() as data:
            return _attachment(sandbox, data.network, data.ifname, AttachmentPhase.DETACHED)
        case InterfaceDetachFailed() as data:
            return _attachment(sandbox, data.network, data.ifname, AttachmentPhase.DETACH_FAILED)
        case AttachCompleted() as data:
            return _attach_completed(sandbox, event, data)
        case AttachFailed() as data:
            if event.cause != sandbox.intent:
                return _answered(sandbox, event), ""  # a second ADD was refused; the first one's interfaces stand
            return replace(sandbox, phase=SandboxPhase.ATTACH_FAILED, failure=data.failure), ""
        case DetachCompleted():
            return replace(sandbox, phase=SandboxPhase.DETACHED, failure=None), ""
        case DetachFailed() as data:
            return replace(sandbox, phase=SandboxPhase.DETACH_FAILED, failure=data.failure), ""
        case _:
            return sandbox, f"{event.type} is not an event of a sandbox"


def _attach_completed(sandbox: Sandbox, event: Event, data: AttachCompleted) -> tuple[Sandbox, str]:
    if event.cause != sandbox.intent:
        return _answered(sandbox, event), ""  # a repeated ADD was given the recorded result
    if sandbox.phase is not SandboxPhase.PLANNED:
        return sandbox, f"completed while {sandbox.phase}"
    if any(a.phase is not AttachmentPhase.ATTACHED for a in sandbox.attachments):
        return sandbox, "completed before all its interfaces were attached"
    return replace(sandbox, phase=SandboxPhase.ATTACHED, result=data.result, failure=None), ""


def _answered(sandbox: Sandbox, event: Event) -> Sandbox:
    return replace(sandbox, waiting=tuple(other for other in sandbox.waiting if other.intent != event.cause))


def _attachment(
    sandbox: Sandbox, network: str, ifname: str, phase: AttachmentPhase, attached: InterfaceAttached | None = None
) -> tuple[Sandbox, str]:
    for index, attachment in enumerate(sandbox.attachments):
        if attachment.plan.ifname == ifname and attachment.plan.network == network:
            after = replace(attachment, phase=phase)
            if attached is not None:
                after = replace(after, result=attached.result, device_info=attached.device_info)
            attachments = (*sandbox.attachments[:index], after, *sandbox.attachments[index + 1 :])
            return replace(sandbox, attachments=attachments), ""
    return sandbox, f"the plan has no attachment {ifname} of {network}"


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
        if self.pending.pop(stored.event.cause, None) is None:
            self._anomaly(stored, "closes a request that is not open")

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
            self._anomaly(stored, "no request for this sandbox came before it")
            return None
        before = self.sandboxes.get(key)
        after, reason = advance(before, event, sequence)
        if reason:
            self._anomaly(stored, reason)
        if after is None:
            return None
        if after.holds_something or self._keep_closed:
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
        if pending is not None and isinstance(pending.event.data, AttachRequested | DetachRequested):
            return SandboxKey(event.sandbox, pending.event.data.ifname)
        same = (key for key in self.sandboxes if key.container_id == event.sandbox)
        return next((key for key in same if _has_place_for(self.sandboxes[key], event)), None)

    def _anomaly(self, stored: Stored, reason: str) -> None:
        self.anomaly_count += 1
        event = stored.event
        self.anomalies.append(Anomaly(stored.sequence, event.id, event.type, event.sandbox, reason))


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
