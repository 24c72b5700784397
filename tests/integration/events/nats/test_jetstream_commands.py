"""Commands on a real nats-server that is killed, restarted, replaced, and on a cluster that loses its leader."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from events import subjects
from events.ledger.ledger import LedgerUnavailableError
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import Stream, command_stream
from events.schema import ComparisonRequested, Event, NodeName, RequestId
from tests.support.nats.hub_servers import HubServers
from tests.support.stories.events import EventFactory
from tests.support.waiting import BOUND

NODE = NodeName("worker-1.example.net")


@pytest.fixture
async def commands(jetstream: JetStreamLedger) -> JetStreamCommands:
    commands = JetStreamCommands(jetstream)
    await commands.make(command_stream())
    return commands


def command(factory: EventFactory, number: int) -> Event:
    return factory.event(ComparisonRequested(request=RequestId(str(number))))


class Receiver:
    """Receives commands in a task and records them."""

    def __init__(self, commands: JetStreamCommands, node: NodeName = NODE, pause: float = 0.0) -> None:
        self.got: list[str] = []
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run(commands, node, pause))

    async def _run(self, commands: JetStreamCommands, node: NodeName, pause: float) -> None:
        async with aclosing(commands.receive(node)) as received:
            async for stored in received:
                assert isinstance(stored.event.data, ComparisonRequested)
                self.got.append(stored.event.data.request)
                self._more.set()
                await asyncio.sleep(pause)

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(BOUND):
            while len(self.got) < count:
                self._more.clear()
                await self._more.wait()
        return self.got

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


async def test_server_restarts_lose_or_repeat_no_command(server: EmbeddedServer, commands: JetStreamCommands) -> None:
    receiver, factory = Receiver(commands), EventFactory(NODE)

    async def send() -> None:
        for number in range(300):
            await commands.send(command(factory, number))

    sending = asyncio.create_task(send())
    for count in (50, 150):
        await receiver.until(count)
        await asyncio.to_thread(server.stop)
        server.start()
    await sending
    assert await receiver.until(300) == numbers(300)
    await receiver.stop()


async def test_slow_reader_gets_every_command(commands: JetStreamCommands) -> None:
    receiver, factory = Receiver(commands, pause=0.02), EventFactory(NODE)
    for number in range(100):
        await commands.send(command(factory, number))
    assert await receiver.until(100) == numbers(100)
    await receiver.stop()


async def test_receiving_continues_after_nats_py_gave_up(
    jetstream: JetStreamLedger, commands: JetStreamCommands
) -> None:
    """After a protocol error nats-py does not reconnect."""
    receiver, factory = Receiver(commands), EventFactory(NODE)
    await commands.send(command(factory, 0))
    await receiver.until(1)
    with pytest.raises(LedgerUnavailableError):
        await jetstream.api("X" * 5000, {})
    await commands.send(command(factory, 1))
    assert await receiver.until(2) == numbers(2)
    await receiver.stop()


async def test_command_without_announcement_is_found(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    config = msgspec.structs.replace(command_stream(), republish=None)
    commands = JetStreamCommands(jetstream, poll=0.1)
    await commands.make(config)
    receiver, factory = Receiver(commands), EventFactory(NODE)
    for number in range(3):
        await commands.send(command(factory, number))
        await receiver.until(number + 1)
    assert receiver.got == numbers(3)
    await receiver.stop()


async def test_malformed_command_hides_no_later_one(jetstream: JetStreamLedger, commands: JetStreamCommands) -> None:
    receiver, factory = Receiver(commands), EventFactory(NODE)
    await commands.send(command(factory, 0))
    stream = Stream(jetstream.connection, "COMMANDS")
    for subject in (subjects.command(NODE, "ComparisonRequested"), subjects.command(NODE, "Mist")):
        await stream.store(subject, b'{"id": "torn', label="mist", headers={})
    await commands.send(command(factory, 1))
    assert await receiver.until(2) == numbers(2)
    await receiver.stop()


async def test_replaced_stream_begins_after_the_lost_one(
    jetstream: JetStreamLedger, commands: JetStreamCommands
) -> None:
    receiver, factory = Receiver(commands), EventFactory(NODE)
    old = [await commands.send(command(factory, number)) for number in range(3)]
    await receiver.until(3)
    await jetstream.api("STREAM.DELETE.COMMANDS", {})
    await commands.make(command_stream())
    assert await commands.send(command(factory, 3)) > old[-1]
    assert await receiver.until(4) == numbers(4)
    await receiver.stop()


async def test_receiving_leaves_no_consumer_or_subscription(
    jetstream: JetStreamLedger, commands: JetStreamCommands
) -> None:
    receivers = [Receiver(commands) for _ in range(5)]
    await commands.send(command(EventFactory(NODE), 0))
    for receiver in receivers:
        await receiver.until(1)
    info: dict[str, Any] = msgspec.json.decode(await jetstream.api("STREAM.INFO.COMMANDS", {}))
    assert info["state"]["consumer_count"] == 0
    for receiver in receivers:
        await receiver.stop()
    await jetstream.close()


async def test_command_is_announced_only_after_it_is_stored(
    jetstream: JetStreamLedger, commands: JetStreamCommands
) -> None:
    async with jetstream.subscribe(subjects.down_pattern(NODE)) as heard:
        await commands.send(command(EventFactory(NODE), 0))
        async with asyncio.timeout(BOUND):
            notice = await anext(heard)
    assert notice.subject == subjects.command(NODE, "ComparisonRequested").replace(
        subjects.COMMAND_ROOT, subjects.DOWN_ROOT
    )
    assert notice.payload == b""


async def test_stream_detects_duplicates_as_long_as_it_stores_them(
    commands: JetStreamCommands, jetstream: JetStreamLedger
) -> None:
    info: dict[str, Any] = msgspec.json.decode(await jetstream.api("STREAM.INFO.COMMANDS", {}))
    assert info["config"]["duplicate_window"] == info["config"]["max_age"] > 0


async def test_leader_loss_of_a_cluster_loses_or_repeats_no_command(three: HubServers, hub: JetStreamLedger) -> None:
    commands = JetStreamCommands(hub)
    await commands.make(command_stream(3))
    receiver, factory = Receiver(commands), EventFactory(NODE)
    sending = asyncio.create_task(_send(commands, factory, 200))
    await receiver.until(50)
    info: dict[str, Any] = msgspec.json.decode(await hub.api("STREAM.INFO.COMMANDS", {}))
    leader = int(info["cluster"]["leader"].removeprefix("hub-"))
    three.kill(leader)
    await receiver.until(150)
    three.start(leader)
    await sending
    assert await receiver.until(200) == numbers(200)
    await receiver.stop()


async def _send(commands: JetStreamCommands, factory: EventFactory, count: int) -> None:
    for number in range(count):
        await commands.send(command(factory, number))
