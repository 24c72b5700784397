"""The contract of ``Commands``: ``events.ledger.commands`` and ``events.nats.commands`` pass these tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from events.ledger.commands import Commands, MemoryCommands
from events.ledger.election import COMMAND_MARK
from events.ledger.ledger import ConflictError, Expect
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import command_stream
from events.schema import (
    NO_NODE,
    ComparisonRequested,
    Event,
    NodeName,
    ReconcilerElected,
    RequestId,
    Stored,
)
from tests.support.stories.events import EventFactory
from tests.support.waiting import BOUND

NODE = NodeName("example.node-1")
OTHER = NodeName("example.node-2")


@pytest.fixture(params=["memory", "jetstream"])
async def commands(request: pytest.FixtureRequest) -> AsyncIterator[Commands]:
    """Each implementation of the ``Commands`` protocol, empty."""
    if request.param == "memory":
        yield MemoryCommands()
        return
    server: EmbeddedServer = request.getfixturevalue("server")
    ledger = await JetStreamLedger.connect(server.address)
    commands = JetStreamCommands(ledger)
    await commands.make(command_stream())
    yield commands
    await ledger.close()


def command(factory: EventFactory, number: int = 0) -> Event:
    return factory.event(ComparisonRequested(request=RequestId(f"{factory.node}-{number}")))


async def take(received: AsyncGenerator[Stored, None], count: int) -> list[Stored]:
    async with asyncio.timeout(BOUND):
        return [await anext(received) for _ in range(count)]


async def nothing(received: AsyncGenerator[Stored, None]) -> bool:
    """Return whether nothing is received for a while. Closes *received*."""
    try:
        async with asyncio.timeout(0.3):
            await anext(received)
    except TimeoutError:
        return True
    return False


async def test_command_reaches_only_the_node_it_is_addressed_to(commands: Commands) -> None:
    mine, others = command(EventFactory(NODE)), command(EventFactory(OTHER))
    await commands.send(others)
    sequence = await commands.send(mine)
    async with aclosing(commands.receive(NODE)) as received:
        assert await take(received, 1) == [Stored(sequence, mine)]
        assert await nothing(received)


async def test_later_commands_are_received_in_order(commands: Commands) -> None:
    factory, other = EventFactory(NODE), EventFactory(OTHER)
    async with aclosing(commands.receive(NODE)) as received:
        receiving = asyncio.create_task(take(received, 20))
        sent: list[Stored] = []
        for number in range(20):
            await commands.send(command(other, number))
            event = command(factory, number)
            sent.append(Stored(await commands.send(event), event))
        assert await receiving == sent
    assert [stored.sequence for stored in sent] == sorted({stored.sequence for stored in sent})


async def test_node_resumes_after_its_last_command(commands: Commands) -> None:
    factory = EventFactory(NODE)
    sequences = [await commands.send(command(factory, number)) for number in range(5)]
    async with aclosing(commands.receive(NODE, after=sequences[2])) as received:
        assert [stored.sequence for stored in await take(received, 2)] == sequences[3:]


async def test_command_sent_twice_is_stored_once(commands: Commands) -> None:
    first, second = command(EventFactory(NODE)), command(EventFactory(OTHER))
    sequence = await commands.send(first)
    await commands.send(second)
    assert await commands.send(first) == sequence
    async with aclosing(commands.receive(first.node)) as received:
        await take(received, 1)
        assert await nothing(received)


async def test_last_returns_the_newest_command_of_a_subject(commands: Commands) -> None:
    assert await commands.last(COMMAND_MARK) is None
    factory = EventFactory(NO_NODE)
    for replica in ("a", "b"):
        newest = factory.event(ReconcilerElected(replica=replica))
        sequence = await commands.send(newest)
        await commands.send(command(EventFactory(NODE)))
        assert await commands.last(COMMAND_MARK) == Stored(sequence, newest)


async def test_command_with_a_failed_condition_is_not_stored(commands: Commands) -> None:
    factory, elections = EventFactory(NODE), EventFactory(NO_NODE)
    mark = await commands.send(elections.event(ReconcilerElected(replica="a")), Expect(COMMAND_MARK, 0))
    first, late = command(factory, 1), command(factory, 2)
    await commands.send(first, Expect(COMMAND_MARK, mark))
    await commands.send(elections.event(ReconcilerElected(replica="b")), Expect(COMMAND_MARK, mark))
    with pytest.raises(ConflictError):
        await commands.send(late, Expect(COMMAND_MARK, mark))
    with pytest.raises(ConflictError):
        await commands.send(elections.event(ReconcilerElected(replica="a")), Expect(COMMAND_MARK, mark))
    async with aclosing(commands.receive(NODE)) as received:
        assert [stored.event for stored in await take(received, 1)] == [first]
        assert await nothing(received)


async def test_node_ahead_of_the_stream_gets_all_commands_again(commands: Commands) -> None:
    sent = command(EventFactory(NODE))
    sequence = await commands.send(sent)
    async with aclosing(commands.receive(NODE, after=sequence + 5)) as received:
        assert await take(received, 1) == [Stored(sequence, sent)]
