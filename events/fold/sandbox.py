"""One sandbox: what each event of it makes of it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
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
    IfName,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    NodeName,
    PlannedAttachment,
    Pod,
    RequestId,
    SandboxAdopted,
)

Effect: TypeAlias = InterfaceAttached | InterfaceAttachFailed | InterfaceDetached | InterfaceDetachFailed


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


# Asked of every event. To look one of them up takes longer than all else that there is to ask.
_DETACHED = SandboxPhase.DETACHED
_ATTACH_FAILED = SandboxPhase.ATTACH_FAILED
_DETACH_FAILED = SandboxPhase.DETACH_FAILED


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
    mtus: tuple[int, ...] = ()
    """Of the interface after each plugin of the chain, as in ``PluginRun``; none where nobody recorded the runs."""


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
    def holds_resources(self) -> bool:
        """False once nothing that this sandbox had can be left on the node."""
        phase = self.phase
        if phase is _DETACHED:
            return False
        if phase is _ATTACH_FAILED or phase is _DETACH_FAILED:
            return any(a.phase is not AttachmentPhase.DETACHED for a in self.attempted())
        return True

    def with_attached(self, effect: InterfaceAttached) -> Sandbox:
        """Return the sandbox after *effect*, as long as it has no outcome."""
        return _attachments(self, (effect,), AttachmentPhase.ATTACHED)[0]

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
        case InterfaceDetached() | InterfaceDetachFailed() | DetachCompleted() | DetachFailed():
            if sandbox is None or _is_to_come(sandbox, event):
                return sandbox, ""
        case AttachPlanned() if sandbox is not None and any(each.intent == event.cause for each in sandbox.waiting):
            return sandbox, ""  # before its turn: another follows
        case _:
            pass
    if sandbox is None:
        return None, "no request for this sandbox came before it"
    after, reason = _effect_or_outcome(sandbox, event)
    if reason:
        return sandbox, reason
    if after.waiting and not after.holds_resources:
        first, *others = after.waiting
        return replace(first, waiting=tuple(others)), ""
    return replace(after, changed_at=event.at, sequence=sequence), ""


def _is_to_come(sandbox: Sandbox, event: Event) -> bool:
    """Return whether *event*, which tells of a detach, is about what was there before *sandbox*, and is over by now.

    So it is where the ADD that the DEL overtook was undone, and where a DEL was done twice, because the first outcome
    was confirmed late. Another ADD may have come meanwhile, whose own DEL is done when it has its outcome.
    """
    begun = sandbox.phase in (SandboxPhase.REQUESTED, SandboxPhase.PLANNED) and not sandbox.result
    return begun and event.cause != sandbox.intent


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
    if sandbox is not None and sandbox.holds_resources:
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
    if sandbox is not None and sandbox.holds_resources:
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
            if sandbox.phase is not SandboxPhase.REQUESTED or sandbox.intent != event.cause:
                return sandbox, f"planned while {sandbox.phase} by another request or plan"
            attachments = tuple(Attachment(plan=plan) for plan in data.attachments)
            return replace(sandbox, phase=SandboxPhase.PLANNED, plan=data, attachments=attachments), ""
        case InterfaceAttached() as data:
            after, reason = _attachments(sandbox, (data,), AttachmentPhase.ATTACHED)
            return _attached(after), reason
        case InterfaceAttachFailed() as data:
            return _attachments(sandbox, (data,), AttachmentPhase.ATTACH_FAILED)
        case InterfaceDetached() as data:
            return _attachments(sandbox, (data,), AttachmentPhase.DETACHED)
        case InterfaceDetachFailed() as data:
            return _attachments(sandbox, (data,), AttachmentPhase.DETACH_FAILED)
        case AttachCompleted() as data:
            return _attach_completed(sandbox, event, data)
        case AttachFailed() as data:
            if event.cause != sandbox.intent:
                return _answered(sandbox, event), ""  # a second ADD was refused; the first one's interfaces stand
            return replace(sandbox, phase=SandboxPhase.ATTACH_FAILED, failure=data.failure, result=""), ""
        case DetachCompleted() as data:
            after, reason = _attachments(sandbox, data.effects, AttachmentPhase.DETACHED)
            return replace(after, phase=SandboxPhase.DETACHED, failure=None), reason
        case DetachFailed() as data:
            return replace(sandbox, phase=SandboxPhase.DETACH_FAILED, failure=data.failure), ""
        case _:
            return sandbox, f"{event.type} is not an event of a sandbox"


def _attach_completed(sandbox: Sandbox, event: Event, data: AttachCompleted) -> tuple[Sandbox, str]:
    if event.cause != sandbox.intent:
        return _answered(sandbox, event), ""  # a repeated ADD was given the recorded result
    if sandbox.phase is not SandboxPhase.PLANNED:
        return sandbox, f"completed while {sandbox.phase}"
    if any(a.phase not in _UNDISTURBED for a in sandbox.attachments):
        return sandbox, "completed after an interface could not be attached"
    after, reason = _attachments(sandbox, data.effects, AttachmentPhase.ATTACHED)
    return _attached(replace(after, result=data.result, failure=None)), reason


def _attached(sandbox: Sandbox) -> Sandbox:
    """Return *sandbox*, which is attached once it has its outcome and all that this tells of.

    The outcome is appended behind the last interface without a wait between the two. Where an append has to be
    repeated, the ledger may have them the other way round.
    """
    answered = sandbox.phase is SandboxPhase.PLANNED and sandbox.result
    if answered and all(a.phase is AttachmentPhase.ATTACHED for a in sandbox.attachments):
        return replace(sandbox, phase=SandboxPhase.ATTACHED)
    return sandbox


def _answered(sandbox: Sandbox, event: Event) -> Sandbox:
    return replace(sandbox, waiting=tuple(other for other in sandbox.waiting if other.intent != event.cause))


def _attachments(sandbox: Sandbox, effects: Sequence[Effect], phase: AttachmentPhase) -> tuple[Sandbox, str]:
    """Return *sandbox* with the attachments that *effects* are of in *phase*, and why, if one is of none."""
    if not effects or (sandbox.request is None and sandbox.plan is None):  # there was only another DEL since
        return sandbox, ""
    attachments = list(sandbox.attachments)
    for effect in effects:
        for index, attachment in enumerate(attachments):
            if attachment.plan.ifname == effect.ifname and attachment.plan.network == effect.network:
                attachments[index] = _after(attachment, effect, phase)
                break
        else:
            return sandbox, f"the plan has no attachment {effect.ifname} of {effect.network}"
    return replace(sandbox, attachments=tuple(attachments)), ""


def _after(attachment: Attachment, effect: Effect, phase: AttachmentPhase) -> Attachment:
    if not isinstance(effect, InterfaceAttached):
        return replace(attachment, phase=phase)
    mtus = tuple(run.mtu for run in effect.runs)
    return replace(attachment, phase=phase, result=effect.result, device_info=effect.device_info, mtus=mtus)
