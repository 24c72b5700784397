"""Reclaim commands: one after the second observation, and retries with backoff, forever, after refusals."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from events.ledger.commands import MemoryCommands
from events.ledger.ledger import ConflictError, Expect
from events.ledger.memory import MemoryLedger
from events.schema import (
    ContainerId,
    ErrorClass,
    Event,
    EventId,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    Phase,
    ReclaimRequested,
    RequestId,
)
from reconciler.decisions import leaks, reclaim_sender
from reconciler.decisions.reclaim_sender import ReclaimSender
from reconciler.follow.loop import Reconciler
from reconciler.metrics import Metrics
from reconciler.projection.store import Store
from tests.support.reconciler.running import Alone
from tests.support.stories.node import Node
from tests.support.stories.values import NETWORKS, failure_of
from tests.support.waiting import BOUND

FIRST_PAUSE, LAST_PAUSE, OVERDUE, WHILE = 0.1, 0.4, 0.5, 0.3
BOX = "a" * 64


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_FIRST_BACKOFF", FIRST_PAUSE)
    monkeypatch.setattr(leaks, "_MAX_BACKOFF", LAST_PAUSE)
    monkeypatch.setattr(leaks, "COMMAND_TIMEOUT", OVERDUE)
    monkeypatch.setattr(reclaim_sender, "delays", lambda: itertools.repeat(0.02))


class Sent(MemoryCommands):
    """Commands, with the time of each send."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[float, Event]] = []
        self.tried = 0
        self.replaced = False

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        self.tried += 1
        if self.replaced:
            raise ConflictError("another was elected")
        sequence = await super().send(command, expect)
        self.all.append((asyncio.get_running_loop().time(), command))
        return sequence


class World:
    """A node that reports leaks, and the commands that it gets."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.commands, self.node = MemoryLedger(), Sent(), Node()
        self._database = f"sqlite:///{folder}/x.db"
        self.metrics = Metrics()
        self.task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Run the sender during the block."""
        self.metrics = Metrics()
        store = Store(self._database, "NODE")
        keeper = ReclaimSender(self.commands, self.metrics)
        reconciler = Reconciler(self.ledger, store, Alone([keeper]), self.metrics)
        self.task = asyncio.create_task(reconciler.run())
        try:
            yield
        finally:
            self.task.cancel()
            await asyncio.wait({self.task})
            store.close()

    async def see(self, leak: Leak, sightings: int, node: Node | None = None) -> EventId:
        event = (node or self.node).event(LeakObserved(leak=leak, sightings=sightings), leak.sandbox)
        await self.ledger.append(event)
        return event.id

    async def record_outcome(self, command: Event, error_class: ErrorClass | None, *, request: str = "") -> None:
        """Answer *command*: done, or refused with *error_class*."""
        assert isinstance(command.data, ReclaimRequested)
        leak, answered = command.data.leak, RequestId(request or command.id)
        data = LeakReclaimed(request=answered, leak=leak)
        if error_class is not None:
            failure = failure_of(Phase.RECLAIM, NETWORKS[0])
            failure = type(failure)(error_class=error_class, phase=failure.phase, message="no", code=999)
            data = LeakReclaimFailed(request=answered, leak=leak, failure=failure)
        await self.ledger.append(self.node.event(data, leak.sandbox, command.id))

    async def asked(self, count: int) -> Sequence[tuple[float, Event]]:
        """Return the commands once there are *count*."""
        async with asyncio.timeout(BOUND):
            while len(self.commands.all) < count:
                await asyncio.sleep(0.005)
                assert self.task is not None
                assert not self.task.done() or self.task.result()
        assert len(self.commands.all) == count
        return self.commands.all

    async def tried(self, count: int) -> None:
        """Wait for *count* attempts to send."""
        async with asyncio.timeout(BOUND):
            while self.commands.tried < count:  # noqa: ASYNC110  # another task does it
                await asyncio.sleep(0.005)

    async def asked_no_more_than(self, count: int, seconds: float = WHILE) -> None:
        await asyncio.sleep(seconds)
        assert len(self.commands.all) == count


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def leak(number: int = 9, kind: LeakKind = LeakKind.ADDRESS_UNOWNED) -> Leak:
    path = f"/var/lib/cni/networks/n/10.0.0.{number}"
    holder = ContainerId(BOX)
    return Leak(id=LeakId(f"file/{path}"), kind=kind, what=f"10.0.0.{number}", holder=holder, path=path)


@pytest.mark.parametrize("kind", [LeakKind.ADDRESS_UNOWNED, LeakKind.SANDBOX_GONE])
async def test_a_leak_seen_twice_is_reclaimed_by_the_second_observation(world: World, kind: LeakKind) -> None:
    lost = leak(kind=kind)
    async with world.kept():
        await world.see(lost, 1)
        await world.asked_no_more_than(0)
        second = await world.see(lost, 2)
        ((_, command),) = await world.asked(1)
        await world.asked_no_more_than(1)
    assert isinstance(command.data, ReclaimRequested)
    assert (command.data.leak, command.cause, command.node) == (lost, second, "node-1")
    assert (command.data.request, command.sandbox) == (command.id, lost.sandbox)


