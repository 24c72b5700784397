"""Intents, which ask for something, and the decision what will be done for an attach."""

from __future__ import annotations

import msgspec

from events.schema.parts import (
    Drift,
    IfName,
    Leak,
    PlannedAttachment,
    Pod,
    RequestId,
)


class AttachRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A runtime called ADD."""

    request: RequestId
    ifname: IfName
    netns: str
    config: str
    """The network configuration on standard input."""
    args: str = ""
    path: str = ""
    pod: Pod = Pod()
    deadline: str = ""
    """RFC 3339; until then somebody waits for the answer."""


class DetachRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A runtime called DEL, or the worker repeats one that did not succeed."""

    request: RequestId
    ifname: IfName
    netns: str = ""
    config: str = ""
    args: str = ""
    path: str = ""
    pod: Pod = Pod()
    deadline: str = ""
    spooled: bool = False
    """True when the entry point had answered before the worker saw the request."""
    retry: int = 0
    """How many attempts of the worker's own came before."""


class GcRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A runtime called GC (CNI specification 1.1, section 2, "GC")."""

    request: RequestId
    config: str
    path: str = ""
    valid: tuple[tuple[str, str], ...] | None = None
    """(container ID, interface name) that the runtime holds valid. None: it gave no list, so nothing may be freed."""
    deadline: str = ""


class RepairRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sandbox is to be brought back to what the ledger says. ``cause`` is the ``DriftObserved`` that it rests on."""

    request: RequestId
    """ID of the command; a command that comes again is the same request."""
    ifname: IfName
    drifts: tuple[Drift, ...]
    """What is to be put right, in this order."""
    by: str = "reconciler"
    command: int = 0
    """Sequence of the command in its stream: the next worker goes on behind it."""


class ReclaimRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A leak is to be freed. ``cause`` is the ``LeakObserved`` that it rests on: a newer one makes it void."""

    request: RequestId
    leak: Leak
    by: str = "reconciler"
    command: int = 0
    """As in ``RepairRequested``."""


class ComparisonRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole node is to be compared with the ledger."""

    request: RequestId
    by: str = "reconciler"
    command: int = 0
    """As in ``RepairRequested``."""


class AttachPlanned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What will be done for one ADD, in order."""

    ifname: IfName
    netns: str
    path: str
    cni_version: str
    """Version the runtime is answered in."""
    attachments: tuple[PlannedAttachment, ...]
    pod: Pod = Pod()
    """As the cluster knows it: by that UID a static pod's mirror is found."""
    publish: bool = False
    """Whether the pod's network-status is to be published."""
    netns_inode: int = 0
    """Of the namespace at ``netns``: the path may come to name another one. 0: not known."""
