"""The events of the ledger, and the envelope they travel in.

This is a public contract: an event that was ever written stays readable. A field may be added with a default; anything
else is a new version of the type, with a step in ``events.upcast`` and a golden file. Readers tolerate what they do not
know: unknown fields are ignored, an unknown type or version is kept as ``Unknown``.

Texts of other people's JSON (network configurations, plugin results) are recorded as they were, as strings, because
DEL and CHECK must hand back what ADD was given (CNI specification 1.1, section 2, "Deleting an attachment").
"""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, datetime
from typing import Any, NewType, TypeAlias

import msgspec

from events import upcast

EventId = NewType("EventId", str)
NodeName = NewType("NodeName", str)
ContainerId = NewType("ContainerId", str)
IfName = NewType("IfName", str)
NetworkName = NewType("NetworkName", str)
RequestId = NewType("RequestId", str)
LeakId = NewType("LeakId", str)
"""``<kind of thing>/<what it is called on the node>``: the same thing has the same, however often it is seen."""

NO_SANDBOX = ContainerId("")
"""The sandbox of an event that belongs to the node, or to a request that names no usable container ID."""

NO_NODE = NodeName("")
"""The node of the reconciler's events: it writes for many, and a node's own events have one writer, its worker."""

NO_CAUSE = EventId("")
"""The cause of an event that nothing in the ledger led to."""


class ErrorClass(enum.StrEnum):
    """Why something failed. A closed list: it is also the ``error_class`` label of the failure metrics."""

    UNSUPPORTED_VERSION = "unsupported_version"
    INVALID_REQUEST = "invalid_request"
    INVALID_CONFIG = "invalid_config"
    INVALID_ANNOTATION = "invalid_annotation"
    NETWORK_NOT_FOUND = "network_not_found"
    NETWORK_FORBIDDEN = "network_forbidden"
    POD_NOT_FOUND = "pod_not_found"
    POD_CHANGED = "pod_changed"
    SOURCE_UNAVAILABLE = "source_unavailable"
    NAMESPACE_INVALID = "namespace_invalid"
    INTERFACE_EXISTS = "interface_exists"
    PLUGIN_MISSING = "plugin_missing"
    PLUGIN_FAILED = "plugin_failed"
    PLUGIN_TIMEOUT = "plugin_timeout"
    PLUGIN_OUTPUT = "plugin_output"
    ROUTE_FAILED = "route_failed"
    DEVICE_UNAVAILABLE = "device_unavailable"
    NODE_NOT_READY = "node_not_ready"
    API_REFUSED = "api_refused"
    NOT_REPAIRABLE = "not_repairable"
    EVIDENCE_CHANGED = "evidence_changed"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    LEDGER_FULL = "ledger_full"
    ABANDONED = "abandoned"
    OVERTAKEN = "overtaken"
    INTERNAL = "internal"
    UNKNOWN = "unknown"
    """What a newer Plumbline wrote: its event must not be lost for a word that this one does not know."""

    @classmethod
    def _missing_(cls, value: object) -> ErrorClass:
        return cls.UNKNOWN


class Phase(enum.StrEnum):
    """Where in the life of a request something failed."""

    INTAKE = "intake"
    RESOLVE = "resolve"
    ADD = "add"
    ROLLBACK = "rollback"
    DEL = "del"
    CHECK = "check"
    GC = "gc"
    STATUS = "status"
    PUBLISH = "publish"
    REPAIR = "repair"
    RECLAIM = "reclaim"
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> Phase:
        return cls.UNKNOWN


class DriftKind(enum.StrEnum):
    """How a node differs from what the ledger says of a sandbox. A closed list: it is also a metric's label."""

    LINK_MISSING = "link_missing"
    LINK_DOWN = "link_down"
    MAC_CHANGED = "mac_changed"
    MTU_CHANGED = "mtu_changed"
    ADDRESS_MISSING = "address_missing"
    ADDRESS_FOREIGN = "address_foreign"
    ROUTE_MISSING = "route_missing"
    PARENT_MISSING = "parent_missing"
    PARENT_DOWN = "parent_down"
    PORT_DETACHED = "port_detached"
    """The node's end of a veth is no longer a port of its bridge."""
    STATUS_CHANGED = "status_changed"
    """The pod's network-status was edited or removed; seen and put right by the reconciler."""
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> DriftKind:
        return cls.UNKNOWN


