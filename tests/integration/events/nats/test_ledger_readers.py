"""Readers of the ledger lose nothing, buffer little, and leave no consumer behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from events import subjects
from events.nats.client import consumer
from events.nats.ledger import JetStreamLedger
from events.nats.server import MAX_PAYLOAD, EmbeddedServer
from events.schema import Event, Stored
from tests.support.nats.jetstream import ONE, consumers, everything, fill, raw_client, take
from tests.support.stories.events import EventFactory
from tests.support.waiting import BOUND, until


def consumers_are(ledger: JetStreamLedger, count: int) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def probe() -> bool:
        return len(await consumers(ledger)) == count

    return probe


async def at_rest(ledger: JetStreamLedger) -> dict[str, Any]:
    """Return the only consumer once it has nothing to send, or no pull request."""

    async def probe() -> bool:
        [watched] = await consumers(ledger)
        return not watched["num_waiting"] or not watched["num_pending"]

    await until(probe)
    [watched] = await consumers(ledger)
    return watched


async def test_closed_reader_deletes_its_consumer(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1200)
    for _ in range(3):
        async with aclosing(jetstream.read()) as reading, aclosing(jetstream.follow()) as following:
            await anext(reading)
            await anext(following)
            assert len(await consumers(jetstream)) == 2
        await until(consumers_are(jetstream, 0))


async def test_collected_reader_deletes_its_consumer(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1200)
    async for _ in jetstream.read():
        break
    async for _ in jetstream.follow():
        break
    await until(consumers_are(jetstream, 0))


async def test_finished_reader_leaves_no_consumer(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 600)
    assert len(await everything(jetstream)) == 600
    assert await everything(jetstream, subjects.pattern("nobody")) == []
    await until(consumers_are(jetstream, 0))


async def test_disconnected_reader_leaves_no_consumer(jetstream: JetStreamLedger, server: EmbeddedServer) -> None:
    """A server allows a thousand of them, and deletes an idle one only after a minute."""
    await fill(jetstream, 10)
    for _ in range(3):
        visitor = await JetStreamLedger.connect(server.address)
        assert len(await everything(visitor)) == 10
        await visitor.close()
    await until(consumers_are(jetstream, 0))


async def test_reader_may_be_cancelled_at_any_step(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 300)

    async def read() -> None:
        await everything(jetstream)
        await take(jetstream.follow(), 301)

    for steps in range(60):
        task = asyncio.create_task(read())
        for _ in range(steps):
            await asyncio.sleep(0)  # the task runs one step
        if steps % 3 == 0:
            await consumers(jetstream)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    await until(consumers_are(jetstream, 0))
    assert len(await everything(jetstream)) == 300


async def test_reader_replaces_a_deleted_consumer(jetstream: JetStreamLedger) -> None:
    stored = await fill(jetstream, 2500)

    async def delete_consumers() -> None:
        for each in await consumers(jetstream):
            await jetstream.api(f"CONSUMER.DELETE.NODE.{each['name']}", {})

    for events in (jetstream.read(), jetstream.follow()):
        seen: list[Stored] = []
        async with asyncio.timeout(BOUND), aclosing(events):
            async for entry in events:
                seen.append(entry)
                if len(seen) in (1, 999, 1700):
                    await delete_consumers()
                if len(seen) == len(stored):
                    break
        assert seen == stored


async def test_waiting_follower_replaces_a_deleted_consumer(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1)
    async with aclosing(jetstream.follow()) as following:
        await anext(following)
        waiting = asyncio.ensure_future(anext(following))
        [watched] = await consumers(jetstream)
        await jetstream.api(f"CONSUMER.DELETE.NODE.{watched['name']}", {})
        event = EventFactory("late").note()
        await jetstream.append(event)
        async with asyncio.timeout(5):
            assert (await waiting).event == event


async def test_waiting_follower_renews_expired_pull_requests(
    jetstream: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any used part of an expired request, the count of outstanding messages stays right."""
    monkeypatch.setattr(consumer, "_EXPIRES", 0.12)
    monkeypatch.setattr(consumer, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(consumer, "BATCH", 5)
    factory, seen = EventFactory(), []
    async with asyncio.timeout(BOUND), aclosing(jetstream.follow()) as following:
        for burst in (1, 3, 4, 7, 2, 11, 1, 30, 6):
            waiting = asyncio.ensure_future(anext(following))
            await asyncio.wait([waiting], timeout=0.17)
            events = [factory.note() for _ in range(burst)]
            for event in events:
                await jetstream.append(event)
            seen += [(await waiting).event]
            seen += [(await anext(following)).event for _ in range(burst - 1)]
            assert seen[-burst:] == events
        [watched] = await consumers(jetstream)
        assert watched["delivered"]["consumer_seq"] == len(seen)  # the same consumer sent all


async def test_slow_follower_loses_nothing_and_buffers_little(fast_server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(fast_server.address)
    async with aclosing(ledger.follow()) as following:
        waiting = asyncio.ensure_future(anext(following))
        stored = await fill(ledger, 20_000, size=100, at_once=256)
        seen = [await waiting]
        watched = await at_rest(ledger)
        assert watched["delivered"]["consumer_seq"] <= 2 * consumer.BATCH + 1
        assert watched["num_pending"] >= 20_000 - 2 * consumer.BATCH - 1
        async with asyncio.timeout(BOUND):
            seen += [await anext(following) for _ in range(19_999)]
    assert seen == stored
    await ledger.close()


async def test_slow_follower_buffers_little_of_large_events(fast_server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(fast_server.address)
    stored = await fill(ledger, 60, size=1024 * 1024, at_once=4)
    async with asyncio.timeout(BOUND), aclosing(ledger.follow()) as following:
        seen = [await anext(following)]
        watched = await at_rest(ledger)
        assert watched["delivered"]["consumer_seq"] <= 2 * consumer.BATCH_BYTES // (1024 * 1024) + 1
        seen += [await anext(following) for _ in range(59)]
    assert seen == stored
    await ledger.close()


def test_one_pull_request_has_room_for_the_largest_event() -> None:
    assert consumer.BATCH_BYTES > MAX_PAYLOAD + 64 * 1024


async def test_malformed_message_is_skipped(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    factory = EventFactory()
    torn = [b"", b"{", b'{"id": "half', b"\xff\xfe", b"[" * 100_000, b'{"id":"i","type":"WorkerStopped","v":1}']
    good: list[Event] = []
    async with raw_client(server) as client:
        for garbage in torn:
            good.append(factory.note(sandbox=ONE))
            await jetstream.append(good[-1])
            await client.request(subjects.subject(factory.node, ONE, "WorkerStopped"), garbage)
            await client.request(
                subjects.subject(factory.node, ONE, "WorkerStopped"), garbage, headers={"Status": "100"}
            )
    assert [stored.event for stored in await everything(jetstream)] == good
    assert [stored.event for stored in await take(jetstream.follow(), len(good))] == good
    last = await jetstream.last(subjects.pattern(sandbox=ONE))
    assert last is not None
    assert last.event == good[-1]
    assert await jetstream.last_sequence() == 3 * len(torn)
