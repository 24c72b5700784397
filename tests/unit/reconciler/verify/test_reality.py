"""Verification of reality: nodes and pods are observed again, and missing checks are reported."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.exit_codes import ExitCode
from events.ledger.commands import MemoryCommands
from events.ledger.memory import MemoryLedger
from events.schema import (
    AttachCompleted,
    AttachWarning,
    ComparisonRequested,
    Event,
    NetworkName,
    NodeCompared,
    NodeName,
    Pod,
    RequestId,
    StatusPublished,
    WarningKind,
    WorkerStopped,
)
from reconciler.projection.store import Store
from reconciler.status.folder_sink import FolderSink
from reconciler.status.text import pod_status
from reconciler.verify.replay import Replay
from reconciler.verify.report import Kind, Report, lines
from reconciler.verify.run import verify
from tests.support.stories.node import Node
from tests.support.stories.values import ETH0

BOX, POD = "a" * 64, Pod("shop", "web", "u")


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def commands() -> MemoryCommands:
    return MemoryCommands()


async def fill(ledger: MemoryLedger, events: Iterable[Event]) -> None:
    for event in events:
        await ledger.append(event)


@contextlib.asynccontextmanager
async def worker(
    ledger: MemoryLedger, commands: MemoryCommands, node: Node, *seen: Event, unseen: tuple[str, ...] = ()
) -> AsyncIterator[None]:
    """Answer like the worker of *node*: first its observations, then that it has compared."""

    async def answer() -> None:
        async for sequence, command in commands.receive(node.node):
            asked = node.event(ComparisonRequested(request=RequestId(command.id), by="verify", command=sequence))
            done = NodeCompared(request=RequestId(command.id), sandboxes=1, unseen=unseen)
            await fill(ledger, [asked, *seen, node.event(done, cause=asked.id)])

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def check(
    ledger: MemoryLedger,
    path: Path,
    commands: MemoryCommands | None,
    folder: FolderSink | None = None,
    *,
    node: str = "",
    patience: float = 20.0,
) -> Report:
    store = Store(f"sqlite:///{path}", "NODE")
    store.prepare()
    store.apply([stored async for stored in ledger.read()])
    store.close()
    database = f"sqlite:///{path}"
    return await verify(ledger, "NODE", database, commands, folder, node=NodeName(node), patience=patience)


async def test_a_node_as_recorded_has_no_differences(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    node = Node()
    await fill(ledger, [node.start(), *node.attach(BOX, POD)])
    async with worker(ledger, commands, node):
        report = await check(ledger, tmp_path / "x.db", commands)
    assert (report.exit_code, report.nodes, report.unseen) == (0, 1, ())


async def test_newly_seen_drift_is_reported_with_pod_network_and_remedy(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    node = Node()
    await fill(ledger, [node.start(), *node.attach(BOX, POD)])
    observed, *_ = node.drift(BOX, POD)
    leaked, *_ = node.leak("f" * 64)
    async with worker(ledger, commands, node, observed, leaked):
        report = await check(ledger, tmp_path / "x.db", commands)
    assert report.exit_code == 1
    drift, leak = report.differences
    assert (drift.kind, drift.pod, drift.network) == (Kind.DRIFT, "shop/web", "k8s-pod-network")
    assert "pod shop/web on node node-1: interface eth0 of network k8s-pod-network: link down" in drift.message
    assert "plumbline timeline aaaaaaaaaaaa" in drift.message
    assert leak.kind is Kind.LEAK
    assert "node node-1 holds 10.0.0.9 of network k8s-pod-network without an owner" in leak.message


async def test_warnings_of_live_sandboxes_are_listed_and_are_no_difference(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    node = Node()
    *before, completed = node.attach(BOX, POD)
    assert isinstance(completed.data, AttachCompleted)
    warning = AttachWarning(
        kind=WarningKind.DEVICE_MISSING, network=NetworkName("n"), ifname=ETH0, message="pod shop/web: look at it"
    )
    warned = replace(completed, data=replace(completed.data, warnings=(warning,)))
    await fill(ledger, [node.start(), *before, warned])
    async with worker(ledger, commands, node):
        report = await check(ledger, tmp_path / "x.db", commands)
        assert (report.exit_code, report.warnings) == (0, ("pod shop/web: look at it",))
        assert lines(report)[0] == "warning: pod shop/web: look at it"
        assert lines(report)[1].startswith("true (")
        await fill(ledger, node.detach(BOX, POD))
        assert (await check(ledger, tmp_path / "x.db", commands)).warnings == ()


async def test_missing_answers_and_partial_comparisons_are_unseen(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    up, down, left = Node("up"), Node("down"), Node("left")
    await fill(ledger, [up.start(), down.start(), left.start(), left.event(WorkerStopped(reason="drained"))])
    async with worker(ledger, commands, up, unseen=("no CRI socket",)):
        report = await check(ledger, tmp_path / "x.db", commands, patience=0.3)
    assert (report.exit_code, report.nodes) == (ExitCode.IN_PART, 1)
    assert sorted(report.unseen) == [
        "node down: its worker did not answer within 0 s; check whether it runs",
        "node up: no CRI socket",
    ]


async def test_a_check_of_one_node_asks_only_that_node(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    up, down = Node("up"), Node("down")
    await fill(ledger, [up.start(), down.start()])
    async with worker(ledger, commands, up):
        report = await check(ledger, tmp_path / "x.db", commands, node="up")
    assert (report.exit_code, report.nodes) == (0, 1)


async def test_an_absent_command_stream_is_reported(
    ledger: MemoryLedger, commands: MemoryCommands, tmp_path: Path
) -> None:
    await fill(ledger, [Node().start()])
    commands.available = False
    report = await check(ledger, tmp_path / "x.db", commands)
    assert report.exit_code == ExitCode.IN_PART
    assert "node node-1: it can't get the command to compare itself" in report.unseen[0]


async def published(ledger: MemoryLedger, folder: FolderSink) -> None:
    node = Node()
    attached = list(node.attach(BOX, POD))
    await fill(ledger, attached)
    replay = Replay(ledger)
    await replay.advance(await ledger.last_sequence())
    status = pod_status([kept.sandbox for kept in replay.sandboxes.all()])
    replay.close()
    assert status is not None
    await folder.put(status, None)
    data = StatusPublished(node=node.node, ifname=ETH0, pod=POD, text=status.text)
    await ledger.append(Node("").event(data, BOX, attached[0].id))


async def test_a_status_as_published_has_no_differences(ledger: MemoryLedger, tmp_path: Path) -> None:
    folder = FolderSink(tmp_path)
    await published(ledger, folder)
    await fill(ledger, Node("node-2").attach("b" * 64, Pod("shop", "not-yet", "u2")))
    report = await check(ledger, tmp_path / "x.db", None, folder)
    assert (report.exit_code, report.differences) == (0, ())


@pytest.mark.parametrize(("text", "words"), [(None, "is missing"), ("{}", "is missing")])
async def test_a_changed_or_removed_status_is_reported(
    ledger: MemoryLedger, tmp_path: Path, text: str | None, words: str
) -> None:
    folder, path = FolderSink(tmp_path), tmp_path / "status/shop/web.json"
    await published(ledger, folder)
    path.unlink() if text is None else path.write_text(text)
    report = await check(ledger, tmp_path / "x.db", None, folder)
    assert report.exit_code == 1
    (difference,) = report.differences
    assert (difference.kind, difference.pod) == (Kind.STATUS, "shop/web")
    assert f"its network-status {words}" in difference.message
