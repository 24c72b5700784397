"""Describe the result of attachments in Kubernetes Events of the pod: ``kubectl describe`` shows them first.

Pure. The reasons and the text of ``AddedInterface`` are those of Multus, because operators search for them. The history
is in the ledger.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from events.cni_result import ResultError, read
from events.fold import Attachment, AttachmentPhase, Sandbox
from events.schema import AttachCompleted, AttachFailed, DetachFailed, ErrorClass, Event, NodeName, Pod, WarningKind

NORMAL, WARNING = "Normal", "Warning"
ADDED = "AddedInterface"
NOT_FOUND = "NoNetworkFound"
ATTACH_FAILED = "FailedAddingInterface"
DETACH_FAILED = "FailedRemovingInterface"
OF_WARNING: Mapping[WarningKind, str] = {
    WarningKind.DEVICE_MISSING: "DeviceMissing",
    WarningKind.DEFAULT_ROUTE_TAKEN: "DefaultRouteTaken",
    WarningKind.DEFAULT_ROUTE_ABSENT: "DefaultRouteAbsent",
    WarningKind.UNKNOWN: "AttachWarning",
}

MESSAGE_LIMIT = 1024
"""Maximum length in characters (core/v1 Event, events.k8s.io/v1 ``note``)."""
_LAST_PLACE = 0xFFF
_REMEMBERED = 4096
_PERIOD = 300.0
_BURST = 25

_T = TypeVar("_T")


class PodEvent(msgspec.Struct, frozen=True):
    """One Event to write."""

    pod: Pod
    node: NodeName
    type: str
    reason: str
    message: str
    place: int = _LAST_PLACE
    """Events of the same second are shown by their places."""

    @property
    def name(self) -> str:
        """Name of the Event object. Equal for the same text about the same pod, so that repetitions are counted.

        It begins with the place: ``kubectl describe`` sorts by ``lastTimestamp``, which has seconds, and leaves those
        of one second in the order of their names.
        """
        content = "\0".join((self.pod.uid, self.type, self.reason, self.message)).encode()
        return f"{self.pod.name}.{min(self.place, _LAST_PLACE):03x}{hashlib.sha256(content).hexdigest()[:13]}"


def pod_events(event: Event, sandbox: Sandbox | None) -> list[PodEvent]:
    """Return the Events for *event*; *sandbox* is its sandbox after *event*.

    A pod without a known UID gets none: they would appear at its successor.
    """
    if sandbox is None:
        return []
    pod = sandbox.plan.pod if sandbox.plan is not None and sandbox.plan.pod.uid else sandbox.pod
    if not pod.name or not pod.uid:
        return []
    match event.data:
        case AttachCompleted(warnings=warnings) if event.cause == sandbox.intent:
            made = [_added(pod, sandbox.node, each, place) for place, each in enumerate(sandbox.attachments)]
            warned = [
                _warning(pod, sandbox.node, OF_WARNING[each.kind], each.message, len(made) + place)
                for place, each in enumerate(warnings)
            ]
            return [*(each for each in made if each is not None), *warned]
        case AttachFailed(failure=failure):
            reason = NOT_FOUND if failure.error_class is ErrorClass.NETWORK_NOT_FOUND else ATTACH_FAILED
            return [_warning(pod, sandbox.node, reason, failure.message)]
        case DetachFailed(failure=failure):
            return [_warning(pod, sandbox.node, DETACH_FAILED, failure.message)]
        case _:
            return []


def _added(pod: Pod, node: NodeName, attachment: Attachment, place: int) -> PodEvent | None:
    if attachment.phase is not AttachmentPhase.ATTACHED:
        return None
    try:
        result = read(attachment.result, attachment.plan.cni_version)
    except ResultError:
        return None  # the publication of the status reports the error
    if not result.interfaces and not result.ips:
        return None
    addresses = " ".join(ip.address for ip in result.ips)
    message = f"Add {attachment.plan.ifname} [{addresses}] from {attachment.plan.network}"
    return PodEvent(pod, node, NORMAL, ADDED, message[:MESSAGE_LIMIT], place)


def _warning(pod: Pod, node: NodeName, reason: str, message: str, place: int = _LAST_PLACE) -> PodEvent:
    if len(message) > MESSAGE_LIMIT:
        half = MESSAGE_LIMIT // 2 - 2
        message = f"{message[:half]} … {message[-half:]}"
    return PodEvent(pod, node, WARNING, reason, message, place)


class Admission(NamedTuple):
    """The number of repetitions, and whether the rate limit admits a write now."""

    times: int
    admitted: bool


class Throttle:
    """Limits the rate of Events per pod, so that one pod or one broken network does not flood the API server.

    Like client-go's correlator: each pod has a burst of 25 Events, then one every five minutes, and repetitions are
    counted in one Event. It remembers 4,096 pods, and evicts the least recently used.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def admit(self, event: PodEvent, at: float) -> Admission:
        """Return the number of occurrences of *event*, this one included, and whether to write it; *at* in monotonic
        seconds."""
        times = self._counts.get(event.name, 0) + 1
        _remember(self._counts, event.name, times)
        tokens, since = self._tokens.get(event.pod.uid, (float(_BURST), at))
        tokens = min(float(_BURST), tokens + (at - since) / _PERIOD)
        admitted = tokens >= 1.0
        _remember(self._tokens, event.pod.uid, (tokens - 1.0 if admitted else tokens, at))
        return Admission(times, admitted)


def _remember(entries: OrderedDict[str, _T], key: str, value: _T) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > _REMEMBERED:
        entries.popitem(last=False)
