"""The state of one sandbox and of its attachments."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from events.schema import (
    AttachPlanned,
    AttachRequested,
    ContainerId,
    Drift,
    Effect,
    EventId,
    Failure,
    IfName,
    InterfaceAttached,
    NodeName,
    PlannedAttachment,
    Pod,
)


class SandboxKey(NamedTuple):
    """What ADD and DEL address (CNI specification 1.1, section 2): a container ID and an interface name.

    The runtimes of kubelet attach a sandbox once, as ``eth0``. Podman attaches one container to several networks, each
    under its own interface name.
    """

    container_id: ContainerId
    ifname: IfName


class SandboxPhase(enum.StrEnum):
    """The state of a sandbox between its ADD and its DEL."""

    REQUESTED = "requested"
    PLANNED = "planned"
    ATTACHED = "attached"
    ATTACH_FAILED = "attach_failed"
    DETACHING = "detaching"
    DETACHED = "detached"
    DETACH_FAILED = "detach_failed"


# Every event compares with these. The attribute lookup of an enum costs more than the comparison.
_DETACHED = SandboxPhase.DETACHED
_ATTACH_FAILED = SandboxPhase.ATTACH_FAILED
_DETACH_FAILED = SandboxPhase.DETACH_FAILED


class AttachmentPhase(enum.StrEnum):
    """The state of one attachment."""

    PLANNED = "planned"
    ATTACHED = "attached"
    ATTACH_FAILED = "attach_failed"
    DETACHED = "detached"
    DETACH_FAILED = "detach_failed"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One planned attachment and its state."""

    plan: PlannedAttachment
    phase: AttachmentPhase = AttachmentPhase.PLANNED
    result: str = ""
    """The delegate's result once it is attached; DEL and CHECK need it later."""
    device_info: str = ""
    """As in ``InterfaceAttached``."""
    mtus: tuple[int, ...] = ()
    """MTU of the interface after each plugin of the chain, as in ``PluginRun``; empty if the runs were not recorded."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox, computed from its events: what the ADD of one container and interface name has attached."""

    key: SandboxKey
    node: NodeName
    phase: SandboxPhase
    pod: Pod = Pod()
    netns: str = ""
    request: AttachRequested | None = None
    """The ADD that made the sandbox; for an adopted one, as far as it is known. None: there was only a DEL."""
    intent: EventId = EventId("")
    """ID of the event of ``request``, or of the adoption."""
    plan: AttachPlanned | None = None
    attachments: tuple[Attachment, ...] = ()
    result: str = ""
    """The answer that the runtime got."""
    failure: Failure | None = None
    requested_at: str = ""
    changed_at: str = ""
    boot_id: str = ""
    sequence: int = 0
    """Of the last event that changed it. Drift events do not count."""
    drifts: tuple[Drift, ...] = ()
    """How the node differs from all this, at the last comparison."""
    drift: EventId = EventId("")
    """ID of the ``DriftObserved`` that reports ``drifts``; empty while nothing differs."""
    waiting: tuple[Sandbox, ...] = ()
    """The sandboxes of ADDs that came while this one had resources, without an outcome yet. They follow this one."""

    @property
    def holds_resources(self) -> bool:
        """Whether this sandbox may still have resources on the node."""
        phase = self.phase
        if phase is _DETACHED:
            return False
        if phase is _ATTACH_FAILED or phase is _DETACH_FAILED:
            return any(a.phase is not AttachmentPhase.DETACHED for a in self.attempted())
        return True

    def with_attached(self, effect: InterfaceAttached) -> Sandbox:
        """Return the sandbox after *effect*, while its attach has no outcome."""
        return with_effects(self, (effect,), AttachmentPhase.ATTACHED)[0]

    def attempted(self) -> tuple[Attachment, ...]:
        """Return the attachments that may have resources on the node, in plan order.

        The worker makes attachments in order, and undoes them in reverse after a failure. Without a failure each may
        have been made, because the worker begins the next before the ledger has confirmed the last.
        """
        if all(attachment.phase in UNDISTURBED for attachment in self.attachments):
            return self.attachments
        known = [a.phase is not AttachmentPhase.PLANNED for a in self.attachments]
        return self.attachments[: len(known) - known[::-1].index(True)]


UNDISTURBED = frozenset({AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED})
"""Phases of an attachment before any failure and before its detach."""


def with_effects(sandbox: Sandbox, effects: Sequence[Effect], phase: AttachmentPhase) -> tuple[Sandbox, str]:
    """Return *sandbox* with the attachments of *effects* in *phase*, and the reason if the plan lacks one of them."""
    if not effects or (sandbox.request is None and sandbox.plan is None):  # only another DEL came since
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
