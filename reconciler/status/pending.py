"""Decide which pods need a new publication of their network-status.

Pure. The functions compare the ledger's record of the last publication with the fold of the sandboxes. So a reconciler
that restarts publishes nothing twice and omits nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, Event, EventId, NodeName, Pod
from reconciler.projection.fold.published import PodName, Published, concerns_status
from reconciler.status.text import PodStatus, StatusError, pod_status


class PendingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A status to publish."""

    pod: PodName
    status: PodStatus
    problem: str = ""
    """Why no text could be rendered; empty: there is a text."""
    before: PodStatus | None = None
    """The published status, as far as the ledger knows."""
    sandbox: SandboxKey
    node: NodeName
    intent: EventId
    since: str
    """Time of the attach, RFC 3339."""


def pending_status(sandboxes: Sequence[Sandbox], published: Published | None) -> PendingStatus | None:
    """Return the status to publish for the pod with *sandboxes*, oldest first; None: nothing to do.

    Nothing to do: the ledger's last record is about the newest sandbox, and has the current text or a final refusal.
    """
    attached = _attached(sandboxes)
    if not attached:
        return None
    if published is None or published.intent != attached[-1].intent:
        return current_status(sandboxes, published)
    if published.refused or published.sequence > attached[-1].sequence:
        return None  # nothing happened since the publication; a rendering would be expensive
    found = current_status(sandboxes, published)
    return None if found is not None and found.status.text == published.text else found


def current_status(sandboxes: Sequence[Sandbox], published: Published | None) -> PendingStatus | None:
    """Return the current status of the pod, published or not; None: the pod has no status."""
    attached = _attached(sandboxes)
    if not attached:
        return None
    newest = attached[-1]
    pod = _planned_pod(newest)
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
    return PendingStatus(
        pod=name,
        status=PodStatus(pod, text),
        problem=problem,
        before=_published_status(name, published),
        sandbox=newest.key,
        node=newest.node,
        intent=newest.intent,
        since=newest.changed_at,
    )


def newly_pending(
    events: Sequence[tuple[Event, Sandbox | None]],
    sandboxes: Mapping[SandboxKey, Sandbox],
    published: Mapping[PodName, Published],
) -> list[PendingStatus]:
    """Return the statuses to publish after *events*.

    *events* has each event with its sandbox after it. *sandboxes* has the sandboxes of all their containers after the
    last event, oldest first. If a pod has two sandboxes, the last attached one decides.
    """
    containers: defaultdict[ContainerId, list[Sandbox]] = defaultdict(list)
    for key, box in sandboxes.items():
        containers[key.container_id].append(box)
    pending: dict[PodName, PendingStatus] = {}
    for event, sandbox in events:
        if sandbox is None or not concerns_status(event, sandbox):
            continue
        name = PodName(sandbox.pod.namespace, sandbox.pod.name)
        if (found := pending_status(containers[sandbox.key.container_id], published.get(name))) is not None:
            pending[name] = found
    return list(pending.values())


def _attached(sandboxes: Sequence[Sandbox]) -> list[Sandbox]:
    """Return the attached sandboxes whose status is published at all."""
    return [box for box in sandboxes if box.phase is SandboxPhase.ATTACHED and box.plan and box.plan.publish]


def _planned_pod(sandbox: Sandbox) -> Pod:
    """Return the pod as the cluster knows it: the plan has its UID from the API server."""
    planned = sandbox.plan.pod if sandbox.plan is not None else Pod()
    return planned if planned.name else sandbox.pod


def _published_status(pod: PodName, published: Published | None) -> PodStatus | None:
    if published is None or published.refused:
        return None
    return PodStatus(Pod(pod.namespace, pod.name, published.uid), published.text)