class LeakKind(enum.StrEnum):
    """Why nobody owns what is held. A closed list: it is also a metric's label."""

    SANDBOX_GONE = "sandbox_gone"
    """The runtime does not know the sandbox and its namespace is gone: its DEL never came."""
    REBOOTED = "rebooted"
    """The sandbox is of an earlier boot of the node."""
    DETACH_UNFINISHED = "detach_unfinished"
    """A plugin refuses the DEL, and the namespace is gone."""
    ADDRESS_UNOWNED = "address_unowned"
    """A file of host-local names a holder that neither ledger nor runtime knows."""
    ADDRESS_TORN = "address_torn"
    """A file of host-local names nobody."""
    LINK_UNOWNED = "link_unowned"
    DEVICE_INFO_STALE = "device_info_stale"
    RESULT_STALE = "result_stale"
    UNKNOWN = "unknown"
    """As for ``ErrorClass``."""

    @classmethod
    def _missing_(cls, value: object) -> LeakKind:
        return cls.UNKNOWN


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failure: a sentence for people, and the parts that tools group by."""

    error_class: ErrorClass
    phase: Phase
    message: str
    code: int
    """CNI error code that the runtime is given (CNI specification 1.1, section 2, "Error")."""
    network: str = ""
    ifname: str = ""
    delegate: str = ""
    """``type`` of the plugin that failed."""
    details: str = ""


class Pod(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod of a sandbox as the runtime named it in CNI_ARGS."""

    namespace: str = ""
    name: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else "-"


class PluginRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One execution of a plugin binary."""

    type: str
    command: str
    seconds: float
    exit_code: int
    """Negative: the signal that ended it."""
    stdout: str = ""
    """Empty for the plugin whose output is the result that the event records."""
    stderr: str = ""
    """Both are bounded: see ``nodeworker.delegates.exec``."""


class PlannedAttachment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attachment of a plan, with all that ADD, CHECK and DEL of its delegate need."""

    network: NetworkName
    """``namespace/name`` of the NetworkAttachmentDefinition, else the ``name`` of the CNI configuration."""
    ifname: IfName
    cni_name: str
    """``name`` of the CNI configuration: what plugins know the network by."""
    cni_version: str
    plugins: tuple[str, ...]
    """The plugins' configurations in chain order, as handed to them but for ``prevResult``."""
    cni_args: str = ""
    """CNI_ARGS for the plugins."""
    default: bool = False
    """True for the pod's default network: its result is the runtime's."""
    disable_check: bool = False
    disable_gc: bool = False
    native: tuple[bool, ...] = ()
    """For each of ``plugins``, whether the worker does its work itself instead of executing it; empty: for none."""
    default_route: tuple[str, ...] | None = None
    """The pod's default routes go over this attachment: gateways, none for those that its plugins bring."""
    resource: str = ""
    """Device plugin resource, or DRA's, that ``device`` was drawn from."""
    device: str = ""
    """ID of the device that the attachment uses."""
    device_info: str = ""
    """Path of the file in which the plugins find, and may say, what the device is (Device Information 1.1.0)."""


