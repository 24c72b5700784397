"""Describe each event in plain English.

Pure. The text names networks, interfaces, addresses, plugins and durations. It never contains a configuration, nor the
input or output of a plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from events.cni_result import ResultError, read
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ComparisonRequested,
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
    """Return what happened, without when and where."""
    match event.data:
        case AttachRequested() as data:
            return f"attach{_of(data.pod)} requested, interface {data.ifname}"
        case DetachRequested() as data:
            return f"detach{_of(data.pod)} requested, interface {data.ifname}{_origin(data)}"
        case GcRequested(valid=valid):
            known = "no list of valid attachments" if valid is None else f"{_count(len(valid), 'valid attachment')}"
            return f"garbage collection requested with {known}"
        case AttachPlanned(attachments=attachments):
            return f"planned: {', '.join(_planned(attachment) for attachment in attachments)}"
        case InterfaceAttached() as data:
            return f"{data.ifname} attached to {data.network}{_addresses(data.result)}{_took(data.runs, data.seconds)}"
        case InterfaceDetached() as data:
            return f"{data.ifname} detached from {data.network}{_took(data.runs, data.seconds)}"
        case InterfaceAttachFailed() as data:
            took = _took(data.runs, data.seconds)
            return f"{data.ifname} NOT attached to {data.network}{took}: {_why(data.failure)}"
        case InterfaceDetachFailed() as data:
            took = _took(data.runs, data.seconds)
            return f"{data.ifname} NOT detached from {data.network}{took}: {_why(data.failure)}"
        case WorkerStarted() as data:
            return (
                f"worker {data.version} started as epoch {event.epoch}, process {data.pid}: "
                f"{_count(data.pending, 'open request')}, {_count(data.spooled, 'spooled detach', 'es')}"
            )
        case WorkerStopped(reason=reason):
            return f"worker stopped: {reason}"
        case Unknown(type=name, version=version):
            return f"{name} version {version}, which this version of Plumbline does not know"
        case _:
            return _observation(event) or _outcome(event)


def _observation(event: Event) -> str:
    """Return what is said of the node's keeping to the ledger; nothing for any other event."""
    match event.data:
        case DriftObserved(drifts=drifts) as data:
            return f"drift{_of(data.pod)}: {_drifts(drifts)}" if drifts else f"no drift{_of(data.pod)} any more"
        case RepairRequested(drifts=drifts, by=by):
            return f"repair requested by {by}: {_drifts(drifts)}"
        case DriftRepaired() as data:
            left = f"; left: {_drifts(data.left)}" if data.left else ""
            return f"repaired in {_ms(data.seconds)}: {_drifts(data.drifts)}{left}"
        case DriftRepairFailed() as data:
            left = f"; left: {_drifts(data.left)}" if data.left else ""
            return f"repair FAILED after {_ms(data.seconds)}: {_why(data.failure)}{left}"
        case LeakObserved(gone=True, leak=leak):
            return f"no leak any more: {_leak(leak)}"
        case LeakObserved() as data:
            return f"leak: {_leak(data.leak)}, seen {_count(data.sightings, 'time')}: {'; '.join(data.evidence)}"
        case ReclaimRequested(leak=leak, by=by):
            return f"reclaim requested by {by}: {_leak(leak)}"
        case LeakReclaimed() as data:
            return f"reclaimed in {_ms(data.seconds)}: {_leak(data.leak)}"
        case LeakReclaimFailed() as data:
            return f"reclaim of {_leak(data.leak)} FAILED after {_ms(data.seconds)}: {_why(data.failure)}"
        case ComparisonRequested(by=by):
            return f"comparison of the node with the ledger requested by {by}"
        case NodeCompared() as data:
            unseen = f"; not seen: {'; '.join(data.unseen)}" if data.unseen else ""
            return (
                f"compared with the ledger in {_ms(data.seconds)}: {_count(data.sandboxes, 'sandbox', 'es')}, "
                f"{data.drifted} with drift, {_count(data.leaks, 'leak')}{unseen}"
            )
        case _:
            return ""


def _outcome(event: Event) -> str:
    match event.data:
        case AttachCompleted() as data:
            return f"attached: {data.ifname} and all that was planned with it, in {_ms(data.seconds)}"
        case AttachFailed() as data:
            return f"attach FAILED after {_ms(data.seconds)}: {_why(data.failure)}{_left(data.left)}"
        case DetachCompleted() as data:
            return f"detached: {data.ifname} and all that was planned with it, in {_ms(data.seconds)}"
        case DetachFailed() as data:
            return f"detach FAILED after {_ms(data.seconds)}: {_why(data.failure)}{_left(data.left)}"
        case GcCompleted() as data:
            detached = _count(len(data.detached), "attachment")
            return f"garbage collection done in {_ms(data.seconds)}: {detached} detached"
        case GcFailed() as data:
            return f"garbage collection FAILED after {_ms(data.seconds)}: {_why(data.failure)}"
        case StatusPublished() as data:
            return f"network-status{_of(data.pod)} published, {_ms(data.seconds)} after it was due"
        case StatusPublishFailed() as data:
            again = "" if data.final else "; it is tried again"
            return f"network-status{_of(data.pod)} NOT published: {_why(data.failure)}{again}"
        case ReconcilerElected(replica=replica):
            return f"reconciler {replica} took over"
        case SandboxAdopted() as data:
            return f"adopted from {data.source}{_of(data.plan.pod)}: {'; '.join(_adopted(data))}"
        case _:
            return event.type


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
        return f" ({_ms(seconds)})"
    return f" ({', '.join(f'{run.type} {_ms(run.seconds)}' for run in runs)})"


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


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
