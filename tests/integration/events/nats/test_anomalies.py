"""A message that is no event has no effect: on real servers, no reader stops at it and no writer waits for it.

Nodes have the hub's rights that ``deploy/kubernetes/with-hub/users.py`` gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import urlsplit

import msgspec
import pytest

from events import subjects
from events.ledger.anomalies import Anomaly
from events.ledger.election import COMMAND_MARK, ELECTION, FencedCommands, FencedLedger, Mandate, elect, last_election
from events.ledger.ledger import ConflictError, Expect
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.read_ahead import ReadAhead
from events.nats.server import EmbeddedServer
from events.nats.streams import Stream, command_stream, hub_stream
from events.nats.uplink import BATCH, Uplink
from events.schema import (
    NO_NODE,
    ComparisonRequested,
    Event,
    IfName,
    NodeName,
    Pod,
    ReconcilerElected,
    RequestId,
    StatusPublished,
    WorkerStarted,
    encode,
)
from nodeworker.journal.journal import Journal
from tests.support.nats.hub_servers import connect_hub
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND, until

NODE = NodeName("worker-1.example.net")
OTHER = NodeName("worker-2")
PATTERN = subjects.pattern(NODE)


@pytest.fixture(params=["one server", "three servers"])
async def hub(request: pytest.FixtureRequest) -> AsyncIterator[JetStreamLedger]:
    if request.param == "one server":
        server: EmbeddedServer = request.getfixturevalue("server")
        ledger = await JetStreamLedger.connect(server.address, config=hub_stream(1))
    else:
        ledger = await connect_hub(request.getfixturevalue("three"))
    yield ledger
    await ledger.close()


class Intruder:
    """A node that publishes legal events of its own, with any subject for the answer of the server."""

    def __init__(self, ledger: JetStreamLedger) -> None:
        self._ledger = ledger
        self._factory = EventFactory(OTHER)

    async def store_answer(self, reply: str) -> None:
        """Publish an event, so that the server publishes its acknowledgement to *reply*."""
        event = self._factory.note()
        await self.publish(subjects.subject(event.node, event.sandbox, event.type), encode(event), reply)

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish a message, and wait until the stream has it, and the answer if that goes to the stream."""
        stored = 2 if reply.startswith(subjects.ROOT) else 1
        end = await self._ledger.last_sequence()
        await self._ledger.connection.publish(subject, payload, reply)

        async def arrived() -> bool:
            return await self._ledger.last_sequence() >= end + stored

        await until(arrived)


async def events(ledger: JetStreamLedger, pattern: str = "plumbline.ev.>") -> list[Event]:
    return [stored.event async for stored in ledger.read(pattern)]


async def test_answers_of_the_server_stop_no_election_and_no_leader(hub: JetStreamLedger) -> None:
    intruder, commands = Intruder(hub), JetStreamCommands(hub)
    await commands.make(command_stream())
    asked, told = EventFactory(NODE), EventFactory(NO_NODE)

    async def intrude() -> None:
        for _ in range(3):
            await intruder.store_answer(ELECTION)
            await intruder.store_answer(COMMAND_MARK)

    await intrude()
    mandates: list[Mandate] = []
    for number, replica in enumerate(("a", "b", "a"), 1):
        mandate = await elect(hub, commands, replica)
        mandates.append(mandate)
        assert mandate.event.epoch == number
        for _ in range(2):
            await intrude()
            await FencedLedger(hub, mandate).append(told.note(sandbox=container(1)))
            asking = asked.event(ComparisonRequested(request=RequestId(f"{number}")))
            await FencedCommands(commands, mandate).send(asking)
            newest = await last_election(hub)
            assert newest is not None
            assert newest.event == mandate.event
    for replaced in mandates[:-1]:
        with pytest.raises(ConflictError):
            await FencedLedger(hub, replaced).append(told.note())
        with pytest.raises(ConflictError):
            await FencedCommands(commands, replaced).send(asked.event(ComparisonRequested(request=RequestId("late"))))