class Drift(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way in which an attachment is not what the ledger says."""

    kind: DriftKind
    network: NetworkName
    ifname: IfName
    expected: str = ""
    """What the ledger says: an address with its prefix length, a route as ``destination via gateway``, a MAC, …"""
    found: str = ""
    """What the node has instead; empty: nothing."""


class Leak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is held without a live attachment."""

    id: LeakId
    kind: LeakKind
    what: str
    """The address, link, or file."""
    holder: ContainerId = NO_SANDBOX
    ifname: IfName = IfName("")
    """Of a sandbox: the name that its runtime gave with the ADD."""
    network: str = ""
    path: str = ""
    """File or folder that it is in, where it is in one."""

    @property
    def sandbox(self) -> ContainerId:
        """The sandbox that its events belong to: what nobody owns belongs to the node."""
        return self.holder if self.kind in _LEAKED_SANDBOXES else NO_SANDBOX


_LEAKED_SANDBOXES = frozenset({LeakKind.SANDBOX_GONE, LeakKind.REBOOTED, LeakKind.DETACH_UNFINISHED})


# --- intents ---------------------------------------------------------------------------------------------------------


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


# --- decision --------------------------------------------------------------------------------------------------------


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


# --- effects ---------------------------------------------------------------------------------------------------------


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


# --- outcomes --------------------------------------------------------------------------------------------------------


class AttachCompleted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sandbox is attached as planned."""

    request: RequestId
    ifname: IfName
    result: str
    """What the runtime is answered, in the version it asked for."""
    seconds: float = 0.0


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


# --- taking over -----------------------------------------------------------------------------------------------------


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


# --- observations ----------------------------------------------------------------------------------------------------


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


# --- publication -----------------------------------------------------------------------------------------------------


class StatusPublished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pod's network-status says what the sandbox is attached to. Of the reconciler: ``node`` stands here."""

    node: NodeName
    ifname: IfName
    pod: Pod
    text: str
    """The annotation."""
    seconds: float = 0.0
    """Since the attach was completed."""


class StatusPublishFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pod's network-status could not be published. The reconciler tries again unless the pod is gone."""

    node: NodeName
    ifname: IfName
    pod: Pod
    failure: Failure
    final: bool = False
    """True when it will not be tried again."""


# --- reconcilers -----------------------------------------------------------------------------------------------------


class ReconcilerElected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reconciler took over from the one before, whose writing the ledger refuses from here on."""

    replica: str
    version: str = ""


# --- lifecycle -------------------------------------------------------------------------------------------------------


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


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a type or version that this code does not know; kept as it is."""

    type: str
    version: int
    data: msgspec.Raw


Data: TypeAlias = (
    AttachRequested
    | DetachRequested
    | GcRequested
    | RepairRequested
    | ReclaimRequested
    | ComparisonRequested
    | AttachPlanned
    | InterfaceAttached
    | InterfaceAttachFailed
    | InterfaceDetached
    | InterfaceDetachFailed
    | AttachCompleted
    | AttachFailed
    | DetachCompleted
    | DetachFailed
    | GcCompleted
    | GcFailed
    | SandboxAdopted
    | DriftObserved
    | DriftRepaired
    | DriftRepairFailed
    | LeakObserved
    | LeakReclaimed
    | LeakReclaimFailed
    | NodeCompared
    | StatusPublished
    | StatusPublishFailed
    | ReconcilerElected
    | WorkerStarted
    | WorkerStopped
    | Unknown
)

TYPES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        AttachRequested,
        DetachRequested,
        GcRequested,
        RepairRequested,
        ReclaimRequested,
        ComparisonRequested,
        AttachPlanned,
        InterfaceAttached,
        InterfaceAttachFailed,
        InterfaceDetached,
        InterfaceDetachFailed,
        AttachCompleted,
        AttachFailed,
        DetachCompleted,
        DetachFailed,
        GcCompleted,
        GcFailed,
        SandboxAdopted,
        DriftObserved,
        DriftRepaired,
        DriftRepairFailed,
        LeakObserved,
        LeakReclaimed,
        LeakReclaimFailed,
        NodeCompared,
        StatusPublished,
        StatusPublishFailed,
        ReconcilerElected,
        WorkerStarted,
        WorkerStopped,
    )
}

