"""The ledger loses, repeats and reorders nothing while its nats-server is killed and started again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from msgspec.structs import replace

from events import subjects
from events.ledger.ledger import Expect, LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import Stream, command_stream
from events.schema import EventId, Stored
from tests.support.nats.jetstream import ONE, everything, fill, kill, take
from tests.support.stories.events import EventFactory
from tests.support.waiting import BOUND


async def test_several_processes_may_create_a_stream_at_once(server: EmbeddedServer) -> None:
    """A worker and a reconciler that start together on a new node do this for the commands."""
    makers = [await JetStreamLedger.connect(server.address) for _ in range(8)]
    for number in range(10):
        name = f"MADE-{number}"
        wanted = replace(command_stream(), name=name, subjects=(f"made.{number}.>",), republish=None)
        streams = [Stream(maker.connection, name) for maker in makers]
        # Each a millisecond later than the one before: see ``JetStreamCommands.make``.
        await asyncio.gather(*(stream.ensure(wanted, first=1000 + n) for n, stream in enumerate(streams)))
    for maker in makers:
        await maker.close()


async def test_server_crashes_lose_repeat_or_reorder_no_event(
    server: EmbeddedServer, jetstream: JetStreamLedger
) -> None:
    writers, each = 8, 60
    acknowledged: dict[EventId, int] = {}
    progress = asyncio.Event()

    async def write(number: int) -> None:
        factory = EventFactory(f"node-{number}")
        for _ in range(each):
            event = factory.note(sandbox=ONE)
            while True:
                try:
                    acknowledged[event.id] = await jetstream.append(event)
                    break
                except LedgerUnavailableError:
                    continue
            progress.set()

    async def crash() -> None:
        for share in (0.2, 0.5, 0.8):
            while len(acknowledged) < share * writers * each:
                progress.clear()
                await progress.wait()
            kill(server)
            server.start()

    following = asyncio.create_task(take(jetstream.follow(), writers * each, seconds=60))
    async with asyncio.timeout(BOUND):
        await asyncio.gather(crash(), *(write(number) for number in range(writers)))
    followed = await following
    stored = await everything(jetstream)
    assert {entry.event.id: entry.sequence for entry in stored} == acknowledged
    assert len(stored) == writers * each
    assert followed == stored
    for number in range(writers):
        own = [entry.event.id for entry in stored if entry.event.node == f"node-{number}"]
        assert own == sorted(own)
    assert jetstream.generation == 4


async def test_conditions_hold_over_a_server_crash(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    """A chain of appends, each with the one before as its condition, as in the uplink."""
    factory = EventFactory()
    subject = subjects.pattern(factory.node)
    last = 0
    for number in range(60):
        if number % 20 == 10:
            kill(server)
            server.start()
        last = await jetstream.append(factory.note(str(number)), Expect(subject, last))
    assert [stored.sequence for stored in await everything(jetstream)] == list(range(1, 61))


async def test_read_continues_over_a_server_crash(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    stored = await fill(jetstream, 2500)
    seen: list[Stored] = []
    async with asyncio.timeout(BOUND):
        async for entry in jetstream.read():
            seen.append(entry)
            if len(seen) in (1, 700, 1600):
                kill(server)
                server.start()
    assert seen == stored


async def test_follower_resumes_soon_after_a_server_crash(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    """At the reconnect, not after a timeout."""
    await fill(jetstream, 1)
    async with aclosing(jetstream.follow()) as events:
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        kill(server)
        server.start()
        event = EventFactory("later").note()
        await jetstream.append(event)
        async with asyncio.timeout(3):
            assert (await following).event == event


async def test_connection_is_replaced_after_a_server_error(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    """nats-py then closes and does not reconnect. A command line that is too long is such an error."""
    await fill(jetstream, 1)
    async with aclosing(jetstream.follow()) as events:
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        await jetstream.connection.publish("far." + "x" * 5000, b"")
        event = EventFactory("later").note()
        await jetstream.append(event)
        async with asyncio.timeout(5):
            assert (await following).event == event
    assert jetstream.generation == 2