async def test_condition_holds_for_events_and_fails_for_events_only(hub: JetStreamLedger) -> None:
    intruder, factory = Intruder(hub), EventFactory(NODE)
    first = factory.note(sandbox=container(1))
    subject = subjects.pattern(NODE, container(1))
    stray = f"{subject[:-1]}Stray"
    await intruder.store_answer(stray)
    with pytest.raises(ConflictError):
        await hub.append(factory.note(sandbox=container(1)), Expect(subject, 99))
    sequence = await hub.append(first, Expect(subject, 0))
    with pytest.raises(ConflictError):
        await hub.append(factory.note(sandbox=container(1)), Expect(subject, 0))
    await intruder.store_answer(stray)
    with pytest.raises(ConflictError):
        await hub.append(factory.note(sandbox=container(1)), Expect(subject, 0))
    assert await hub.append(first, Expect(subject, 0)) == sequence  # repeated: its own event is no conflict
    second = await hub.append(factory.note(sandbox=container(1)), Expect(subject, sequence))
    await intruder.store_answer(stray)
    with pytest.raises(ConflictError):
        await hub.append(factory.note(sandbox=container(1)), Expect(subject, sequence))
    last = await hub.last(subject)
    assert last is not None
    assert last.sequence == second


async def test_condition_holds_after_the_stream_was_replaced(server: EmbeddedServer) -> None:
    hub = await JetStreamLedger.connect(server.address)
    factory, intruder = EventFactory(NODE), Intruder(hub)
    subject = subjects.pattern(NODE, container(1))
    for _ in range(5):
        await intruder.store_answer(f"{subject[:-1]}Stray")
    await hub.append(factory.note(sandbox=container(1)), Expect(subject, 0))
    await hub.api("STREAM.DELETE.NODE", {})
    again = await JetStreamLedger.connect(server.address)
    await hub.append(factory.note(sandbox=container(1)), Expect(subject, 0))
    await intruder.store_answer(f"{subject[:-1]}Stray")
    last = await hub.last(subject)
    assert last is not None
    assert last.sequence == 1
    await again.close()
    await hub.close()


async def test_answer_under_a_nodes_subject_does_not_stop_its_uplink(
    jetstream: JetStreamLedger, hub: JetStreamLedger, caplog: pytest.LogCaptureFixture
) -> None:
    factory, intruder = EventFactory(NODE), Intruder(hub)
    stray = subjects.subject(NODE, container(1), "Stray")
    await intruder.store_answer(stray)  # before the first copy
    for count in (1, 3, BATCH + 7):  # one by one, and atomic batches
        uplink = Uplink(jetstream, hub, NODE)
        copying = asyncio.create_task(uplink.run())
        for _ in range(2):
            await asyncio.gather(*(jetstream.append(factory.note(sandbox=container(1))) for _ in range(count)))
            end = await jetstream.last_sequence()
            await until(lambda uplink=uplink, end=end: uplink.done == end, copying)
            await intruder.store_answer(stray)  # while it waits, and before the next one starts
        copying.cancel()
        await asyncio.wait({copying})
        assert await events(hub, PATTERN) == await events(jetstream, PATTERN)
    assert "node_ledger_replaced" not in caplog.text
    assert "uplink_interrupted" not in caplog.text


STARTED_AND_ASKED = ["WorkerStarted", "ComparisonRequested"]