COMMANDS = frozenset({"RepairRequested", "ReclaimRequested", "ComparisonRequested"})
"""Intents that come down to a node from the reconciler or from people, through ``events.commands``."""
INTENTS = frozenset({"AttachRequested", "DetachRequested", "GcRequested"}) | COMMANDS


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event: the envelope and its data."""

    id: EventId
    at: str
    """RFC 3339 in UTC with nanoseconds."""
    node: NodeName
    boot_id: str
    epoch: int
    """Counts the workers that the node has had."""
    sandbox: ContainerId
    cause: EventId
    """The event that led to this one; of everything done for a request, its intent. Empty: nothing in the ledger."""
    trace: str
    """W3C traceparent, or empty."""
    data: Data

    @property
    def type(self) -> str:
        """The stable name of the event's type."""
        return self.data.type if isinstance(self.data, Unknown) else type(self.data).__name__


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    id: EventId
    type: str
    v: int
    at: str
    node: NodeName
    boot_id: str = ""
    epoch: int = 0
    sandbox: ContainerId = NO_SANDBOX
    cause: EventId = NO_CAUSE
    trace: str = ""
    data: msgspec.Raw


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What of an event's envelope says where it belongs, for whoever passes the event on as it is."""

    id: EventId
    type: str
    at: str
    node: NodeName
    sandbox: ContainerId = NO_SANDBOX


_encoder = msgspec.json.Encoder()
_head = msgspec.json.Decoder(Head)
_envelope = msgspec.json.Decoder(_Envelope)
_data = {name: msgspec.json.Decoder(cls) for name, cls in TYPES.items()}


class MalformedEventError(ValueError):
    """Bytes that are no event: torn, or written by something else."""


def encode(event: Event) -> bytes:
    """Return the JSON text of *event*, at the current version of its type."""
    if isinstance(event.data, Unknown):
        name, version, data = event.data.type, event.data.version, event.data.data
    else:
        name = type(event.data).__name__
        version, data = upcast.CURRENT.get(name, 1), msgspec.Raw(_encoder.encode(event.data))
    return _encoder.encode(
        _Envelope(
            id=event.id,
            type=name,
            v=version,
            at=event.at,
            node=event.node,
            boot_id=event.boot_id,
            epoch=event.epoch,
            sandbox=event.sandbox,
            cause=event.cause,
            trace=event.trace,
            data=data,
        )
    )


def decode(text: bytes) -> Event:
    """Return the event in *text*, lifted to the current version of its type.

    Raises MalformedEventError. A type or version that is not known yields ``Unknown`` data.
    """
    try:
        envelope = _envelope.decode(text)
        data = _decode_data(envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEventError(f"not an event: {error}") from error
    return Event(
        id=envelope.id,
        at=envelope.at,
        node=envelope.node,
        boot_id=envelope.boot_id,
        epoch=envelope.epoch,
        sandbox=envelope.sandbox,
        cause=envelope.cause,
        trace=envelope.trace,
        data=data,
    )


def decode_head(text: bytes) -> Head | None:
    """Return the head of the event in *text*; None: it is no event."""
    try:
        return _head.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode_data(envelope: _Envelope) -> Data:
    current = upcast.CURRENT.get(envelope.type, 1)
    decoder = _data.get(envelope.type)
    if decoder is None or not 1 <= envelope.v <= current:
        return Unknown(type=envelope.type, version=envelope.v, data=msgspec.Raw(bytes(envelope.data)))
    if envelope.v == current:
        return decoder.decode(envelope.data)
    older = msgspec.json.decode(envelope.data, type=dict[str, Any])
    try:
        lifted = upcast.lift(envelope.type, envelope.v, older)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise MalformedEventError(
            f"not an event: the data is not that of {envelope.type} version {envelope.v}: {error!r}"
        ) from error
    return msgspec.convert(lifted, TYPES[envelope.type])


def new_event_id(unix_ms: int, entropy: bytes) -> EventId:
    """Return a UUIDv7 (RFC 9562, section 5.7) for *unix_ms* with ten bytes of *entropy*."""
    value = (unix_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return EventId(str(uuid.UUID(int=value)))


def rfc3339(unix_ns: int) -> str:
    """Return *unix_ns*, nanoseconds since 1970, as RFC 3339 text in UTC."""
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{fraction:09d}Z"


def unix_ns(text: str) -> int:
    """Return nanoseconds since 1970 for the RFC 3339 text that ``rfc3339`` makes. Raises ValueError."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int((fraction + "000000000")[:9])
