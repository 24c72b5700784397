"""Commands: each becomes an intent once, and every intent has an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from msgspec.structs import replace

from events.ledger.commands import MemoryCommands
from events.ledger.ledger import Expect, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import (
    Command,
    ComparisonRequested,
    Data,
    Drift,
    DriftKind,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    ErrorClass,
    Event,
    EventId,
    Leak,
    LeakId,
    LeakKind,
    LeakReclaimed,
    LeakReclaimFailed,
    NetworkName,
    NodeCompared,
    NodeName,
    Phase,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    SandboxAdopted,
    Unknown,
    WorkerStarted,
    types_of,
)
from nodeworker.errors import failed
from nodeworker.journal.journal import Journal
from nodeworker.sandboxes import commands as module
from nodeworker.sandboxes.commands import CommandHandler
from tests.support.waiting import BOUND
from tests.support.worker.worker_harness import BOX, ETH0, NODE, PLANNED

DRIFT = Drift(kind=DriftKind.LINK_DOWN, network=NetworkName("n"), ifname=ETH0)
LEAK = Leak(id=LeakId("link/x"), kind=LeakKind.LINK_UNOWNED, what="x")
NOTHING = RequestId("")
REPAIR = RepairRequested(request=NOTHING, ifname=ETH0, drifts=(DRIFT,))
RECLAIM = ReclaimRequested(request=NOTHING, leak=LEAK)
COMPARISON = ComparisonRequested(request=NOTHING)


def event(data: Data, event_id: EventId | None = None, node: NodeName = NODE) -> Event:
    return Event(
        id=event_id or EventId(data.__class__.__name__),
        at="2026-01-01T00:00:00.000000000Z",
        node=node,
        boot_id="",
        epoch=0,
        sandbox=BOX,
        cause=EventId("observed"),
        trace="",
        data=data,
    )


class Handlers:
    """Handlers that succeed, or raise a given error."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def _may(self) -> None:
        if self.error is not None:
            raise self.error

    async def repair(self, event: Event, order: RepairRequested) -> DriftRepaired:
        self._may()
        return DriftRepaired(request=order.request, ifname=order.ifname, drifts=order.drifts)

    async def reclaim(self, event: Event, order: ReclaimRequested) -> LeakReclaimed:
        self._may()
        return LeakReclaimed(request=order.request, leak=order.leak)

    async def compare(self, event: Event, order: ComparisonRequested) -> NodeCompared:
        self._may()
        return NodeCompared(request=order.request, sandboxes=1)


class Flaky(MemoryLedger):
    def __init__(self) -> None:
        super().__init__()
        self.failures_left = 0

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        if self.failures_left:
            self.failures_left -= 1
            raise LedgerUnavailableError("down")
        return await super().append(event, expect)


class Bench:
    """A command handler with what it needs, without the rest of a worker."""

    def __init__(self) -> None:
        self.ledger = Flaky()
        self.commands = MemoryCommands()
        self.handlers = Handlers()
        self.missing: type[object] | None = None
        self._number = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CommandHandler]:
        journal = Journal(self.ledger, NODE)
        async for _ in journal.load():
            pass
        await journal.open_epoch(WorkerStarted(version="1", pid=1))
        handlers = {
            RepairRequested: self.handlers.repair,
            ReclaimRequested: self.handlers.reclaim,
            ComparisonRequested: self.handlers.compare,
        }
        handler = CommandHandler(journal, {kind: each for kind, each in handlers.items() if kind is not self.missing})
        tasks = [asyncio.create_task(handler.run(self.commands)), asyncio.create_task(self._serve(journal, handler))]
        try:
            yield handler
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _serve(self, journal: Journal, handler: CommandHandler) -> None:
        async for stored in journal.intents():
            assert isinstance(stored.event.data, Command)
            await handler.fulfil(stored.event, stored.event.data)

    async def send(self, data: Data, node: NodeName = NODE) -> Event:
        self._number += 1
        command = event(data, EventId(f"c{self._number}"), node)
        await self.commands.send(command)
        return command

    async def recorded(self) -> list[Event]:
        events = [stored.event async for stored in self.ledger.read()]
        return [event for event in events if not isinstance(event.data, WorkerStarted)]

    async def wait_for_events(self, count: int) -> list[Event]:
        """Return the events once there are *count*."""
        async with asyncio.timeout(BOUND):
            while len(events := await self.recorded()) < count:  # noqa: ASYNC110  # as in until
                await asyncio.sleep(0)
        return events


