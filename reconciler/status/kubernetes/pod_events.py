"""Say on the pod itself what became of its attachments, because ``kubectl describe`` is where people look first.

Pure. Reasons and the text of ``AddedInterface`` are those of Multus, which people grep for. An Event is a notification:
the history is the ledger's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple, TypeVar

import msgspec

from events.cni_result import ResultError, read
from events.fold import Attachment, AttachmentPhase, Sandbox
from events.schema import AttachCompleted, AttachFailed, DetachFailed, ErrorClass, Event, Failure, NodeName, Pod

NORMAL, WARNING = "Normal", "Warning"
ADDED = "AddedInterface"
NOT_FOUND = "NoNetworkFound"
ATTACH_FAILED = "FailedAddingInterface"
DETACH_FAILED = "FailedRemovingInterface"

MESSAGE_LIMIT = 1024
"""Characters that the API server takes (core/v1 Event, events.k8s.io/v1 ``note``)."""
_REMEMBERED = 4096
_PERIOD = 300.0
_BURST = 25

_T = TypeVar("_T")


class PodEvent(msgspec.Struct, frozen=True):
    """One thing to say about a pod."""

    pod: Pod
    node: NodeName
    type: str
    reason: str
    message: str

    @property
    def name(self) -> str:
        """Name of the Event object: the same for the same words about the same pod, so that they are counted."""
        said = "\0".join((self.pod.uid, self.type, self.reason, self.message)).encode()
        return f"{self.pod.name}.{hashlib.sha256(said).hexdigest()[:16]}"


def pod_events(event: Event, sandbox: Sandbox | None) -> list[PodEvent]:
    """Return what *event* means for people who look at the pod; *sandbox* is as the ledger has it after *event*.

    A pod that is not known by its UID gets none: they would be taken for those of its successor.
    """
    if sandbox is None:
        return []
    pod = sandbox.plan.pod if sandbox.plan is not None and sandbox.plan.pod.uid else sandbox.pod
    if not pod.name or not pod.uid:
        return []
    match event.data:
        case AttachCompleted() if event.cause == sandbox.intent:
            made = [_added(pod, sandbox.node, attachment) for attachment in sandbox.attachments]
            return [each for each in made if each is not None]
        case AttachFailed(failure=failure):
            reason = NOT_FOUND if failure.error_class is ErrorClass.NETWORK_NOT_FOUND else ATTACH_FAILED
            return [_warning(pod, sandbox.node, reason, failure)]
        case DetachFailed(failure=failure):
            return [_warning(pod, sandbox.node, DETACH_FAILED, failure)]
        case _:
            return []


def _added(pod: Pod, node: NodeName, attachment: Attachment) -> PodEvent | None:
    if attachment.phase is not AttachmentPhase.ATTACHED:
        return None
    try:
        result = read(attachment.result, attachment.plan.cni_version)
    except ResultError:
        return None  # whoever publishes the status complains of it
    if not result.interfaces and not result.ips:
        return None
    addresses = " ".join(ip.address for ip in result.ips)
    message = f"Add {attachment.plan.ifname} [{addresses}] from {attachment.plan.network}"
    return PodEvent(pod, node, NORMAL, ADDED, message[:MESSAGE_LIMIT])


def _warning(pod: Pod, node: NodeName, reason: str, failure: Failure) -> PodEvent:
    message = failure.message
    if len(message) > MESSAGE_LIMIT:
        half = MESSAGE_LIMIT // 2 - 2
        message = f"{message[:half]} … {message[-half:]}"
    return PodEvent(pod, node, WARNING, reason, message)


class Said(NamedTuple):
    """How often something was said, and whether to say it now."""

    times: int
    now: bool


class Throttle:
    """Keeps one pod, or one broken network, from flooding the API server.

    As client-go's correlator does it: each pod has a burst of 25 Events, and then one every five minutes; the same
    words are one Event that counts. The least recently used of 4,096 pods is forgotten.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()

    def say(self, event: PodEvent, at: float) -> Said:
        """Return how often *event* was said, this time included; *at* is in seconds, of any clock that rises."""
        times = self._counts.get(event.name, 0) + 1
        _remember(self._counts, event.name, times)
        tokens, since = self._tokens.get(event.pod.uid, (float(_BURST), at))
        tokens = min(float(_BURST), tokens + (at - since) / _PERIOD)
        now = tokens >= 1.0
        _remember(self._tokens, event.pod.uid, (tokens - 1.0 if now else tokens, at))
        return Said(times, now)


def _remember(kept: OrderedDict[str, _T], key: str, value: _T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)
