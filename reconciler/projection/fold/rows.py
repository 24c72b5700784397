"""The rows of what the fold knows.

Pure. Whoever asks whether the tables are true makes the rows of a fold from zero with the same functions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from events.fold import Anomaly, Leaked, Sandbox
from events.schema import (
    Event,
    NodeName,
    Pod,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    encode,
)
from reconciler.projection.fold.result_addresses import addresses_of

Row: TypeAlias = dict[str, Any]

BIGINT = 2**63 - 1
_FAST = 1
"""zlib's level that a fourth of a fold is left by, in less time than it takes to write the rest."""

_encode = msgspec.json.Encoder().encode
_sandbox_decoder = msgspec.json.Decoder(Sandbox)
_leaked_decoder = msgspec.json.Decoder(Leaked)


def sandbox_row(sandbox: Sandbox, created: int) -> Row:
    """Return the row of *sandbox*, whose first event had the sequence *created*."""
    failure = sandbox.failure
    return {
        "container_id": sandbox.key.container_id,
        "ifname": sandbox.key.ifname,
        "node": sandbox.node,
        "namespace": sandbox.pod.namespace,
        "pod": sandbox.pod.name,
        "uid": sandbox.pod.uid,
        "netns": sandbox.netns,
        "phase": sandbox.phase.value,
        "live": sandbox.holds_resources,
        "drifting": bool(sandbox.drifts),
        "error_class": failure.error_class.value if failure is not None else "",
        "failure": failure.message if failure is not None else "",
        "requested_at": sandbox.requested_at,
        "changed_at": sandbox.changed_at,
        "created": created,
        "sequence": sandbox.sequence,
        "fold": zlib.compress(_encode(sandbox), _FAST),
        "intent": sandbox.intent,
        "silent": sandbox.plan is None or not sandbox.plan.publish,
    }


def sandbox_of(fold: bytes) -> Sandbox:
    """Return the sandbox that ``sandbox_row`` put away. Raises msgspec.MsgspecError."""
    if not fold.startswith(b"{"):  # as earlier versions put it away
        try:
            fold = zlib.decompress(fold)
        except zlib.error as error:
            raise msgspec.DecodeError(f"it can't be decompressed: {error}") from error
    return _sandbox_decoder.decode(fold)


def attachment_row(sandbox: Sandbox, place: int) -> Row:
    """Return the row of the attachment at *place* in the plan of *sandbox*."""
    attachment = sandbox.attachments[place]
    plan = attachment.plan
    return {
        "container_id": sandbox.key.container_id,
        "sandbox_ifname": sandbox.key.ifname,
        "place": place,
        "ifname": plan.ifname,
        "network": plan.network,
        "cni_name": plan.cni_name,
        "is_default": plan.default,
        "phase": attachment.phase.value,
        "addresses": " ".join(str(each) for each in addresses_of(attachment.result, plan.cni_version)),
    }


def pending_row(event: Event, sequence: int) -> Row:
    """Return the row of an intent without outcome."""
    return {
        "event_id": event.id,
        "sequence": sequence,
        "node": event.node,
        "container_id": event.sandbox,
        "type": event.type,
        "at": event.at,
        "event": encode(event),
    }


def node_row(last: Stored, epoch: int, command: int) -> Row:
    """Return the row of the node whose latest event is *last*; *command* is the last that it took."""
    event = last.event
    return {
        "node": event.node,
        "epoch": min(epoch, BIGINT),  # a forged one must not stop everybody's projection
        "command": min(command, BIGINT),
        "boot_id": event.boot_id,
        "changed_at": event.at,
        "sequence": last.sequence,
    }


def leak_row(node: NodeName, leaked: Leaked) -> Row:
    """Return the row of what is held on *node* without a live attachment."""
    observed, refused = leaked.observed, leaked.refused
    leak = observed.leak
    return {
        "node": node,
        "leak_id": leak.id,
        "kind": leak.kind.value,
        "what": leak.what,
        "container_id": leak.holder,
        "ifname": leak.ifname,
        "network": leak.network,
        "path": leak.path,
        "sightings": min(observed.sightings, BIGINT),
        "error_class": refused.error_class.value if refused is not None else "",
        "failure": refused.message if refused is not None else "",
        "first_at": leaked.first_at,
        "at": leaked.at,
        "sequence": leaked.sequence,
        "fold": _encode(leaked),
    }


def leaked_of(fold: bytes) -> Leaked:
    """Return what ``leak_row`` put away. Raises msgspec.MsgspecError."""
    return _leaked_decoder.decode(fold)


_OF_STATUS = frozenset({StatusPublished, StatusPublishFailed})


def status_row(stored: Stored) -> Row | None:
    """Return the row of the pod whose status *stored* says the last word of; None for any other event."""
    if type(stored.event.data) not in _OF_STATUS:
        return None
    match stored.event.data:
        case StatusPublished(ifname=ifname, pod=Pod(name=name) as pod, text=text) if name:
            refused = False
        case StatusPublishFailed(ifname=ifname, pod=Pod(name=name) as pod, final=True) if name:
            text, refused = "", True
        case _:
            return None
    return {
        "namespace": pod.namespace,
        "pod": pod.name,
        "uid": pod.uid,
        "container_id": stored.event.sandbox,
        "ifname": ifname,
        "intent": stored.event.cause,
        "text": text,
        "refused": refused,
        "at": stored.event.at,
        "sequence": stored.sequence,
    }


def anomaly_rows(odd: Iterable[Anomaly]) -> list[Row]:
    """Return the rows of anomalies."""
    return [
        {
            "sequence": anomaly.sequence,
            "reason": anomaly.reason,
            "event_id": anomaly.event_id,
            "type": anomaly.type,
            "container_id": anomaly.sandbox,
            "at": anomaly.at,
        }
        for anomaly in odd
    ]
