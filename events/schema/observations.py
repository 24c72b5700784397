"""What was seen of the node, what was done about it, and what processes say of themselves and of the pods."""

from __future__ import annotations

import msgspec

from events.schema.parts import (
    NO_NODE,
    Drift,
    Failure,
    IfName,
    Leak,
    NodeName,
    Pod,
    RequestId,
)


class DriftObserved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that differs now between the node and what the ledger says of a sandbox; nothing: it is as it should be."""

    ifname: IfName
    """The sandbox's, as in ``AttachRequested``."""
    pod: Pod
    drifts: tuple[Drift, ...] = ()
    node: NodeName = NO_NODE
    """Of what the reconciler observed of a pod's network-status: where the sandbox is."""


class DriftRepaired(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked to be put right is as the ledger says: the node was looked at again."""

    request: RequestId
    ifname: IfName
    drifts: tuple[Drift, ...]
    left: tuple[Drift, ...] = ()
    """What differs still, or by now; nobody asked for its repair."""
    seconds: float = 0.0


class DriftRepairFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that was asked to be put right could not be."""

    request: RequestId
    ifname: IfName
    failure: Failure
    left: tuple[Drift, ...] = ()
    """All that differs still."""
    seconds: float = 0.0


class LeakObserved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something is held that nobody owns. Each look that found it so is an event of its own, with the evidence."""

    leak: Leak
    evidence: tuple[str, ...] = ()
    sightings: int = 1
    """How many looks in a row have found it so, this one included."""
    judged: int = 0
    """Of a sandbox: the node ledger's sequence of its last event. Whatever happens to it later makes this void."""
    gone: bool = False
    """It is a leak no longer: somebody owns it, or it is not there any more."""


class LeakReclaimed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What nobody owned is free."""

    request: RequestId
    leak: Leak
    evidence: tuple[str, ...] = ()
    """As it was when it was freed."""
    seconds: float = 0.0


class LeakReclaimFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What nobody owned was not freed: it can't be, or it has an owner by now."""

    request: RequestId
    leak: Leak
    failure: Failure
    seconds: float = 0.0


class NodeCompared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The node was compared with the ledger; what differs was told in events of its own before."""

    request: RequestId
    """Empty: nobody asked."""
    sandboxes: int = 0
    drifted: int = 0
    """Sandboxes of which something differs."""
    leaks: int = 0
    unseen: tuple[str, ...] = ()
    """What could not be looked at, and why."""
    seconds: float = 0.0


class StatusPublished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pod's network-status says what the sandbox is attached to. Of the reconciler: ``node`` stands here."""

    node: NodeName
    ifname: IfName
    pod: Pod
    text: str
    """The annotation."""
    seconds: float = 0.0
    """Since it was due: since the attach was completed or, of one that somebody changed, since that was seen."""


class StatusPublishFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pod's network-status could not be published. The reconciler tries again unless the pod is gone."""

    node: NodeName
    ifname: IfName
    pod: Pod
    failure: Failure
    final: bool = False
    """True when it will not be tried again."""


class ReconcilerElected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reconciler took over from the one before, whose writing the ledger refuses from here on."""

    replica: str
    version: str = ""


class WorkerStarted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker took over the node, under the epoch in the envelope."""

    version: str
    pid: int
    pending: int = 0
    """Intents without outcome that it found."""
    spooled: int = 0


class WorkerStopped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker stopped in order."""

    reason: str
