"""Rows that are only inserted: the history of drift and leaks, and the configuration versions of networks.

Pure. Each row follows from one event, except for the pod's name.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec

from events.fold import Sandbox
from events.schema import (
    AttachPlanned,
    Drift,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Failure,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    PlannedAttachment,
    Pod,
    SandboxAdopted,
    Stored,
)
from reconciler.projection.fold.rows import BIGINT, Row

_OF_ONE_POD = ("runtimeConfig", "args", "deviceID", "pciBusID", "prevResult")
"""Configuration keys that depend on one pod's ADD, not on the network's author."""

_OF_DRIFT = frozenset({DriftObserved, DriftRepaired, DriftRepairFailed})
_WITH_PLANS = frozenset({AttachPlanned, SandboxAdopted})
_OF_LEAKS = frozenset({LeakObserved, LeakReclaimed, LeakReclaimFailed})


def drift_rows(stored: Stored, sandbox: Sandbox | None) -> list[Row]:
    """Return a row for each drift in *stored*; one row without a kind if the event reports no drift."""
    event, failure = stored.event, None
    match event.data:
        case DriftObserved(drifts=drifts):
            outcome = "observed"
        case DriftRepaired(drifts=drifts):
            outcome = "repaired"
        case DriftRepairFailed(left=drifts, failure=failure):
            outcome = "failed"
        case _:
            return []
    pod, node = (sandbox.pod if sandbox is not None else Pod()), event.node
    if isinstance(event.data, DriftObserved):
        pod, node = event.data.pod, event.node or event.data.node
    shared: Row = {
        "sequence": stored.sequence,
        "at": event.at,
        "outcome": outcome,
        "node": node,
        "container_id": event.sandbox,
        "sandbox_ifname": event.data.ifname,
        "namespace": pod.namespace,
        "pod": pod.name,
        **_failed(failure),
    }
    if not drifts:
        return [{**shared, "place": 0, **_drift(None)}]
    return [{**shared, "place": place, **_drift(drift)} for place, drift in enumerate(drifts)]


def _drift(drift: Drift | None) -> Row:
    return {
        "kind": drift.kind.value if drift else "",
        "network": drift.network if drift else "",
        "ifname": drift.ifname if drift else "",
        "expected": drift.expected if drift else "",
        "found": drift.found if drift else "",
    }


def leak_history_row(stored: Stored) -> Row | None:
    """Return the row for the leak in *stored*; None for any other event."""
    event, failure = stored.event, None
    evidence: tuple[str, ...] = ()
    sightings = 0
    match event.data:
        case LeakObserved(leak=leak, evidence=evidence, sightings=sightings, gone=gone):
            outcome = "gone" if gone else "observed"
        case LeakReclaimed(leak=leak, evidence=evidence):
            outcome = "reclaimed"
        case LeakReclaimFailed(leak=leak, failure=failure):
            outcome = "failed"
        case _:
            return None
    return {
        "sequence": stored.sequence,
        "at": event.at,
        "outcome": outcome,
        "node": event.node,
        "leak_id": leak.id,
        "kind": leak.kind.value,
        "what": leak.what,
        "container_id": leak.holder,
        "ifname": leak.ifname,
        "network": leak.network,
        "sightings": min(sightings, BIGINT),
        "evidence": "\n".join(evidence),
        **_failed(failure),
    }


def _failed(failure: Failure | None) -> Row:
    return {
        "error_class": failure.error_class.value if failure is not None else "",
        "failure": failure.message if failure is not None else "",
    }


class HistoryRows:
    """Collects the history rows of a batch."""

    def __init__(self) -> None:
        self.drift: list[Row] = []
        self.leaks: list[Row] = []

    def step(self, stored: Stored, sandbox: Sandbox | None) -> None:
        """Process *stored*, an event of *sandbox*."""
        kind = type(stored.event.data)
        if kind in _OF_DRIFT:
            self.drift += drift_rows(stored, sandbox)
        elif kind in _OF_LEAKS and (row := leak_history_row(stored)) is not None:
            self.leaks.append(row)


class NetworkVersionRows:
    """Collects the configurations that the plans of a batch use, as the networks' authors wrote them."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def rows(self) -> list[Row]:
        """One row per configuration. ``first_*`` apply only to a new row; ``uses`` is added to the old value."""
        return list(self._rows.values())

    def step(self, stored: Stored) -> None:
        """Process *stored*."""
        if type(stored.event.data) not in _WITH_PLANS:
            return
        match stored.event.data:
            case AttachPlanned(attachments=attachments):
                pass
            case SandboxAdopted(plan=AttachPlanned(attachments=attachments)):
                pass
            case _:
                return
        for plan in attachments:
            self._use(stored, plan)

    def _use(self, stored: Stored, plan: PlannedAttachment) -> None:
        digest, text = _version(plan.cni_version, plan.plugins)
        at, sequence = stored.event.at, stored.sequence
        row = self._rows.get((plan.network, digest))
        if row is not None:
            row.update(last_at=at, last_sequence=sequence, uses=row["uses"] + 1)
            return
        self._rows[plan.network, digest] = {
            "network": plan.network,
            "digest": digest,
            "cni_name": plan.cni_name,
            "config": text,
            "first_at": at,
            "first_sequence": sequence,
            "last_at": at,
            "last_sequence": sequence,
            "uses": 1,
        }


@lru_cache(maxsize=1024)
def _version(cni_version: str, plugins: tuple[str, ...]) -> tuple[str, str]:
    """Return the digest and the text of a network's configuration."""
    whole = {"cniVersion": cni_version, "plugins": [_of_the_network(text) for text in plugins]}
    text = msgspec.json.encode(whole, order="sorted")
    return hashlib.sha256(text).hexdigest(), text.decode()


def _of_the_network(plugin: str) -> Any:
    try:
        config = msgspec.json.decode(plugin, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return plugin
    return {key: value for key, value in config.items() if key not in _OF_ONE_POD}
