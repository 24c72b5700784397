"""The envelope of an event, its JSON text, and the table of event types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from events import upcast
from events.schema import effects, observations, requests
from events.schema.kinds import Command, Data, Intent
from events.schema.parts import NO_CAUSE, NO_NODE, NO_SANDBOX, ContainerId, EventId, Failure, NodeName


class Unknown(Data, frozen=True, kw_only=True):
    """Data of a type or version that this code does not know, unchanged."""

    type: str
    version: int
    data: msgspec.Raw


TYPES: Mapping[str, type[Data]] = {
    name: kind
    for module in (requests, effects, observations)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Data) and kind.__module__ == module.__name__
}
"""Every event type by its name: each class of data that these modules define."""


def types_of(kind: type[Data]) -> frozenset[type[Data]]:
    """Return the event types of *kind*, which is a class of ``events.schema.kinds``."""
    return frozenset(each for each in TYPES.values() if issubclass(each, kind))


INTENTS = frozenset(kind.__name__ for kind in types_of(Intent))
"""Names of the types that open a request."""
COMMANDS = frozenset(kind.__name__ for kind in types_of(Command))
"""Names of the intents that the reconciler, or a person, sends down to a node (``events.ledger.commands``)."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event: the envelope and its data."""

    id: EventId
    at: str
    """RFC 3339 in UTC with nanoseconds."""
    node: NodeName
    boot_id: str
    epoch: int
    """Number of the node's worker, counted from its first."""
    sandbox: ContainerId
    """The container that the event is about; empty: none. A ``Sandbox`` of the fold is one of its interface names."""
    cause: EventId
    """The event that led to this one: for everything done for a request, its intent. Empty: no event led to it."""
    trace: str
    """W3C traceparent, or empty."""
    data: Data

    @property
    def type(self) -> str:
        """The stable name of the event's type."""
        return self.data.type if isinstance(self.data, Unknown) else type(self.data).__name__

    @property
    def failure(self) -> Failure | None:
        """The failure that the event reports, if its type has one (``failure``)."""
        return getattr(self.data, "failure", None)

    @property
    def named_node(self) -> NodeName:
        """The node that the data names (``node``): of an event that the reconciler writes about a node. Else empty."""
        return getattr(self.data, "node", NO_NODE)


class Stored(NamedTuple):
    """An event with its sequence in the ledger."""

    sequence: int
    """From 1, rising, with gaps where events were purged."""
    event: Event


def expand_effects(event: Event) -> tuple[Event, ...]:
    """Return the effects that *event* carries, each as a separate event, and then *event*."""
    effects = cast("tuple[Data, ...]", getattr(event.data, "effects", ()))
    return (*(replace(event, data=effect) for effect in effects), event)


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
    """The part of an envelope that says where the event belongs, for code that passes the event on unchanged."""

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
    """The bytes are not an event: truncated, or written by another program."""


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

    An unknown type or version gives ``Unknown`` data. Raises MalformedEventError.
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
    """Return the head of the event in *text*; None if it is not an event."""
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
