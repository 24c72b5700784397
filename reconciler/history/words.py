"""Describe each event in plain English.

Pure. The text names networks, interfaces, addresses, plugins and durations. It never contains a configuration, nor the
input or output of a plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from events.cni_result import ResultError, read
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ComparisonRequested,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    Drift,
    DriftKind,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Event,
    Failure,
    GcCompleted,
    GcFailed,
    GcRequested,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    Leak,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeCompared,
    PlannedAttachment,
    PluginRun,
    Pod,
    ReclaimRequested,
    ReconcilerElected,
    RepairRequested,
    SandboxAdopted,
    StatusPublished,
    StatusPublishFailed,
    Unknown,
    WorkerStarted,
    WorkerStopped,
)
from reconciler.history.redact import without_secrets

SANDBOX_LETTERS = 12
"""Letters of a container ID that other tools show, too."""


def words(event: Event) -> str:
    """Return what happened, without time and place. A type without a function in ``_WORDS`` gives its name."""
    data = event.data
    of_type = _WORDS.get(type(data))
    if of_type is not None:
        return of_type(data)
    if isinstance(data, Unknown):
        return f"{data.type} version {data.version}, which this version of Plumbline does not know"
    if isinstance(data, WorkerStarted):  # its epoch is in the envelope
        return (
            f"worker {data.version} started as epoch {event.epoch}, process {data.pid}: "
            f"{_count(data.pending, 'open request')}, {_count(data.spooled, 'spooled detach', 'es')}"
        )
    return event.type if event.failure is None else f"{event.type}: {_why(event.failure)}"


def _attach_requested(data: AttachRequested) -> str:
    return f"attach{_of(data.pod)} requested, interface {data.ifname}"


def _detach_requested(data: DetachRequested) -> str:
    return f"detach{_of(data.pod)} requested, interface {data.ifname}{_origin(data)}"


def _gc_requested(data: GcRequested) -> str:
    valid = data.valid
    known = "no list of valid attachments" if valid is None else f"{_count(len(valid), 'valid attachment')}"
    return f"garbage collection requested with {known}"


def _attach_planned(data: AttachPlanned) -> str:
    return f"planned: {', '.join(_planned(attachment) for attachment in data.attachments)}"


def _interface_attached(data: InterfaceAttached) -> str:
    return f"{data.ifname} attached to {data.network}{_addresses(data.result)}{_took(data.runs, data.seconds)}"


def _interface_detached(data: InterfaceDetached) -> str:
    return f"{data.ifname} detached from {data.network}{_took(data.runs, data.seconds)}"


def _interface_attach_failed(data: InterfaceAttachFailed) -> str:
    return f"{data.ifname} NOT attached to {data.network}{_took(data.runs, data.seconds)}: {_why(data.failure)}"


def _interface_detach_failed(data: InterfaceDetachFailed) -> str:
    return f"{data.ifname} NOT detached from {data.network}{_took(data.runs, data.seconds)}: {_why(data.failure)}"


def _attach_completed(data: AttachCompleted) -> str:
    warnings = "".join(f"; warning: {without_secrets(warning.message)}" for warning in data.warnings)
    return f"attached: {data.ifname} and all that was planned with it, in {duration(data.seconds)}{warnings}"


def _attach_failed(data: AttachFailed) -> str:
    return f"attach FAILED after {duration(data.seconds)}: {_why(data.failure)}{_left(data.left)}"


def _detach_completed(data: DetachCompleted) -> str:
    return f"detached: {data.ifname} and all that was planned with it, in {duration(data.seconds)}"


def _detach_failed(data: DetachFailed) -> str:
    return f"detach FAILED after {duration(data.seconds)}: {_why(data.failure)}{_left(data.left)}"


def _gc_completed(data: GcCompleted) -> str:
    detached = _count(len(data.detached), "attachment")
    return f"garbage collection done in {duration(data.seconds)}: {detached} detached"


def _gc_failed(data: GcFailed) -> str:
    return f"garbage collection FAILED after {duration(data.seconds)}: {_why(data.failure)}"


def _drift_observed(data: DriftObserved) -> str:
    return f"drift{_of(data.pod)}: {_drifts(data.drifts)}" if data.drifts else f"no drift{_of(data.pod)} any more"


def _repair_requested(data: RepairRequested) -> str:
    return f"repair requested by {data.by}: {_drifts(data.drifts)}"


def _drift_repaired(data: DriftRepaired) -> str:
    left = f"; left: {_drifts(data.left)}" if data.left else ""
    return f"repaired in {duration(data.seconds)}: {_drifts(data.drifts)}{left}"


def _drift_repair_failed(data: DriftRepairFailed) -> str:
    left = f"; left: {_drifts(data.left)}" if data.left else ""
    return f"repair FAILED after {duration(data.seconds)}: {_why(data.failure)}{left}"


def _leak_observed(data: LeakObserved) -> str:
    if data.gone:
        return f"no leak any more: {_leak(data.leak)}"
    return f"leak: {_leak(data.leak)}, seen {_count(data.sightings, 'time')}: {'; '.join(data.evidence)}"


def _reclaim_requested(data: ReclaimRequested) -> str:
    return f"reclaim requested by {data.by}: {_leak(data.leak)}"


def _leak_reclaimed(data: LeakReclaimed) -> str:
    return f"reclaimed in {duration(data.seconds)}: {_leak(data.leak)}"


def _leak_reclaim_failed(data: LeakReclaimFailed) -> str:
    return f"reclaim of {_leak(data.leak)} FAILED after {duration(data.seconds)}: {_why(data.failure)}"


def _comparison_requested(data: ComparisonRequested) -> str:
    return f"comparison of the node with the ledger requested by {data.by}"


def _node_compared(data: NodeCompared) -> str:
    unseen = f"; not seen: {'; '.join(data.unseen)}" if data.unseen else ""
    return (
        f"compared with the ledger in {duration(data.seconds)}: {_count(data.sandboxes, 'sandbox', 'es')}, "
        f"{data.drifted} with drift, {_count(data.leaks, 'leak')}{unseen}"
    )


def _status_published(data: StatusPublished) -> str:
    return f"network-status{_of(data.pod)} published, {duration(data.seconds)} after it was due"


def _status_publish_failed(data: StatusPublishFailed) -> str:
    again = "" if data.final else "; it is tried again"
    return f"network-status{_of(data.pod)} NOT published: {_why(data.failure)}{again}"


def _sandbox_adopted(data: SandboxAdopted) -> str:
    return f"adopted from {data.source}{_of(data.plan.pod)}: {'; '.join(_adopted(data))}"


def _reconciler_elected(data: ReconcilerElected) -> str:
    return f"reconciler {data.replica} took over"


def _worker_stopped(data: WorkerStopped) -> str:
    return f"worker stopped: {data.reason}"


def _of(pod: Pod) -> str:
    return f" of {pod}" if pod.name else ""


def _origin(data: DetachRequested) -> str:
    if data.retry:
        return f", by the worker itself after {_count(data.retry, 'attempt')}"
    return ", left in the spool while no worker answered" if data.spooled else ""


def _planned(attachment: PlannedAttachment) -> str:
    default = ", default" if attachment.default else ""
    types = "+".join(_plugin_type(text) for text in attachment.plugins)
    return f"{attachment.ifname} on {attachment.network} ({types}{default})"


def _adopted(data: SandboxAdopted) -> Iterable[str]:
    for attachment, result in zip(data.plan.attachments, data.results, strict=False):
        addresses = _addresses(result) if result else ", with a result that is not known"
        yield f"{_planned(attachment)}{addresses}"


class _Plugin(msgspec.Struct):
    type: str = "?"


def _plugin_type(configuration: str) -> str:
    try:
        return msgspec.json.decode(configuration, type=_Plugin).type
    except (msgspec.MsgspecError, RecursionError):
        return "?"


def _addresses(result: str) -> str:
    try:
        ips = read(result, "1.0.0").ips
    except ResultError:
        return ", with a result that can't be read"
    return f": {', '.join(_address(ip.address, ip.gateway) for ip in ips)}" if ips else ", without address"


def _address(address: str, gateway: str) -> str:
    return f"{address} via {gateway}" if gateway else address


def _took(runs: Sequence[PluginRun], seconds: float) -> str:
    if not runs:
        return f" ({duration(seconds)})"
    return f" ({', '.join(f'{run.type} {duration(run.seconds)}' for run in runs)})"


def _drifts(drifts: Sequence[Drift]) -> str:
    return "; ".join(map(_drift, drifts))


def _drift(drift: Drift) -> str:
    if drift.kind is DriftKind.STATUS_CHANGED:
        found = " ".join(drift.found.split())
        return f"network-status was changed to {found}" if found else "network-status was removed"
    return (
        f"{drift.ifname} of {drift.network} {drift.kind.value}"
        + (f", expected {drift.expected}" if drift.expected else "")
        + (f", found {drift.found}" if drift.found else "")
    )


def _leak(leak: Leak) -> str:
    network = f" of {leak.network}" if leak.network else ""
    holder = f", held by {leak.holder[:SANDBOX_LETTERS]}" if leak.holder else ""
    return f"{leak.what}{network}{holder} ({leak.kind.value})"


def _why(failure: Failure) -> str:
    return f"{without_secrets(failure.message)} [{failure.error_class.value}]"


def _left(names: Iterable[str]) -> str:
    left = ", ".join(names)
    return f"; left on the node: {left}" if left else ""


def duration(seconds: float) -> str:
    """Return *seconds* for people: three or so digits, in the largest unit that fits."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.1f} ms"
    if abs(seconds) < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(abs(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if seconds < 0 else ""
    return f"{sign}{hours}h{minutes:02}m" if hours else f"{sign}{minutes}m{rest:02}s"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


_WORDS: Mapping[type[Data], Callable[[Any], str]] = {
    AttachRequested: _attach_requested,
    DetachRequested: _detach_requested,
    GcRequested: _gc_requested,
    AttachPlanned: _attach_planned,
    InterfaceAttached: _interface_attached,
    InterfaceDetached: _interface_detached,
    InterfaceAttachFailed: _interface_attach_failed,
    InterfaceDetachFailed: _interface_detach_failed,
    AttachCompleted: _attach_completed,
    AttachFailed: _attach_failed,
    DetachCompleted: _detach_completed,
    DetachFailed: _detach_failed,
    GcCompleted: _gc_completed,
    GcFailed: _gc_failed,
    DriftObserved: _drift_observed,
    RepairRequested: _repair_requested,
    DriftRepaired: _drift_repaired,
    DriftRepairFailed: _drift_repair_failed,
    LeakObserved: _leak_observed,
    ReclaimRequested: _reclaim_requested,
    LeakReclaimed: _leak_reclaimed,
    LeakReclaimFailed: _leak_reclaim_failed,
    ComparisonRequested: _comparison_requested,
    NodeCompared: _node_compared,
    StatusPublished: _status_published,
    StatusPublishFailed: _status_publish_failed,
    SandboxAdopted: _sandbox_adopted,
    ReconcilerElected: _reconciler_elected,
    WorkerStopped: _worker_stopped,
}
