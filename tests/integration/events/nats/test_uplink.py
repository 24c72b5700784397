"""The hub gets a node's ledger unchanged: despite kills, cuts, backups, purges and older copies at the hub.

Both ends are real servers. ``same`` is what every test is about: event by event, in order, nothing twice.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from events import subjects
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import Stream, hub_stream
from events.nats.uplink import BATCH, Lag, Uplink
from events.schema import NO_NODE, Event, NodeName, encode
from tests.support.nats.hub_servers import HubServers, connect_hub
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND, until

NODE = NodeName("worker-1.example.net")
OTHER = NodeName("other")
PATTERN = subjects.pattern(NODE)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def one(folder: Path) -> Iterator[HubServers]:
    servers = HubServers(folder)
    servers.start()
    yield servers
    servers.kill()


@pytest.fixture
async def above(one: HubServers) -> AsyncIterator[JetStreamLedger]:
    """A hub of one server."""
    ledger = await connect_hub(one, patience=5)
    yield ledger
    await ledger.close()


@asynccontextmanager
async def copying(node: JetStreamLedger, above: JetStreamLedger) -> AsyncIterator[Uplink]:
    uplink = Uplink(node, above, NODE)
    task = asyncio.create_task(uplink.run())
    try:
        yield uplink
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def write(ledger: JetStreamLedger, factory: EventFactory, count: int) -> None:
    for number in range(count):
        await ledger.append(factory.note(str(number), container(number % 7)))


async def events(ledger: JetStreamLedger) -> list[Event]:
    return [stored.event async for stored in ledger.read(PATTERN)]


async def same(node: JetStreamLedger, above: JetStreamLedger) -> list[Event]:
    """Return the events of both ledgers once they are equal."""
    async with asyncio.timeout(BOUND):
        while True:
            at_node, at_hub = await events(node), await events(above)
            assert at_hub == at_node[: len(at_hub)]
            if len(at_hub) == len(at_node):
                return at_hub
            await asyncio.sleep(0.05)


async def test_old_and_new_events_are_copied_in_order(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    factory = EventFactory(NODE)
    await write(jetstream, factory, 2 * BATCH + 50)
    async with copying(jetstream, above) as uplink:
        assert len(await same(jetstream, above)) == 2 * BATCH + 50
        await write(jetstream, factory, 20)
        assert len(await same(jetstream, above)) == 2 * BATCH + 70
        assert uplink.done == await jetstream.last_sequence()


async def test_only_events_of_the_node_are_copied(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    await write(above, EventFactory(OTHER), 3)
    for factory in (EventFactory(OTHER), EventFactory(NO_NODE), EventFactory(NODE)):
        await write(jetstream, factory, 3)
    async with copying(jetstream, above):
        await same(jetstream, above)
    assert [stored.event.node async for stored in above.read()] == [OTHER] * 3 + [NODE] * 3


async def test_copy_equals_its_event_byte_for_byte(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    text = encode(EventFactory(NODE).note("from tomorrow")).replace(b'"data":{', b'"later": [1], "data":{"more":"it",')
    subject = subjects.subject(NODE, "", "WorkerStopped")
    await Stream(jetstream.connection, "NODE").store(subject, text, label="it", headers={})
    async with copying(jetstream, above):
        await same(jetstream, above)
    kept = await Stream(above.connection, above.stream).message(last_by_subj=subject)
    assert kept is not None
    assert kept.payload == text


async def test_new_uplink_resumes_where_the_last_one_stopped(one: HubServers, jetstream: JetStreamLedger) -> None:
    """Also after the hub's duplicate window: the condition of the append prevents duplicates without any window."""
    above = await connect_hub(one)
    config = msgspec.structs.replace(hub_stream(1), duplicate_window=100_000_000)
    await Stream(above.connection, above.stream).ensure(config)
    factory = EventFactory(NODE)
    for count in (1, 2, 30, 1):
        await write(jetstream, factory, count)
        async with copying(jetstream, above):
            await same(jetstream, above)
        await asyncio.sleep(0.2)
    assert len(await events(above)) == 34
    await above.close()


