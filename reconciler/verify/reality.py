"""Compare the ledger with the actual state of nodes and pods.

Only a node's worker can see its namespaces and files. So the nodes get a command to compare themselves with the ledger.
They append all differences before their answer, so after the answer the fold has them. The
command itself changes nothing on a node; the reconciler may repair what a node then records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import NamedTuple

from events import subjects
from events.fold import Leaked, Sandbox
from events.ledger.commands import Commands
from events.ledger.ledger import Ledger, LedgerError
from events.ledger.new_event import new_event
from events.schema import (
    ComparisonRequested,
    Drift,
    Event,
    NodeCompared,
    NodeName,
    RequestId,
    WorkerStopped,
)
from reconciler.projection.fold.published import PodName, Published
from reconciler.status.pending import current_status
from reconciler.status.sink import PublishError, StatusSink
from reconciler.verify.replay import Replay
from reconciler.verify.report import Difference, Findings, Kind

PATIENCE = 30.0
"""Seconds within which a node must answer."""
_CONCURRENT = 32
"""Maximum number of concurrent comparisons."""


async def nodes(replay: Replay, commands: Commands, findings: Findings, patience: float = PATIENCE) -> int:
    """Add the differences between nodes and ledger to *findings*; return the number of answers.

    Afterwards *replay* is at the end of the ledger. Raises LedgerUnavailableError.
    """
    answered = 0
    for names in _chunks(sorted(_present(replay)), _CONCURRENT):
        answered += await _compared(replay.ledger, commands, names, findings, patience)
    await replay.advance(await replay.ledger.last_sequence())
    for key in replay.drifting:
        entry = replay.sandboxes.entry(key)
        assert entry is not None
        for drift in entry.sandbox.drifts:
            findings.add(_drift(entry.sandbox, drift))
    for (node, _), leaked in replay.state.leaks.items():
        findings.add(_leak(node, leaked))
    return answered


def _present(replay: Replay) -> set[NodeName]:
    """Return the nodes that should answer."""
    left = {node for node, stored in replay.latest.items() if isinstance(stored.event.data, WorkerStopped)}
    return (set(replay.latest) - left) | set(replay.live.values())


async def _compared(
    ledger: Ledger, commands: Commands, names: Sequence[NodeName], findings: Findings, patience: float
) -> int:
    begun = await ledger.last_sequence()
    waiting: dict[RequestId, NodeName] = {}
    for node in names:
        command = _command(node)
        try:
            await commands.send(command)
        except LedgerError as error:
            findings.unseen.append(f"node {node}: it can't get the command to compare itself: {error}")
        else:
            waiting[RequestId(command.id)] = node
    asked = len(waiting)
    try:
        async with (
            asyncio.timeout(patience),
            aclosing(ledger.follow((subjects.pattern(event_type=NodeCompared.__name__),), begun)) as events,
        ):
            while waiting:
                data = (await anext(events)).event.data
                if isinstance(data, NodeCompared) and (node := waiting.pop(data.request, None)) is not None:
                    findings.unseen += [f"node {node}: {reason}" for reason in data.unseen]
    except TimeoutError:
        findings.unseen += [
            f"node {node}: its worker did not answer within {patience:.0f} s; check whether it runs"
            for node in waiting.values()
        ]
    return asked - len(waiting)


def _command(node: NodeName) -> Event:
    return new_event(ComparisonRequested(request=RequestId(""), by="verify"), node=node)


def _drift(sandbox: Sandbox, drift: Drift) -> Difference:
    what = drift.kind.value.replace("_", " ")
    details = [f"recorded {drift.expected}" if drift.expected else "", f"found {drift.found}" if drift.found else ""]
    comparison = ", ".join(detail for detail in details if detail)
    return Difference(
        kind=Kind.DRIFT,
        message=(
            f"pod {sandbox.pod} on node {sandbox.node}: interface {drift.ifname} of network {drift.network}: {what}"
            f"{f' ({comparison})' if comparison else ''}; `plumbline timeline {sandbox.key.container_id[:12]}` shows "
            "whether a repair was tried; if drift.policy is not repair, detach and attach the pod again"
        ),
        node=sandbox.node,
        pod=str(sandbox.pod),
        sandbox=sandbox.key.container_id,
        network=drift.network,
    )


def _leak(node: NodeName, leaked: Leaked) -> Difference:
    observed = leaked.observed
    leak = observed.leak
    why = f"; its reclaim failed: {leaked.refused.message}" if leaked.refused is not None else ""
    evidence = f" ({', '.join(observed.evidence)})" if observed.evidence else ""
    return Difference(
        kind=Kind.LEAK,
        message=(
            f"node {node} holds {leak.what}{f' of network {leak.network}' if leak.network else ''} without an owner "
            f"since {leaked.first_at}: {leak.kind.value.replace('_', ' ')}{evidence}{why}; it is reclaimed when it is "
            "certain, unless leaks.policy forbids it"
        ),
        node=node,
        sandbox=leak.holder,
        network=leak.network,
    )


class _Expected(NamedTuple):
    uid: str
    text: str
    node: str
    sandbox: str
    sequence: int
    """Sequence of the record of the publication."""


async def statuses(replay: Replay, sink: StatusSink, findings: Findings) -> None:
    """Add the pods whose network-status differs from the ledger to *findings*. Raises LedgerUnavailableError."""
    expected_statuses = _expected_statuses(replay)
    try:
        async with aclosing(sink.read_all()) as listed:
            async for found in listed:
                expected = expected_statuses.get(found.pod)
                if expected is not None and (found.uid, found.text) == (expected.uid, expected.text):
                    del expected_statuses[found.pod]
        await replay.advance(await replay.ledger.last_sequence())
        for pod, expected in expected_statuses.items():
            row = replay.status_rows.get(pod)
            if row is None or row["sequence"] != expected.sequence:
                continue  # published again meanwhile
            found = await sink.read(pod)
            if found is not None and found.uid in ("", expected.uid) and found.text != expected.text:
                findings.add(_status(pod, expected, found.text))
    except PublishError as error:
        findings.unseen.append(f"network-status of pods: {error}")


def _expected_statuses(replay: Replay) -> dict[PodName, _Expected]:
    """Return the published status of each attached pod."""
    found: dict[PodName, _Expected] = {}
    newest: dict[PodName, int] = {}
    for _, group in groupby(replay.sandboxes.all(), lambda entry: entry.sandbox.key.container_id):
        same = list(group)
        boxes = [entry.sandbox for entry in same]
        if replay.node and boxes[-1].node != replay.node:
            continue
        pod = PodName(boxes[-1].pod.namespace, boxes[-1].pod.name)
        row = replay.status_rows.get(pod)
        if row is None or row["refused"] or newest.get(pod, 0) > same[-1].created:
            continue
        published = Published(row["uid"], row["intent"], row["text"], row["refused"], row["sequence"])
        current = current_status(boxes, published)
        if current is not None and not current.problem and current.intent == published.intent:
            newest[pod] = same[-1].created
            uid, text = current.status.pod.uid, current.status.text
            found[pod] = _Expected(uid, text, boxes[-1].node, boxes[-1].key.container_id, published.sequence)
    return found


def _status(pod: PodName, expected: _Expected, text: str | None) -> Difference:
    what = "is missing" if text is None else "was changed"
    return Difference(
        kind=Kind.STATUS,
        message=(
            f"pod {pod} on node {expected.node}: its network-status {what}; the reconciler restores it unless "
            "drift.policy forbids it: look for another writer"
        ),
        node=expected.node,
        pod=str(pod),
        sandbox=expected.sandbox,
    )


def _chunks(names: Sequence[NodeName], size: int) -> Iterator[Sequence[NodeName]]:
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]
