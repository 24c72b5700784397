"""The step that each event takes in its sandbox.

``_OPENING_STEPS`` and ``_STEPS`` name the step of each event type. A type that neither names changes no sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from events.fold.sandbox import (
    UNDISTURBED,
    Attachment,
    AttachmentPhase,
    Sandbox,
    SandboxKey,
    SandboxPhase,
    with_effects,
)
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Event,
    EventId,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    RequestId,
    SandboxAdopted,
)


def advance(sandbox: Sandbox | None, event: Event, sequence: int) -> tuple[Sandbox | None, str]:
    """Return the sandbox after *event*, and the reason if the event does not fit, else an empty text."""
    data = event.data
    kind = type(data)
    opening = _OPENING_STEPS.get(kind)
    if opening is not None:
        return opening(sandbox, event, data, sequence)
    if kind in _OF_DETACH:
        if sandbox is None or _is_of_predecessor(sandbox, event):
            return sandbox, ""
    elif sandbox is not None and kind is AttachPlanned and any(each.intent == event.cause for each in sandbox.waiting):
        return sandbox, ""  # the worker plans a waiting ADD again when its turn comes
    if sandbox is None:
        return None, "no request for this sandbox came before it"
    step = _STEPS.get(kind)
    if step is None:
        return sandbox, f"{event.type} is not an event of a sandbox"
    after, reason = step(sandbox, event, data)
    if reason:
        return sandbox, reason
    if after.waiting and not after.holds_resources:
        first, *others = after.waiting
        return replace(first, waiting=tuple(others)), ""
    return replace(after, changed_at=event.at, sequence=sequence), ""


def _is_of_predecessor(sandbox: Sandbox, event: Event) -> bool:
    """Return whether the detach that *event* reports was of a predecessor of *sandbox*, and is over by now.

    That is so after a DEL overtook an ADD and undid it, and after a DEL that was done twice because its first outcome
    was confirmed late. Another ADD may have come meanwhile. Its own DEL only begins after its outcome.
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
    sandbox: Sandbox | None, event: Event, data: DriftObserved | DriftRepaired | DriftRepairFailed, sequence: int
) -> tuple[Sandbox | None, str]:
    """Return *sandbox* with the drift that *event* reports. Only an attached sandbox has drift."""
    if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED:
        return sandbox, ""
    drifts = data.drifts if isinstance(data, DriftObserved) else data.left
    drift = event.id if isinstance(data, DriftObserved) else sandbox.drift
    return replace(sandbox, drifts=drifts, drift=drift if drifts else EventId("")), ""


_DETACHABLE = frozenset({SandboxPhase.ATTACHED, SandboxPhase.DETACH_FAILED, SandboxPhase.ATTACH_FAILED})


def _attach_planned(sandbox: Sandbox, event: Event, data: AttachPlanned) -> tuple[Sandbox, str]:
    if sandbox.phase is not SandboxPhase.REQUESTED or sandbox.intent != event.cause:
        return sandbox, f"planned while {sandbox.phase} by another request or plan"
    attachments = tuple(Attachment(plan=plan) for plan in data.attachments)
    return replace(sandbox, phase=SandboxPhase.PLANNED, plan=data, attachments=attachments), ""


def _interface_attached(sandbox: Sandbox, event: Event, data: InterfaceAttached) -> tuple[Sandbox, str]:
    after, reason = with_effects(sandbox, (data,), AttachmentPhase.ATTACHED)
    return _attached(after), reason


def _interface_attach_failed(sandbox: Sandbox, event: Event, data: InterfaceAttachFailed) -> tuple[Sandbox, str]:
    return with_effects(sandbox, (data,), AttachmentPhase.ATTACH_FAILED)


def _interface_detached(sandbox: Sandbox, event: Event, data: InterfaceDetached) -> tuple[Sandbox, str]:
    return with_effects(sandbox, (data,), AttachmentPhase.DETACHED)


