"""Compare the ledger with the actual state of nodes and pods.

Only a node's worker can see its namespaces and files. So the nodes get a command to compare themselves with the ledger.
They append all differences before their answer, so after the answer the fold has them. No command changes anything on a
node.
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
_TOGETHER = 32
"""Maximum number of concurrent comparisons."""


async def nodes(replay: Replay, commands: Commands, findings: Findings, patience: float = PATIENCE) -> int:
    """Add the differences between nodes and ledger to *findings*; return the number of answers.

    Afterwards *replay* is at the end of the ledger. Raises LedgerUnavailableError.
    """
    answered = 0
    for some in _chunks(sorted(_present(replay)), _TOGETHER):
        answered += await _compared(replay.ledger, commands, some, findings, patience)
    await replay.go_on(await replay.ledger.last_sequence())
    for key in replay.drifting:
        kept = replay.shelf.kept(key)
        assert kept is not None
        for drift in kept.sandbox.drifts:
            findings.add(_drift(kept.sandbox, drift))
    for (node, _), leaked in replay.state.leaks.items():
        findings.add(_leak(node, leaked))
    return answered


def _present(replay: Replay) -> set[NodeName]:
    """Return the nodes that should answer."""
    left = {node for node, stored in replay.latest.items() if isinstance(stored.event.data, WorkerStopped)}
    return (set(replay.latest) - left) | set(replay.live.values())


async def _compared(
    ledger: Ledger, commands: Commands, some: Sequence[NodeName], findings: Findings, patience: float
) -> int:
    begun = await ledger.last_sequence()
    waiting: dict[RequestId, NodeName] = {}
    for node in some:
        command = _command(node)
        try:
            await commands.send(command)
        except LedgerError as error:
            findings.unseen.append(f"node {node}: it can't be asked to compare itself: {error}")
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
            f"node {node}: its worker did not answer within {patience:.0f} s; look whether it runs"
            for node in waiting.values()
        ]
    return asked - len(waiting)


def _command(node: NodeName) -> Event:
    return new_event(ComparisonRequested(request=RequestId(""), by="verify"), node=node)


def _drift(sandbox: Sandbox, drift: Drift) -> Difference:
    what = drift.kind.value.replace("_", " ")
    details = [f"recorded {drift.expected}" if drift.expected else "", f"found {drift.found}" if drift.found else ""]
    told_of = ", ".join(detail for detail in details if detail)
    return Difference(
        kind=Kind.DRIFT,
        message=(
            f"pod {sandbox.pod} on node {sandbox.node}: interface {drift.ifname} of network {drift.network}: {what}"
            f"{f' ({told_of})' if told_of else ''}; `plumbline timeline {sandbox.key.container_id[:12]}` tells whether "
            "its repair was tried; where drift.policy is not repair, detach and attach the pod again"
        ),
        node=sandbox.node,
        pod=str(sandbox.pod),
        sandbox=sandbox.key.container_id,
        network=drift.network,
    )


def _leak(node: NodeName, leaked: Leaked) -> Difference:
    observed = leaked.observed
    leak = observed.leak
    why = f"; freeing it failed: {leaked.refused.message}" if leaked.refused is not None else ""
    evidence = f" ({', '.join(observed.evidence)})" if observed.evidence else ""
    return Difference(
        kind=Kind.LEAK,
        message=(
            f"node {node} holds {leak.what}{f' of network {leak.network}' if leak.network else ''} for nobody since "
            f"{leaked.first_at}: {leak.kind.value.replace('_', ' ')}{evidence}{why}; it is freed when it is certain, "
            "unless leaks.policy says otherwise"
        ),
        node=node,
        sandbox=leak.holder,
        network=leak.network,
    )


class _Wanted(NamedTuple):
    uid: str
    text: str
    node: str
    sandbox: str
    sequence: int
    """Sequence of the record of the publication."""


async def statuses(replay: Replay, sink: StatusSink, findings: Findings) -> None:
    """Add the pods whose network-status differs from the ledger to *findings*. Raises LedgerUnavailableError."""
    wanted = _wanted(replay)
    try:
        async with aclosing(sink.read_all()) as listed:
            async for found in listed:
                expected = wanted.get(found.pod)
                if expected is not None and (found.uid, found.text) == (expected.uid, expected.text):
                    del wanted[found.pod]
        await replay.go_on(await replay.ledger.last_sequence())
        for pod, expected in wanted.items():
            row = replay.words.get(pod)
            if row is None or row["sequence"] != expected.sequence:
                continue  # published again meanwhile
            found = await sink.read(pod)
            if found is not None and found.uid in ("", expected.uid) and found.text != expected.text:
                findings.add(_status(pod, expected, found.text))
    except PublishError as error:
        findings.unseen.append(f"network-status of pods: {error}")


def _wanted(replay: Replay) -> dict[PodName, _Wanted]:
    """Return the published status of each attached pod."""
    found: dict[PodName, _Wanted] = {}
    newest: dict[PodName, int] = {}
    for _, group in groupby(replay.shelf.all(), lambda kept: kept.sandbox.key.container_id):
        same = list(group)
        boxes = [kept.sandbox for kept in same]
        if replay.node and boxes[-1].node != replay.node:
            continue
        pod = PodName(boxes[-1].pod.namespace, boxes[-1].pod.name)
        row = replay.words.get(pod)
        if row is None or row["refused"] or newest.get(pod, 0) > same[-1].created:
            continue
        said = Published(row["uid"], row["intent"], row["text"], row["refused"], row["sequence"])
        due = current_status(boxes, said)
        if due is not None and not due.problem and due.intent == said.intent:
            newest[pod] = same[-1].created
            uid, text = due.status.pod.uid, due.status.text
            found[pod] = _Wanted(uid, text, boxes[-1].node, boxes[-1].key.container_id, said.sequence)
    return found


def _status(pod: PodName, expected: _Wanted, text: str | None) -> Difference:
    what = "is missing" if text is None else "was changed"
    return Difference(
        kind=Kind.STATUS,
        message=(
            f"pod {pod} on node {expected.node}: its network-status {what}; the reconciler brings it back unless "
            "drift.policy says otherwise: look for who else writes it"
        ),
        node=expected.node,
        pod=str(pod),
        sandbox=expected.sandbox,
    )


def _chunks(names: Sequence[NodeName], size: int) -> Iterator[Sequence[NodeName]]:
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]