async def test_answer_under_its_fence_stops_no_worker(server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(server.address)
    intruder, fence = Intruder(ledger), subjects.subject(NODE, "", "WorkerStarted")
    for epoch in (1, 2):
        journal = Journal(ledger, NODE)
        await intruder.store_answer(fence)
        assert [stored.event.type async for stored in journal.load()] == STARTED_AND_ASKED[: 2 * (epoch - 1)]
        await journal.open_epoch(WorkerStarted(version="1", pid=1))
        await intruder.store_answer(fence)
        await journal.append_intent(journal.event(ComparisonRequested(request=RequestId("x"))))
        assert journal.event(WorkerStarted(version="1", pid=1)).epoch == epoch
        assert not journal.replaced.is_set()
    await ledger.close()


ELECTED = ReconcilerElected(replica="mallory")
PUBLISHED = StatusPublished(node=NODE, ifname=IfName("eth0"), pod=Pod("default", "web", "u"), text="[]")
BOX = container(1)


def forged() -> list[tuple[str, bytes]]:
    """Messages that the node ``OTHER`` may publish, and that claim what it may not write."""
    other, own = EventFactory(OTHER), EventFactory(NODE)
    nameless = {**msgspec.json.decode(encode(other.note())), "type": ""}
    return [
        (subjects.subject(OTHER, BOX, "WorkerStopped"), encode(own.note(sandbox=BOX))),
        (subjects.subject(OTHER, BOX, "WorkerStopped"), encode(other.note(sandbox=container(2)))),
        (subjects.subject(OTHER, BOX, "WorkerStarted"), encode(other.note(sandbox=BOX))),
        (subjects.subject(OTHER, BOX, "StatusPublished"), encode(other.event(PUBLISHED, BOX))),
        (subjects.subject(OTHER, "", "ReconcilerElected"), encode(EventFactory(NO_NODE).event(ELECTED))),
        (f"{subjects.subject(OTHER, BOX, 'WorkerStopped')}.more", encode(other.note(sandbox=BOX))),
        (f"{subjects.ROOT}.{OTHER}", msgspec.json.encode(nameless)),
    ]


async def test_event_under_a_subject_that_is_not_its_own_has_no_effect(server: EmbeddedServer) -> None:
    seen: list[Anomaly] = []
    hub = await JetStreamLedger.connect(server.address, observe_anomaly=seen.append)
    factory, intruder = EventFactory(NODE), Intruder(hub)
    good = [factory.note("first", BOX)]
    await hub.append(good[0])
    for subject, payload in forged():
        await intruder.publish(subject, payload)
        good.append(factory.note(subject, BOX))
        await hub.append(good[-1])
    for _ in range(2):  # each anomaly is counted once
        assert await events(hub) == good
        assert [s.event async for s in ReadAhead(hub, server.address).read()] == good
        async with asyncio.timeout(BOUND), aclosing(hub.follow()) as followed:
            assert [(await anext(followed)).event for _ in good] == good
        assert await last_election(hub) is None
        assert await hub.last(subjects.pattern(OTHER)) is None
    assert [(each.sequence, each.subject) for each in seen] == [
        (2 * number, subject) for number, (subject, _) in enumerate(forged(), 1)
    ]
    assert hub.decoder.count == len(forged())
    await hub.close()


async def test_command_under_a_subject_that_is_not_its_own_has_no_effect(server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(server.address)
    commands, asks = JetStreamCommands(ledger), EventFactory(NODE)
    await commands.make(command_stream())
    forged = encode(EventFactory(OTHER).event(ComparisonRequested(request=RequestId("forged"))))
    await Stream(ledger.connection, "COMMANDS").store(
        subjects.command(NODE, "ComparisonRequested"), forged, label="a command", headers={}
    )
    good = asks.event(ComparisonRequested(request=RequestId("good")))
    await commands.send(good)
    async with asyncio.timeout(BOUND), aclosing(commands.receive(NODE)) as received:
        assert (await anext(received)).event == good
    await ledger.close()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x0b", b"\x0c\x1b[2J", b"\xc3"])
async def test_subject_that_is_no_text_stops_no_reader(server: EmbeddedServer, name: bytes) -> None:
    ledger = await JetStreamLedger.connect(server.address)
    factory, subject = EventFactory(NODE), b"plumbline.ev.worker-2.-." + name
    good = [factory.note("before"), factory.note("after")]
    await ledger.append(good[0])
    await _publish_raw(server, b"PUB %s 2\r\n{}\r\n" % subject)
    await _publish_raw(server, b"PUB %s %s 2\r\n{}\r\n" % (subject, subject))
    await _publish_raw(server, b"HPUB %s 16 18\r\nNATS/1.0\r\n\xff:\r\n\r\n{}\r\n" % subject)
    await ledger.append(good[1])
    assert await ledger.last_sequence() == 6
    assert await events(ledger) == good
    async with asyncio.timeout(BOUND), aclosing(ledger.follow()) as followed:
        assert [(await anext(followed)).event for _ in good] == good
    assert await ledger.last("plumbline.ev.worker-2.>") is None
    assert ledger.decoder.count == 4
    assert ledger.generation == 1  # the connection was not lost
    await ledger.close()


async def _publish_raw(server: EmbeddedServer, command: bytes) -> None:
    """Send *command* as a client that checks nothing."""
    url = urlsplit(server.url)
    assert url.port is not None
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    options = {"verbose": False, "pedantic": False, "headers": True, "auth_token": server.token}
    writer.write(b"CONNECT " + msgspec.json.encode(options) + b"\r\n" + command + b"PING\r\n")
    async with asyncio.timeout(BOUND):
        while await reader.readline() != b"PONG\r\n":
            pass
    writer.close()
    await writer.wait_closed()