async def test_a_closed_leak_is_not_reclaimed(world: World) -> None:
    back = LeakObserved(leak=leak(), gone=True)
    async with world.kept():
        await world.see(leak(), 1)
        await world.ledger.append(world.node.event(back))
        await world.see(leak(), 1)
        await world.asked_no_more_than(0)
        await world.see(leak(), 2)
        ((_, command),) = await world.asked(1)
        await world.record_outcome(command, ErrorClass.PLUGIN_FAILED)
        await world.ledger.append(world.node.event(back))
        await world.asked_no_more_than(1, 3 * FIRST_PAUSE + OVERDUE)
        assert world.metrics.registry.get_sample_value("plumbline_reconciler_leaks_open") == 0


async def test_a_leak_closed_before_the_send_is_not_reclaimed(world: World) -> None:
    world.commands.available = False
    async with world.kept():
        for number in (1, 2):
            await world.see(leak(number), 2)
        await world.tried(3)
        for number in (1, 2):
            await world.ledger.append(world.node.event(LeakObserved(leak=leak(number), gone=True)))
        await asyncio.sleep(0.1)
        world.commands.available = True
        await world.asked_no_more_than(0)
        latest = await world.see(leak(1), 2)
        ((_, command),) = await world.asked(1)
        assert command.cause == latest


async def test_an_unsent_command_is_sent_later_and_once(world: World) -> None:
    world.commands.available = False
    async with world.kept():
        await world.see(leak(), 2)
        await world.tried(5)
        world.commands.available = True
        await world.asked(1)
        await world.asked_no_more_than(1)


async def test_a_refused_reclaim_is_retried_with_backoff_forever(world: World) -> None:
    async with world.kept():
        await world.see(leak(), 2)
        refused: list[float] = []
        for count in range(1, 7):
            *_, (_, command) = await world.asked(count)
            await world.record_outcome(command, ErrorClass.PLUGIN_FAILED)
            refused.append(asyncio.get_running_loop().time())
    sent = [at for at, _ in world.commands.all]
    pauses = [later - before for later, before in zip(sent[1:], refused, strict=False)]
    wanted = [min(LAST_PAUSE, FIRST_PAUSE * 2**number) for number in range(5)]
    assert all(pause >= want for pause, want in zip(pauses, wanted, strict=True)), pauses
    assert len({command.id for _, command in world.commands.all}) == 6


async def test_a_new_observation_is_reclaimed_without_backoff(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_FIRST_BACKOFF", 3600.0)
    monkeypatch.setattr(leaks, "COMMAND_TIMEOUT", 3600.0)  # on a slow machine it would come first
    async with world.kept():
        await world.see(leak(), 2)
        ((_, command),) = await world.asked(1)
        await world.record_outcome(command, ErrorClass.EVIDENCE_CHANGED)
        await world.asked_no_more_than(1)
        latest = await world.see(leak(), 2)
        *_, (_, command) = await world.asked(2)
        assert command.cause == latest


async def test_an_unanswered_command_is_repeated_after_the_timeout(world: World) -> None:
    async with world.kept():
        await world.see(leak(), 2)
        ((_, command),) = await world.asked(1)
        await world.record_outcome(command, ErrorClass.PLUGIN_FAILED, request="another")
        (first, _), (second, _) = await world.asked(2)
    assert second - first > OVERDUE


async def test_a_reclaimed_leak_is_done_and_its_recurrence_is_new(world: World) -> None:
    async with world.kept():
        await world.see(leak(), 2)
        ((_, command),) = await world.asked(1)
        await world.record_outcome(command, None)
        await world.asked_no_more_than(1, OVERDUE + 3 * FIRST_PAUSE)
        await world.see(leak(), 2)
        await world.asked(2)


async def test_a_start_takes_up_the_open_leaks(world: World) -> None:
    latest = await world.see(leak(1), 2)
    await world.see(leak(2), 1)
    async with world.kept():
        ((_, command),) = await world.asked(1)
        assert command.cause == latest
        assert world.metrics.registry.get_sample_value("plumbline_reconciler_leaks_open") == 2
    async with world.kept():
        await world.asked(2)  # the node takes one of the two


async def test_a_silent_node_has_limited_commands_and_delays_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "COMMAND_TIMEOUT", 3600.0)
    async with world.kept():
        for number in range(leaks.MAX_CONCURRENT + 5):
            await world.see(leak(number), 2)
        await world.asked(leaks.MAX_CONCURRENT)
        await world.see(leak(1), 2, Node("node-2"))
        *_, (_, command) = await world.asked(leaks.MAX_CONCURRENT + 1)
        assert command.node == "node-2"
        await world.record_outcome(world.commands.all[0][1], None)
        await world.asked(leaks.MAX_CONCURRENT + 2)


async def test_a_replaced_sender_sends_no_more_commands(world: World) -> None:
    world.commands.replaced = True
    async with world.kept():
        await world.see(leak(), 2)
        assert world.task is not None
        done, _ = await asyncio.wait({world.task}, timeout=20)
        assert done
        with pytest.raises(ExceptionGroup) as raised:
            world.task.result()
        assert raised.group_contains(ConflictError)
    assert (world.commands.tried, world.commands.all) == (1, [])