def said(data: Data) -> str:
    assert isinstance(data, DriftRepairFailed | LeakReclaimFailed | NodeCompared)
    return data.unseen[0] if isinstance(data, NodeCompared) else data.failure.message


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.001)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("order", "outcome"), [(REPAIR, DriftRepaired), (RECLAIM, LeakReclaimed), (COMPARISON, NodeCompared)]
)
async def test_a_command_becomes_an_intent_and_the_intent_has_an_outcome(
    bench: Bench, order: Command, outcome: type[object]
) -> None:
    async with bench.running():
        command = await bench.send(order)
        intent, closing = await bench.wait_for_events(2)
    assert isinstance(intent.data, Command)
    assert (intent.data.request, intent.data.command) == (command.id, 1)
    assert (intent.sandbox, intent.cause) == (BOX, "observed")
    assert isinstance(closing.data, outcome)
    assert closing.cause == intent.id


@pytest.mark.parametrize(
    ("order", "outcome"), [(REPAIR, DriftRepairFailed), (RECLAIM, LeakReclaimFailed), (COMPARISON, NodeCompared)]
)
@pytest.mark.parametrize(
    "error", [failed(ErrorClass.NOT_REPAIRABLE, Phase.REPAIR, "the parent is gone"), RuntimeError("the parent is gone")]
)
async def test_an_error_of_a_handler_is_recorded_as_an_outcome(
    bench: Bench, order: Command, outcome: type[object], error: Exception
) -> None:
    bench.handlers.error = error
    async with bench.running():
        await bench.send(order)
        closing = (await bench.wait_for_events(2))[1]
    assert isinstance(closing.data, outcome)
    assert "the parent is gone" in said(closing.data)


def test_every_command_type_is_tried_here() -> None:
    assert {type(each) for each in (REPAIR, RECLAIM, COMPARISON)} == types_of(Command)


async def test_a_repair_that_did_not_start_leaves_the_last_observation(bench: Bench) -> None:
    """Not the drift in the command: that is older, and only of networks that are repaired."""
    seen = (DRIFT, replace(DRIFT, kind=DriftKind.MTU_CHANGED))
    bench.handlers.error = failed(ErrorClass.EVIDENCE_CHANGED, Phase.REPAIR, "a newer observation differs")
    await bench.ledger.append(event(SandboxAdopted(ifname=ETH0, source="multus", plan=PLANNED, results=("{}",))))
    await bench.ledger.append(event(DriftObserved(ifname=ETH0, pod=Pod(), drifts=seen)))
    async with bench.running():
        await bench.send(REPAIR)
        closing = (await bench.wait_for_events(4))[-1]
    assert isinstance(closing.data, DriftRepairFailed)
    assert closing.data.left == seen


async def test_a_command_without_handler_is_refused(bench: Bench) -> None:
    bench.missing = RepairRequested
    async with bench.running():
        await bench.send(REPAIR)
        closing = (await bench.wait_for_events(2))[1]
    assert "is configured not to" in said(closing.data)


async def test_the_next_worker_continues_behind_the_last_command(bench: Bench) -> None:
    async with bench.running():
        await bench.send(REPAIR)
        await bench.wait_for_events(2)
    await bench.send(COMPARISON)
    async with bench.running():
        events = await bench.wait_for_events(4)
    assert [event.type for event in events].count("RepairRequested") == 1
    assert events[-1].type == "NodeCompared"


async def test_a_command_waits_while_the_ledger_is_down(bench: Bench) -> None:
    async with bench.running():
        bench.ledger.failures_left = 3
        await bench.send(REPAIR)
        await bench.wait_for_events(2)
    assert not bench.ledger.failures_left


async def test_commands_of_other_nodes_and_unknown_ones_are_skipped(bench: Bench) -> None:
    async with bench.running():
        await bench.send(REPAIR, NodeName("node-2"))
        await bench.send(Unknown(type="PortOpened", version=1, data=msgspec.Raw(b"{}")))
        await bench.send(COMPARISON)
        events = await bench.wait_for_events(2)
    assert [event.type for event in events] == ["ComparisonRequested", "NodeCompared"]
