"""The envelope that events travel in, and their JSON text."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from events import upcast
from events.schema.effects import (
    AttachCompleted,
    AttachFailed,
    DetachCompleted,
    DetachFailed,
    GcCompleted,
    GcFailed,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    SandboxAdopted,
)
from events.schema.observations import (
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeCompared,
    ReconcilerElected,
    StatusPublished,
    StatusPublishFailed,
    WorkerStarted,
    WorkerStopped,
)
from events.schema.parts import (
    NO_CAUSE,
    NO_SANDBOX,
    ContainerId,
    EventId,
    NodeName,
)
from events.schema.requests import (
    AttachPlanned,
    AttachRequested,
    ComparisonRequested,
    DetachRequested,
    GcRequested,
    ReclaimRequested,
    RepairRequested,
)


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
"""Intents that come down to a node from the reconciler or from people, through ``events.ledger.commands``."""
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


class Stored(NamedTuple):
    """An event with its sequence in the ledger."""

    sequence: int
    """From 1, rising, with gaps where events were purged."""
    event: Event


def expand_effects(event: Event) -> tuple[Event, ...]:
    """Return the effects that *event* carries, each as if it had been recorded by itself, and then *event*."""
    match event.data:
        case AttachCompleted(effects=effects) | DetachCompleted(effects=effects) if effects:
            return (*(replace(event, data=effect) for effect in effects), event)
        case _:
            return (event,)


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
