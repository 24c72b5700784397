"""Intents, which ask for something, and the plan that answers an attach request."""

from __future__ import annotations

from typing import ClassVar

from events.schema.kinds import Command, Decision, Intent
from events.schema.parts import Drift, IfName, Leak, PlannedAttachment, Pod


class AttachRequested(Intent, frozen=True, kw_only=True):
    """A runtime called ADD."""

    ifname: IfName
    netns: str
    config: str
    """The network configuration from standard input."""
    args: str = ""
    path: str = ""
    pod: Pod = Pod()
    deadline: str = ""
    """RFC 3339. The entry point waits for the answer until then."""


class DetachRequested(Intent, frozen=True, kw_only=True):
    """A runtime called DEL, or the worker retries a DEL that failed."""

    ifname: IfName
    netns: str = ""
    config: str = ""
    args: str = ""
    path: str = ""
    pod: Pod = Pod()
    deadline: str = ""
    spooled: bool = False
    """True if the entry point answered before the worker saw the request."""
    retry: int = 0
    """Number of earlier attempts by the worker itself."""


class GcRequested(Intent, frozen=True, kw_only=True):
    """A runtime called GC (CNI specification 1.1, section 2, "GC")."""

    topic: ClassVar[str] = "gc"

    config: str
    path: str = ""
    valid: tuple[tuple[str, str], ...] | None = None
    """The valid attachments as (container ID, interface name). None: the runtime gave no list, so GC frees nothing."""
    deadline: str = ""


class RepairRequested(Command, frozen=True, kw_only=True):
    """Bring a sandbox back to what the ledger says. ``cause`` is the ``DriftObserved`` that justifies it."""

    ifname: IfName
    drifts: tuple[Drift, ...]
    """What to repair, in this order."""


class ReclaimRequested(Command, frozen=True, kw_only=True):
    """Free a leak. ``cause`` is the ``LeakObserved`` that justifies it; a newer observation makes it void."""

    topic: ClassVar[str] = "leak"

    leak: Leak


class ComparisonRequested(Command, frozen=True, kw_only=True):
    """Compare the whole node with the ledger."""

    topic: ClassVar[str] = "comparison"


class AttachPlanned(Decision, frozen=True, kw_only=True):
    """What the worker will do for one ADD, in order."""

    ifname: IfName
    netns: str
    path: str
    cni_version: str
    """Version of the answer to the runtime."""
    attachments: tuple[PlannedAttachment, ...]
    pod: Pod = Pod()
    """As the cluster knows it. Its UID finds the mirror pod of a static pod."""
    publish: bool = False
    """Whether the reconciler publishes the pod's network-status."""
    netns_inode: int = 0
    """Inode of the namespace at ``netns``, because the path may name another one later. 0: unknown."""
