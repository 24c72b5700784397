"""What was done to a sandbox for an attach or a detach, and how the intent ended.

An outcome carries the effects that no reader needed earlier. This saves one message per effect, in the node's ledger
and in each copy. The worker records an effect as a separate event, before the outcome, if it took long, can't be
repeated, or a failure follows.
"""

from __future__ import annotations

from typing import ClassVar

from events.schema.kinds import Effect, Observation, Outcome
from events.schema.parts import AttachWarning, Failure, IfName, PluginRun
from events.schema.requests import AttachPlanned


class InterfaceAttached(Effect, frozen=True, kw_only=True):
    """The delegate of one attachment succeeded."""

    result: str
    """The last plugin's result, as printed."""
    seconds: float
    runs: tuple[PluginRun, ...] = ()
    device_info: str = ""
    """JSON text of the attachment's device information file after the plugins had run."""


class InterfaceAttachFailed(Effect, frozen=True, kw_only=True):
    """The delegate of one attachment failed. The worker undoes it next."""

    failure: Failure
    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class InterfaceDetached(Effect, frozen=True, kw_only=True):
    """One attachment is gone: every plugin of its delegate confirmed DEL, or refused it and has nothing on the node."""

    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class InterfaceDetachFailed(Effect, frozen=True, kw_only=True):
    """A plugin refused DEL; the attachment may still have resources on the node."""

    failure: Failure
    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class AttachCompleted(Outcome, frozen=True, kw_only=True):
    """The sandbox is attached as planned."""

    ifname: IfName
    result: str
    """The answer to the runtime, in the version that it asked for."""
    seconds: float = 0.0
    effects: tuple[InterfaceAttached, ...] = ()
    """Attachments without a separate event, in order."""
    warnings: tuple[AttachWarning, ...] = ()


class AttachFailed(Outcome, frozen=True, kw_only=True):
    """The ADD failed, and the worker undid what it had made, except ``left``."""

    ifname: IfName
    failure: Failure
    left: tuple[IfName, ...] = ()
    """Interfaces whose rollback failed too."""
    seconds: float = 0.0


class DetachCompleted(Outcome, frozen=True, kw_only=True):
    """The sandbox's interface, and all attachments planned with it, are gone."""

    ifname: IfName
    seconds: float = 0.0
    effects: tuple[InterfaceDetached, ...] = ()
    """Detached attachments without a separate event, in order."""


class DetachFailed(Outcome, frozen=True, kw_only=True):
    """At least one attachment could not be detached. The worker retries."""

    ifname: IfName
    failure: Failure
    left: tuple[IfName, ...] = ()
    seconds: float = 0.0


class GcCompleted(Outcome, frozen=True, kw_only=True):
    """Stale attachments of a network were detached."""

    topic: ClassVar[str] = "gc"

    detached: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


class GcFailed(Outcome, frozen=True, kw_only=True):
    """GC ran to its end, and at least one plugin reported an error."""

    topic: ClassVar[str] = "gc"

    failure: Failure
    seconds: float = 0.0


class SandboxAdopted(Observation, frozen=True, kw_only=True):
    """Plumbline takes over a sandbox that another meta plugin attached, as if it had attached the sandbox itself."""

    ifname: IfName
    source: str
    """The meta plugin whose state was read."""
    plan: AttachPlanned
    results: tuple[str, ...]
    """The delegate's result for each attachment of the plan."""
    result: str = ""
    """The answer that the runtime got."""
    config: str = ""
    """The network configuration that the runtime gave."""
    args: str = ""
    evidence: tuple[str, ...] = ()
    """The files that were read for the adoption."""
