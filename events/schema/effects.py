"""What was done to a sandbox, for an attach or a detach, and how the intent ended.

An outcome carries the effects that nobody had to know of earlier: a message less for each, at the node's ledger and
everywhere behind it. What takes long, can't be repeated, or is followed by a failure is recorded by itself, before it.
"""

from __future__ import annotations

import msgspec

from events.schema.parts import (
    Failure,
    IfName,
    NetworkName,
    PluginRun,
    RequestId,
)
from events.schema.requests import (
    AttachPlanned,
)


class InterfaceAttached(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The delegate of one attachment succeeded."""

    network: NetworkName
    ifname: IfName
    result: str
    """The last plugin's result, as it printed it."""
    seconds: float
    runs: tuple[PluginRun, ...] = ()
    device_info: str = ""
    """What the attachment's device is: the JSON text of its file once the plugins had run."""


class InterfaceAttachFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The delegate of one attachment failed; it is undone next."""

    network: NetworkName
    ifname: IfName
    failure: Failure
    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class InterfaceDetached(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment is gone: every plugin of its delegate confirmed DEL."""

    network: NetworkName
    ifname: IfName
    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class InterfaceDetachFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plugin refused DEL; the attachment may still hold something."""

    network: NetworkName
    ifname: IfName
    failure: Failure
    seconds: float = 0.0
    runs: tuple[PluginRun, ...] = ()


class AttachCompleted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sandbox is attached as planned."""

    request: RequestId
    ifname: IfName
    result: str
    """What the runtime is answered, in the version it asked for."""
    seconds: float = 0.0
    effects: tuple[InterfaceAttached, ...] = ()
    """What was made and has no event of its own, in order."""


class AttachFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ADD failed, and what it had made was undone but for ``left``."""

    request: RequestId
    ifname: IfName
    failure: Failure
    left: tuple[IfName, ...] = ()
    """Interfaces whose rollback failed too."""
    seconds: float = 0.0


class DetachCompleted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing of the sandbox's interface, and of the attachments planned with it, is left."""

    request: RequestId
    ifname: IfName
    seconds: float = 0.0
    effects: tuple[InterfaceDetached, ...] = ()
    """What was unmade and has no event of its own, in order."""


class DetachFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At least one attachment could not be detached. The worker tries again."""

    request: RequestId
    ifname: IfName
    failure: Failure
    left: tuple[IfName, ...] = ()
    seconds: float = 0.0


class GcCompleted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Stale attachments of a network were detached. An intent needs an outcome, so GC has one."""

    request: RequestId
    detached: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


class GcFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """GC went through, and at least one plugin reported an error."""

    request: RequestId
    failure: Failure
    seconds: float = 0.0


class SandboxAdopted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sandbox that another meta plugin had attached is Plumbline's from here on, as if it had been attached so."""

    ifname: IfName
    source: str
    """Whose state it was read from."""
    plan: AttachPlanned
    results: tuple[str, ...]
    """For each of the plan's attachments, what its delegate had returned."""
    result: str = ""
    """What the runtime had been answered."""
    config: str = ""
    """The network configuration that the runtime gave."""
    args: str = ""
    evidence: tuple[str, ...] = ()
    """The files that all this was read from."""
