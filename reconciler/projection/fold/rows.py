"""Convert the values of the fold to rows, and back.

Pure. ``plumbline verify`` uses the same functions on a fold of the whole ledger.
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
"""The zlib level that shrinks a fold to a quarter in less time than a write of the rest takes."""

_encode = msgspec.json.Encoder().encode
_sandbox_decoder = msgspec.json.Decoder(Sandbox)
_leaked_decoder = msgspec.json.Decoder(Leaked)


def sandbox_row(sandbox: Sandbox, created: int) -> Row:
    """Return the row of *sandbox*; *created* is the sequence of its first event."""
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
    """Return the sandbox of a ``fold`` column. Raises msgspec.MsgspecError."""
    if not fold.startswith(b"{"):  # earlier versions did not compress it
        try:
            fold = zlib.decompress(fold)
        except zlib.error as error:
            raise msgspec.DecodeError(f"it can't be decompressed: {error}") from error
    return _sandbox_decoder.decode(fold)


def attachment_row(sandbox: Sandbox, place: int) -> Row:
    """Return the row of the attachment at index *place* of the plan of *sandbox*."""
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
    """Return the row of a node. *last* is its latest event, *command* the last command that it took."""
    event = last.event
    return {
        "node": event.node,
        "epoch": min(epoch, BIGINT),  # a forged value must not stop the projection
        "command": min(command, BIGINT),
        "boot_id": event.boot_id,
        "changed_at": event.at,
        "sequence": last.sequence,
    }


def leak_row(node: NodeName, leaked: Leaked) -> Row:
    """Return the row of a leak on *node*."""
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
    """Return the leak of a ``fold`` column. Raises msgspec.MsgspecError."""
    return _leaked_decoder.decode(fold)


_OF_STATUS = frozenset({StatusPublished, StatusPublishFailed})


def status_row(stored: Stored) -> Row | None:
    """Return the row for the pod whose status *stored* records; None for any other event."""
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