def _interface_detach_failed(sandbox: Sandbox, event: Event, data: InterfaceDetachFailed) -> tuple[Sandbox, str]:
    return with_effects(sandbox, (data,), AttachmentPhase.DETACH_FAILED)


def _attach_failed(sandbox: Sandbox, event: Event, data: AttachFailed) -> tuple[Sandbox, str]:
    if event.cause != sandbox.intent:
        return _answered(sandbox, event), ""  # a second ADD was refused; the interfaces of the first stay
    return replace(sandbox, phase=SandboxPhase.ATTACH_FAILED, failure=data.failure, result=""), ""


def _detach_completed(sandbox: Sandbox, event: Event, data: DetachCompleted) -> tuple[Sandbox, str]:
    after, reason = with_effects(sandbox, data.effects, AttachmentPhase.DETACHED)
    return replace(after, phase=SandboxPhase.DETACHED, failure=None), reason


def _detach_failed(sandbox: Sandbox, event: Event, data: DetachFailed) -> tuple[Sandbox, str]:
    return replace(sandbox, phase=SandboxPhase.DETACH_FAILED, failure=data.failure), ""


def _attach_completed(sandbox: Sandbox, event: Event, data: AttachCompleted) -> tuple[Sandbox, str]:
    if event.cause != sandbox.intent:
        return _answered(sandbox, event), ""  # a repeated ADD got the recorded result
    if sandbox.phase is not SandboxPhase.PLANNED:
        return sandbox, f"completed while {sandbox.phase}"
    if any(a.phase not in UNDISTURBED for a in sandbox.attachments):
        return sandbox, "completed after an interface could not be attached"
    after, reason = with_effects(sandbox, data.effects, AttachmentPhase.ATTACHED)
    return _attached(replace(after, result=data.result, failure=None)), reason


def _attached(sandbox: Sandbox) -> Sandbox:
    """Return *sandbox*, attached if it has its outcome and every attachment is attached.

    The worker appends the outcome right after the last interface, without waiting. If it repeats an append, the ledger
    may have the two in the other order.
    """
    answered = sandbox.phase is SandboxPhase.PLANNED and sandbox.result
    if answered and all(a.phase is AttachmentPhase.ATTACHED for a in sandbox.attachments):
        return replace(sandbox, phase=SandboxPhase.ATTACHED)
    return sandbox


def _answered(sandbox: Sandbox, event: Event) -> Sandbox:
    return replace(sandbox, waiting=tuple(other for other in sandbox.waiting if other.intent != event.cause))


_OPENING_STEPS: Mapping[type[Data], Callable[[Sandbox | None, Event, Any, int], tuple[Sandbox | None, str]]] = {
    AttachRequested: _attach_requested,
    DetachRequested: _detach_requested,
    SandboxAdopted: _adopted,
    DriftObserved: _drifted,
    DriftRepaired: _drifted,
    DriftRepairFailed: _drifted,
}
"""The steps that also apply if there is no sandbox yet, and set its sequence themselves."""

_STEPS: Mapping[type[Data], Callable[[Sandbox, Event, Any], tuple[Sandbox, str]]] = {
    AttachPlanned: _attach_planned,
    InterfaceAttached: _interface_attached,
    InterfaceAttachFailed: _interface_attach_failed,
    InterfaceDetached: _interface_detached,
    InterfaceDetachFailed: _interface_detach_failed,
    AttachCompleted: _attach_completed,
    AttachFailed: _attach_failed,
    DetachCompleted: _detach_completed,
    DetachFailed: _detach_failed,
}
"""The steps of a sandbox that exists."""

_OF_DETACH = frozenset({InterfaceDetached, InterfaceDetachFailed, DetachCompleted, DetachFailed})

SANDBOX_TYPES: frozenset[type[Data]] = frozenset({*_OPENING_STEPS, *_STEPS})
"""The event types that change a sandbox."""
