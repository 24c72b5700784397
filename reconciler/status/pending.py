"""Decide whose network-status has to be published.

Pure. What the ledger says was published is compared with what the sandbox's fold says there is to publish, so that a
reconciler that starts anew writes nothing twice and misses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import AttachCompleted, ContainerId, Event, EventId, InterfaceAttached, NodeName, Pod, SandboxAdopted
from reconciler.status.text import PodName, PodStatus, StatusError, pod_status


class Published(NamedTuple):
    """The last word of the ledger about a pod's status."""

    uid: str
    intent: str
    """Of the attach that it was published for."""
    text: str
    refused: bool
    """True: the status can't be published."""
    sequence: int = 0
    """Of the event that says so."""


class PendingStatuses(msgspec.Struct, frozen=True, kw_only=True):
    """A status that has to be published."""

    pod: PodName
    status: PodStatus
    problem: str = ""
    """Why the status can't even be told; empty: it can."""
    before: PodStatus | None = None
    """What the pod's status says by now, as far as the ledger knows."""
    sandbox: SandboxKey
    node: NodeName
    intent: EventId
    since: str
    """When the sandbox was attached, RFC 3339."""


def became_attached(event: Event, sandbox: Sandbox | None) -> bool:
    """Return whether *event* is what *sandbox*, as it is after it, became attached by."""
    if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED:
        return False
    match event.data:
        case AttachCompleted():
            return event.cause == sandbox.intent  # others answer an ADD that was repeated
        case SandboxAdopted():
            return True
        case _:
            return False


def concerns_status(event: Event, sandbox: Sandbox | None) -> bool:
    """Return whether the status of the pod of *sandbox* may have to be published after *event*.

    That is when it became attached, and when an interface of it was made again, with another result maybe.
    """
    if became_attached(event, sandbox):
        return True
    attached = sandbox is not None and sandbox.phase is SandboxPhase.ATTACHED
    return attached and isinstance(event.data, InterfaceAttached)


def due(sandboxes: Sequence[Sandbox], published: Published | None) -> PendingStatuses | None:
    """Return what has to be published for the pod that *sandboxes*, oldest first, are of; None when nothing has.

    Nothing has when the ledger's last word is of the newest sandbox and says what is to be said, or that it can't be.
    """
    attached = _published_for(sandboxes)
    if not attached:
        return None
    if published is None or published.intent != attached[-1].intent:
        return told(sandboxes, published)
    if published.refused or published.sequence > attached[-1].sequence:
        return None  # what was published later than its last event is as it should be; to tell it again takes long
    found = told(sandboxes, published)
    return None if found is not None and found.status.text == published.text else found


def told(sandboxes: Sequence[Sandbox], published: Published | None) -> PendingStatuses | None:
    """Return what the pod's status has to say, whether it does or not; None: nobody has to say anything."""
    attached = _published_for(sandboxes)
    if not attached:
        return None
    newest = attached[-1]
    pod = _as_the_cluster_knows_it(newest)
    name = PodName(pod.namespace, pod.name)
    text, problem = "", ""
    try:
        status = pod_status([box for box in attached if box.key.container_id == newest.key.container_id])
    except StatusError as error:
        problem = str(error)
    else:
        if status is None:
            return None
        text = status.text
    return PendingStatuses(
        pod=name,
        status=PodStatus(pod, text),
        problem=problem,
        before=_said(name, published),
        sandbox=newest.key,
        node=newest.node,
        intent=newest.intent,
        since=newest.changed_at,
    )


def newly_due(
    story: Sequence[tuple[Event, Sandbox | None]],
    sandboxes: Mapping[SandboxKey, Sandbox],
    published: Mapping[PodName, Published],
) -> list[PendingStatuses]:
    """Return what has to be published now that the events of *story* have happened.

    *story* has each event with its sandbox as it was after it; *sandboxes* are those of all containers in it, as they
    are after the last, oldest first. Of two sandboxes of a pod, the pod's status is that of the one attached last.
    """
    containers: defaultdict[ContainerId, list[Sandbox]] = defaultdict(list)
    for key, box in sandboxes.items():
        containers[key.container_id].append(box)
    dues: dict[PodName, PendingStatuses] = {}
    for event, sandbox in story:
        if sandbox is None or not concerns_status(event, sandbox):
            continue
        name = PodName(sandbox.pod.namespace, sandbox.pod.name)
        if (found := due(containers[sandbox.key.container_id], published.get(name))) is not None:
            dues[name] = found
    return list(dues.values())


def _published_for(sandboxes: Sequence[Sandbox]) -> list[Sandbox]:
    return [box for box in sandboxes if box.phase is SandboxPhase.ATTACHED and box.plan and box.plan.publish]


def _as_the_cluster_knows_it(sandbox: Sandbox) -> Pod:
    planned = sandbox.plan.pod if sandbox.plan is not None else Pod()
    return planned if planned.name else sandbox.pod


def _said(pod: PodName, published: Published | None) -> PodStatus | None:
    if published is None or published.refused:
        return None
    return PodStatus(Pod(pod.namespace, pod.name, published.uid), published.text)
