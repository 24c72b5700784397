"""The ledger's record of what was published for a pod, and which events make a new publication necessary.

Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from events.fold import Sandbox, SandboxPhase
from events.schema import AttachCompleted, Event, InterfaceAttached, SandboxAdopted


class PodName(NamedTuple):
    """Namespace and name of a pod. A later pod may have the same ones."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Published(NamedTuple):
    """The latest record in the ledger about a pod's network-status."""

    uid: str
    intent: str
    """The attach that the status was published for."""
    text: str
    refused: bool
    """True: the status can never be published."""
    sequence: int = 0
    """Sequence of the event with this record."""


def concerns_status(event: Event, sandbox: Sandbox | None) -> bool:
    """Return whether *event* may make a new network-status of the pod of *sandbox* necessary.

    True when the sandbox became attached, and when one of its interfaces was attached again: the result may differ.
    *sandbox* is the state after *event*.
    """
    if _became_attached(event, sandbox):
        return True
    attached = sandbox is not None and sandbox.phase is SandboxPhase.ATTACHED
    return attached and isinstance(event.data, InterfaceAttached)


def _became_attached(event: Event, sandbox: Sandbox | None) -> bool:
    if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED:
        return False
    match event.data:
        case AttachCompleted():
            return event.cause == sandbox.intent  # another cause: the answer to a repeated ADD
        case SandboxAdopted():
            return True
        case _:
            return False
