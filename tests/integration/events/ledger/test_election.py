"""Only one reconciler may write: in memory, on one nats-server, and on a cluster of three."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest

from events.ledger.commands import Commands, MemoryCommands
from events.ledger.election import FencedCommands, FencedLedger, Mandate, elect, last_election
from events.ledger.ledger import ConflictError, Expect, Ledger
from events.ledger.memory import MemoryLedger
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import command_stream
from events.schema import NO_NODE, ComparisonRequested, NodeName, ReconcilerElected, RequestId
from tests.support.nats.hub_servers import connect_hub
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND

NODE = NodeName("node-1")


class Hub(NamedTuple):
    ledger: Ledger
    commands: Commands

    async def elect(self, replica: str) -> Mandate:
        return await elect(self.ledger, self.commands, replica)


@pytest.fixture(params=["memory", "jetstream", "cluster"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Hub]:
    if request.param == "memory":
        yield Hub(MemoryLedger(), MemoryCommands())
        return
    if request.param == "jetstream":
        server: EmbeddedServer = request.getfixturevalue("server")
        ledger, replicas = await JetStreamLedger.connect(server.address), 1
    else:
        ledger, replicas = await connect_hub(request.getfixturevalue("three")), 3
    commands = JetStreamCommands(ledger)
    await commands.make(command_stream(replicas))
    yield Hub(ledger, commands)
    await ledger.close()


def elected_replica(event: object) -> str:
    assert isinstance(event, ReconcilerElected)
    return event.replica


async def test_only_the_last_elected_reconciler_may_write(both: Hub) -> None:
    assert await last_election(both.ledger) is None
    boxes, asks = EventFactory(NO_NODE), EventFactory(NODE)
    first = await both.elect("a")
    ledger, commands = FencedLedger(both.ledger, first), FencedCommands(both.commands, first)
    await ledger.append(boxes.note("of a", container(1)))
    await commands.send(asks.event(ComparisonRequested(request=RequestId("of-a"))))

    second = await both.elect("b")
    assert second.event.epoch == first.event.epoch + 1
    newest = await last_election(both.ledger)
    assert newest is not None
    assert elected_replica(newest.event.data) == "b"
    end = await both.ledger.last_sequence()
    with pytest.raises(ConflictError):
        await ledger.append(boxes.note("late, of a", container(2)))
    with pytest.raises(ConflictError):
        await commands.send(asks.event(ComparisonRequested(request=RequestId("late-of-a"))))
    assert await both.ledger.last_sequence() == end
    await FencedLedger(both.ledger, second).append(boxes.note("of b", container(3)))
    await FencedCommands(both.commands, second).send(asks.event(ComparisonRequested(request=RequestId("of-b"))))


async def test_one_of_many_concurrent_candidates_may_write(both: Hub) -> None:
    async def stand(replica: str) -> Mandate | None:
        try:
            return await both.elect(replica)
        except ConflictError:
            return None

    mandates = [mandate for mandate in await asyncio.gather(*(stand(str(n)) for n in range(8))) if mandate is not None]
    boxes, asks = EventFactory(NO_NODE), EventFactory(NODE)
    writers, senders = 0, 0
    for mandate in mandates:
        try:
            await FencedLedger(both.ledger, mandate).append(boxes.note(sandbox=container(1)))
            writers += 1
        except ConflictError:
            pass
        try:
            ask = asks.event(ComparisonRequested(request=RequestId("x")))
            await FencedCommands(both.commands, mandate).send(ask)
            senders += 1
        except ConflictError:
            pass
    assert writers <= 1
    assert senders <= 1
    assert await both.elect("afterwards")


async def test_concurrent_writes_of_the_elected_reconciler_succeed(both: Hub) -> None:
    ledger, boxes = FencedLedger(both.ledger, await both.elect("a")), EventFactory(NO_NODE)
    sequences = await asyncio.gather(*(ledger.append(boxes.note(sandbox=container(n))) for n in range(30)))
    assert len(set(sequences)) == 30


async def test_fenced_write_that_is_retried_is_stored_once(both: Hub) -> None:
    mandate = await both.elect("a")
    ledger, commands = FencedLedger(both.ledger, mandate), FencedCommands(both.commands, mandate)
    event, ask = EventFactory(NO_NODE).note(), EventFactory(NODE).event(ComparisonRequested(request=RequestId("x")))
    assert await ledger.append(event) == await ledger.append(event)
    assert await commands.send(ask) == await commands.send(ask)


async def test_epoch_continues_from_commands_after_ledger_lost_elections(both: Hub) -> None:
    for replica in ("a", "b", "c"):
        await both.elect(replica)
    mandate = await elect(MemoryLedger(), both.commands, "d")
    assert mandate.event.epoch == 4


async def test_fenced_event_refuses_another_condition(both: Hub) -> None:
    mandate = await both.elect("a")
    with pytest.raises(ValueError, match="fenced"):
        await FencedLedger(both.ledger, mandate).append(EventFactory(NO_NODE).note(), Expect("plumbline.ev.>", 0))


async def test_election_outlives_the_age_limit_of_its_stream(hub: JetStreamLedger) -> None:
    """Without it, the server would refuse the elected reconciler."""
    commands = JetStreamCommands(hub)
    await commands.make(command_stream(3))
    mandate = await elect(hub, commands, "a")
    await hub.append(EventFactory(NODE).note())
    limits = {"max_age": 1_000_000_000, "duplicate_window": 1_000_000_000}
    for stream in (hub.stream, "COMMANDS"):
        await shorten(hub, stream, limits)
    async with asyncio.timeout(BOUND):
        while await hub.last(f"plumbline.ev.{NODE}.>") is not None:  # noqa: ASYNC110  # the server sends no notification
            await asyncio.sleep(0.1)
    await FencedLedger(hub, mandate).append(EventFactory(NO_NODE).note())
    await FencedCommands(commands, mandate).send(EventFactory(NODE).event(ComparisonRequested(request=RequestId("x"))))


async def shorten(hub: JetStreamLedger, stream: str, limits: dict[str, int]) -> None:
    config = msgspec.json.decode(await hub.api(f"STREAM.INFO.{stream}", {}))["config"]
    assert "error" not in msgspec.json.decode(await hub.api(f"STREAM.UPDATE.{stream}", config | limits))
