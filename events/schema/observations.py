"""What was seen of the node and done about it, and what processes report of themselves and of the pods."""

from __future__ import annotations

from typing import ClassVar

from events.schema.kinds import Fence, Observation, Outcome
from events.schema.parts import NO_NODE, Drift, Failure, IfName, Leak, NodeName, Pod


class DriftObserved(Observation, frozen=True, kw_only=True):
    """All differences now between the node and the ledger for one sandbox. None: the node agrees with the ledger."""

    ifname: IfName
    pod: Pod
    drifts: tuple[Drift, ...] = ()
    node: NodeName = NO_NODE
    """The sandbox's node, if the reconciler observed a pod's network-status."""


class DriftRepaired(Outcome, frozen=True, kw_only=True):
    """The requested repairs are done: the worker checked the node again."""

    ifname: IfName
    drifts: tuple[Drift, ...]
    left: tuple[Drift, ...] = ()
    """Other differences that remain, or are new. No command asked for their repair."""
    seconds: float = 0.0


class DriftRepairFailed(Outcome, frozen=True, kw_only=True):
    """At least one requested repair failed."""

    ifname: IfName
    failure: Failure
    left: tuple[Drift, ...] = ()
    """All remaining differences."""
    seconds: float = 0.0


class LeakObserved(Observation, frozen=True, kw_only=True):
    """Something on the node has no owner. Each scan that finds it records a separate event, with the evidence."""

    topic: ClassVar[str] = "leak"
    opens: ClassVar[bool] = True

    leak: Leak
    evidence: tuple[str, ...] = ()
    sightings: int = 1
    """Number of consecutive scans that found it, this one included."""
    judged: int = 0
    """For a sandbox: the node ledger's sequence of its last event. Any later event of the sandbox makes this void."""
    gone: bool = False
    """The leak is over: it has an owner, or it does not exist any more."""


class LeakReclaimed(Outcome, frozen=True, kw_only=True):
    """A leak is free."""

    topic: ClassVar[str] = "leak"

    leak: Leak
    evidence: tuple[str, ...] = ()
    """At the moment when it was freed."""
    seconds: float = 0.0


class LeakReclaimFailed(Outcome, frozen=True, kw_only=True):
    """A leak was not freed: that failed, or it has an owner by now."""

    topic: ClassVar[str] = "leak"

    leak: Leak
    failure: Failure
    seconds: float = 0.0


class NodeCompared(Outcome, frozen=True, kw_only=True):
    """The worker compared the node with the ledger. Separate events report the differences, before this one.

    ``request`` is empty if no command asked for the comparison.
    """

    topic: ClassVar[str] = "comparison"

    sandboxes: int = 0
    drifted: int = 0
    """Sandboxes with a difference."""
    leaks: int = 0
    unseen: tuple[str, ...] = ()
    """What could not be inspected, and why."""
    seconds: float = 0.0


class StatusPublished(Observation, frozen=True, kw_only=True):
    """The pod's network-status says what the sandbox is attached to. The reconciler writes this."""

    node: NodeName
    ifname: IfName
    pod: Pod
    text: str
    """The annotation."""
    seconds: float = 0.0
    """Since the attach was completed, or since the reconciler saw that the annotation had been changed."""


class StatusPublishFailed(Observation, frozen=True, kw_only=True):
    """The pod's network-status could not be published. The reconciler retries unless the pod is gone."""

    node: NodeName
    ifname: IfName
    pod: Pod
    failure: Failure
    final: bool = False
    """True if the reconciler does not retry."""


class ReconcilerElected(Fence, frozen=True, kw_only=True):
    """A reconciler took over. From here on the ledger refuses appends of the one before it."""

    replica: str
    version: str = ""


class WorkerStarted(Fence, frozen=True, kw_only=True):
    """A worker took over the node, under the epoch in the envelope."""

    version: str
    pid: int
    pending: int = 0
    """Intents without outcome at its start."""
    spooled: int = 0


class WorkerStopped(Observation, frozen=True, kw_only=True):
    """A worker stopped in order."""

    topic: ClassVar[str] = "worker"

    reason: str
