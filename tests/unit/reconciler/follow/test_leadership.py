"""One of several replicas leads, another replaces it within seconds, and the previous leader can't write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from events.ledger.commands import MemoryCommands
from events.ledger.election import ELECTION
from events.ledger.ledger import ConflictError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.ledger.notices import RECONCILER_PRESENT
from events.schema import ComparisonRequested, RequestId
from reconciler.follow import leadership, term
from reconciler.follow.leadership import ElectedLeadership
from reconciler.follow.listeners import Listener
from reconciler.follow.term import Term
from reconciler.metrics import Metrics
from tests.support.stories.node import Node
from tests.support.waiting import until


class Clock:
    """A clock instead of the time since boot; it follows the event loop's clock, and can be advanced."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(term, "now", clock)
    monkeypatch.setattr(leadership, "now", clock)
    monkeypatch.setattr(leadership, "PRESENCE_INTERVAL", 0.02)
    monkeypatch.setattr(leadership, "PRESENCE_LOST", 0.3)
    monkeypatch.setattr(term, "CHECK_VALID", 0.2)
    monkeypatch.setattr(leadership, "ANSWER_TIMEOUT", 0.05)
    return clock


class Replica:
    """One replica, whose network can be cut."""

    def __init__(
        self, ledger: MemoryLedger, commands: MemoryCommands, name: str, *, only_replica: bool = False
    ) -> None:
        self.metrics = Metrics()
        self.turns: list[Term] = []
        self.serving = False
        self.since: list[int] = []
        self.leadership = ElectedLeadership(
            ledger, ledger, commands, self._appoint, self.metrics, name=name, only_replica=only_replica
        )
        self.task = asyncio.create_task(self.leadership.run(self._serve))

    def _appoint(self, turn: Term) -> Sequence[Listener]:
        self.turns.append(turn)
        return []

    async def _serve(self, since: int, listeners: Sequence[Listener]) -> None:
        self.serving = True
        self.since.append(since)
        try:
            await asyncio.Event().wait()
        finally:
            self.serving = False

    async def until(self, *, serving: bool) -> None:
        await until(lambda: self.serving is serving, self.task)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def commands() -> MemoryCommands:
    return MemoryCommands()


@contextlib.asynccontextmanager
async def several(ledger: MemoryLedger, commands: MemoryCommands, count: int) -> AsyncIterator[list[Replica]]:
    found: list[Replica] = []
    for number in range(count):
        found.append(Replica(ledger, commands, f"r{number}"))
        if number == 0:
            await found[0].until(serving=True)
    try:
        yield found
    finally:
        for replica in found:
            await replica.stop()


async def elections(ledger: MemoryLedger) -> int:
    return len([stored async for stored in ledger.read(ELECTION)])


async def test_the_first_replica_leads_at_once_and_the_others_wait(
    ledger: MemoryLedger, commands: MemoryCommands
) -> None:
    async with several(ledger, commands, 3) as (first, *others):
        await asyncio.sleep(1.0)
        assert first.serving
        assert not any(other.serving for other in others)
        assert await elections(ledger) == 1
        assert first.metrics.registry.get_sample_value("plumbline_reconciler_active") == 1.0
        assert others[0].metrics.registry.get_sample_value("plumbline_reconciler_active") == 0.0


async def test_a_leader_that_leaves_in_order_is_replaced_at_once(
    ledger: MemoryLedger, commands: MemoryCommands
) -> None:
    async with several(ledger, commands, 2) as (first, second):
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        await first.stop()
        await second.until(serving=True)
        assert asyncio.get_running_loop().time() - began < 0.3
        assert second.since == [await ledger.last_sequence()]


async def test_one_of_several_waiting_replicas_takes_over(ledger: MemoryLedger, commands: MemoryCommands) -> None:
    async with several(ledger, commands, 5) as (first, *others):
        await asyncio.sleep(0.1)
        await first.stop()
        await asyncio.sleep(1.0)
        assert sum(other.serving for other in others) == 1