async def test_hub_killed_under_load_gets_each_event_once(
    one: HubServers, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    async with copying(jetstream, above):
        writing = asyncio.create_task(write(jetstream, EventFactory(NODE), 2000))
        for _ in range(3):
            await asyncio.sleep(0.4)
            one.kill()
            await asyncio.sleep(0.3)
            one.start()
        await writing
        assert len(await same(jetstream, above)) == 2000


async def test_cluster_without_leader_gets_each_event_once(
    three: HubServers, hub: JetStreamLedger, jetstream: JetStreamLedger
) -> None:
    async with copying(jetstream, hub):
        writing = asyncio.create_task(write(jetstream, EventFactory(NODE), 1500))
        await asyncio.sleep(0.5)
        answer = msgspec.json.decode(await hub.api("STREAM.INFO.LEDGER", {}))
        leader = int(answer["cluster"]["leader"].removeprefix("hub-"))
        three.kill(leader)
        await asyncio.sleep(1.0)
        three.start(leader)
        await writing
        assert len(await same(jetstream, hub)) == 1500


async def test_uplink_survives_a_restart_of_the_nodes_server(
    server: EmbeddedServer, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    async with copying(jetstream, above):
        writing = asyncio.create_task(write(jetstream, EventFactory(NODE), 600))
        await asyncio.sleep(0.2)
        server.stop()
        server.start()
        await writing
        assert len(await same(jetstream, above)) == 600


async def test_restored_hub_gets_its_lost_events_again(
    one: HubServers, folder: Path, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    factory = EventFactory(NODE)
    async with copying(jetstream, above) as uplink:
        await write(jetstream, factory, 100)
        await same(jetstream, above)
        one.kill()
        one.back_up(folder / "backup")
        one.start()
        await write(jetstream, factory, 100)
        await same(jetstream, above)
        await write(above, EventFactory(OTHER), 5)  # lost events of other nodes change nothing for this one
        one.kill()
        one.restore(folder / "backup")
        one.start()
        assert len(await same(jetstream, above)) == 200
        await write(jetstream, factory, 10)
        assert len(await same(jetstream, above)) == 210
        assert uplink.done == await jetstream.last_sequence()


async def test_empty_hub_gets_all_events_of_the_node(
    one: HubServers, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    async with copying(jetstream, above):
        await write(jetstream, EventFactory(NODE), 50)
        await same(jetstream, above)
        one.kill()
        one.restore(None)
        one.start()
        reconnected = await connect_hub(one)  # creates the streams at the hub
        assert len(await same(jetstream, reconnected)) == 50
        await reconnected.close()


async def test_purge_at_the_node_does_not_affect_the_hub(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    factory = EventFactory(NODE)
    await write(jetstream, factory, 30)
    async with copying(jetstream, above):
        before = await same(jetstream, above)
    await write(jetstream, factory, 7)
    for number in range(7):  # purges the hub's last event of the node too
        await jetstream.purge(subjects.pattern(NODE, container(number)), 30)
    async with copying(jetstream, above) as uplink:
        await until(lambda: uplink.done == 37)
        after = await events(above)
    assert after[:30] == before
    assert after[30:] == await events(jetstream)


async def test_malformed_event_does_not_stop_the_uplink(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    factory, stream = EventFactory(NODE), Stream(jetstream.connection, "NODE")
    for text in (b"", b'{"id":"torn', b"\xff\xfe", encode(EventFactory(OTHER).note())):
        await write(jetstream, factory, 1)
        await stream.store(subjects.subject(NODE, "", "WorkerStopped"), text, label="mist", headers={})
    await write(jetstream, factory, 1)
    async with copying(jetstream, above) as uplink:
        await until(lambda: uplink.done == 9)
    assert [event.node for event in await events(above)] == [NODE] * 5


@pytest.mark.parametrize("text", [b"torn", encode(EventFactory(NODE).note("from elsewhere", container(99)))])
async def test_uplink_continues_after_foreign_events_of_the_node(
    jetstream: JetStreamLedger, above: JetStreamLedger, text: bytes
) -> None:
    factory = EventFactory(NODE)
    await write(jetstream, factory, 10)
    async with copying(jetstream, above):
        before = await same(jetstream, above)
    subject = subjects.subject(NODE, container(99), "WorkerStopped")
    await Stream(above.connection, above.stream).store(subject, text, label="mist", headers={})
    factory.event(before[0].data)  # the ID that the event from elsewhere has, too
    await write(jetstream, factory, 10)
    async with copying(jetstream, above) as uplink:
        await until(lambda: uplink.done == 20)
    at_hub = [event for event in await events(above) if event.sandbox != container(99)]
    assert at_hub == await events(jetstream)


async def test_new_node_ledger_is_appended_after_the_old_copies(
    server: EmbeddedServer, tmp_path: Path, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    factory = EventFactory(NODE)
    await write(jetstream, factory, 20)
    async with copying(jetstream, above):
        before = await same(jetstream, above)
    await jetstream.api("STREAM.DELETE.NODE", {})
    reconnected = await JetStreamLedger.connect(server.address)
    await write(reconnected, factory, 30)
    for _ in range(2):
        async with copying(reconnected, above) as uplink:
            await until(lambda: uplink.done == 30)
    assert await events(above) == before + await events(reconnected)
    await reconnected.close()


async def test_restored_node_adds_only_new_events(
    server: EmbeddedServer, tmp_path: Path, jetstream: JetStreamLedger, above: JetStreamLedger
) -> None:
    factory = EventFactory(NODE)
    await write(jetstream, factory, 20)
    server.stop()
    shutil.copytree(tmp_path / "store", tmp_path / "backup")
    server.start()
    await write(jetstream, factory, 20)
    async with copying(jetstream, above):
        before = await same(jetstream, above)
    server.stop()
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "backup", tmp_path / "store")
    server.start()
    await write(jetstream, factory, 30)
    async with copying(jetstream, above) as uplink:
        await until(lambda: uplink.done == 50)
    assert await events(above) == before + (await events(jetstream))[20:]


async def test_two_uplinks_of_one_node_copy_each_event_once(jetstream: JetStreamLedger, above: JetStreamLedger) -> None:
    async with copying(jetstream, above), copying(jetstream, above):
        await write(jetstream, EventFactory(NODE), 300)
        assert len(await same(jetstream, above)) == 300


async def test_event_too_large_for_the_hub_stops_no_later_one(folder: Path, jetstream: JetStreamLedger) -> None:
    servers = HubServers(folder, extra={"max_payload": 4096})
    servers.start()
    above = await connect_hub(servers)
    factory = EventFactory(NODE)
    for text in ("a", "b" * 5000, "c"):
        await jetstream.append(factory.note(text))
    async with copying(jetstream, above) as uplink:
        await until(lambda: uplink.done == 3)
    at_node = await events(jetstream)
    assert await events(above) == [at_node[0], at_node[2]]
    await above.close()
    servers.kill()


async def test_uplink_survives_an_idle_time(
    jetstream: JetStreamLedger, above: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.nats.client.consumer._HEARTBEAT", 0.1)
    factory = EventFactory(NODE)
    async with copying(jetstream, above):
        for _ in range(3):
            await write(jetstream, factory, 2)
            await same(jetstream, above)
            await asyncio.sleep(0.3)


async def test_lag_grows_while_the_hub_is_down_and_ends_after(
    one: HubServers, jetstream: JetStreamLedger, above: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.nats.uplink._MEASURE", 0.05)
    factory = EventFactory(NODE)
    async with copying(jetstream, above) as uplink:
        await write(jetstream, factory, 5)
        await same(jetstream, above)
        one.kill()
        await write(jetstream, factory, 5)
        await until(lambda: uplink.lag.events == 5)
        assert uplink.lag.since > 0
        one.start()
        await until(lambda: uplink.lag == Lag())
    assert len(await same(jetstream, above)) == 10