async def test_a_replaced_leader_steps_down_and_its_writes_are_refused(
    ledger: MemoryLedger, commands: MemoryCommands
) -> None:
    async with several(ledger, commands, 1) as (first,):
        (turn,) = first.turns
        gauges = [first.metrics.drift.open, first.metrics.leaks_open, first.metrics.status_pending]
        for gauge in gauges:
            gauge.set_function(lambda: 3)  # as the leader's listeners do
        newer = Replica(ledger, commands, "newer", only_replica=True)
        await newer.until(serving=True)
        await first.until(serving=False)
        await until(lambda: [sample.value for g in gauges for m in g.collect() for sample in m.samples] == [0, 0, 0])
        before = await ledger.last_sequence()
        node = Node("")
        with pytest.raises(ConflictError):
            await turn.ledger.append(node.event(ComparisonRequested(request=RequestId("r"))))
        with pytest.raises(ConflictError):
            await turn.commands.send(Node("node-1").event(ComparisonRequested(request=RequestId("r"))))
        assert await ledger.last_sequence() == before
        assert await commands.last("plumbline.cmd.node-1.>") is None
        await asyncio.sleep(0.5)
        assert newer.serving
        assert not first.serving
        await newer.stop()


async def test_a_conflict_alone_ends_the_term(ledger: MemoryLedger, commands: MemoryCommands) -> None:
    """Also without any notice."""
    async with several(ledger, commands, 1) as (first,):
        (turn,) = first.turns
        other = Node("").event(turn.mandate.event.data)
        await ledger.append(other)
        with pytest.raises(ConflictError):
            await turn.ledger.append(Node("x").event(ComparisonRequested(request=RequestId("r"))))
        await first.until(serving=False)
        await first.until(serving=True)  # the other's notices never arrive
        assert len(first.turns) == 2


async def test_a_frozen_leader_checks_before_it_writes(
    ledger: MemoryLedger, commands: MemoryCommands, clock: Clock
) -> None:
    async with several(ledger, commands, 1) as (first,):
        (turn,) = first.turns
        await turn.confirm()
        await ledger.append(Node("").event(turn.mandate.event.data))  # another one, while this one is frozen
        clock.ahead += 3600.0
        with pytest.raises(ConflictError):
            await turn.confirm()
        assert turn.over.is_set()


async def test_a_cut_off_leader_waits_and_resumes_without_successor(
    ledger: MemoryLedger, commands: MemoryCommands
) -> None:
    async with several(ledger, commands, 1) as (first,):
        (turn,) = first.turns
        ledger.available = False
        await asyncio.sleep(0.4)
        with pytest.raises(LedgerUnavailableError):
            await turn.confirm()
        ledger.available = True
        await turn.confirm()
        assert first.serving


async def test_a_frozen_replica_asks_before_it_tries_an_election(
    ledger: MemoryLedger, commands: MemoryCommands, clock: Clock
) -> None:
    async with several(ledger, commands, 2) as (first, second):
        await asyncio.sleep(0.1)
        clock.ahead += 3600.0
        await asyncio.sleep(0.5)
        assert first.serving
        assert not second.serving
        assert await elections(ledger) == 1


async def test_an_unreachable_ledger_is_retried(
    ledger: MemoryLedger, commands: MemoryCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "delays", lambda: iter([0.01] * 1000))
    ledger.available = False
    replica = Replica(ledger, commands, "r")
    await asyncio.sleep(0.1)
    ledger.available, commands.available = True, False
    await asyncio.sleep(0.1)
    assert not replica.serving
    commands.available = True
    await replica.until(serving=True)
    await replica.stop()


async def test_malformed_notices_are_ignored(ledger: MemoryLedger, commands: MemoryCommands) -> None:
    async with several(ledger, commands, 2) as (first, second):
        for payload in (b"", b"{", b"\xff", b'{"replica": 1}', b'{"replica": "old", "epoch": 0, "leaves": true}'):
            await ledger.publish(RECONCILER_PRESENT, payload)
        await asyncio.sleep(0.5)
        assert (first.serving, second.serving) == (True, False)


async def test_a_defect_of_a_listener_ends_the_process(ledger: MemoryLedger, commands: MemoryCommands) -> None:
    def broken(turn: Term) -> Sequence[Listener]:
        raise RuntimeError("broken")

    elected = ElectedLeadership(ledger, ledger, commands, broken, Metrics(), name="r", only_replica=True)

    async def serve(since: int, listeners: Sequence[Listener]) -> None:
        raise AssertionError

    with pytest.raises(ExceptionGroup):
        await elected.run(serve)
