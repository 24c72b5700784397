"""The contract of ``Notices``: ``events.ledger.memory`` and ``events.nats.ledger`` pass these tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from events import subjects
from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.ledger.notices import PENDING_LIMIT, Notice
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.schema import NO_NODE, decode
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND

Carrier = MemoryLedger | JetStreamLedger
"""Both implement ``Notices`` and ``Ledger``."""


@pytest.fixture
def carrier(ledger: Carrier) -> Carrier:
    return ledger


async def take(heard: AsyncIterator[Notice], count: int) -> list[Notice]:
    async with asyncio.timeout(BOUND):
        return [await anext(heard) for _ in range(count)]


async def test_each_subscriber_gets_all_notices_in_order(carrier: Carrier) -> None:
    async with carrier.subscribe("greeting.a") as one, carrier.subscribe("greeting.a") as two:
        for number in range(3):
            await carrier.publish("greeting.a", str(number).encode())
        expected = [Notice("greeting.a", text) for text in (b"0", b"1", b"2")]
        assert await take(one, 3) == expected
        assert await take(two, 3) == expected


async def test_subscriber_gets_only_its_subjects(carrier: Carrier) -> None:
    async with carrier.subscribe("a.*", "b.>") as heard:
        for subject in ("a.1", "a.1.2", "b.1.2", "c", "a", "a.2"):
            await carrier.publish(subject)
        received = [notice.subject for notice in await take(heard, 3)]
    assert [subject for subject in received if subject.startswith("a")] == ["a.1", "a.2"]
    assert set(received) == {"a.1", "a.2", "b.1.2"}


async def test_subscriber_misses_earlier_notices(carrier: Carrier) -> None:
    await carrier.publish("greeting", b"early")
    async with carrier.subscribe("greeting") as heard:
        await carrier.publish("greeting", b"late")
        assert await take(heard, 1) == [Notice("greeting", b"late")]


async def test_subscriber_gets_events_under_their_subject(carrier: Carrier) -> None:
    factory, box = EventFactory(NO_NODE), container(1)
    async with carrier.subscribe(subjects.pattern(NO_NODE, event_type="WorkerStopped")) as heard:
        await carrier.append(EventFactory("another").note(sandbox=box))
        event = factory.note("heard", box)
        await carrier.append(event)
        (notice,) = await take(heard, 1)
    assert notice.subject == subjects.subject(NO_NODE, box, "WorkerStopped")
    assert decode(notice.payload) == event


async def test_notices_are_not_stored_in_the_ledger(carrier: Carrier) -> None:
    async with carrier.subscribe("plumbline.presence.x") as heard:
        await carrier.publish("plumbline.presence.x")
        await take(heard, 1)
    assert await carrier.last_sequence() == 0


async def test_busy_subscriber_loses_the_oldest_notices(carrier: Carrier) -> None:
    async with carrier.subscribe("number") as heard, carrier.subscribe("end") as end:
        for number in range(PENDING_LIMIT + 10):
            await carrier.publish("number", str(number).encode())
        await carrier.publish("end")
        await take(end, 1)
        assert (await take(heard, 1))[0].payload == b"10"
        assert (await take(heard, PENDING_LIMIT - 1))[-1].payload == str(PENDING_LIMIT + 9).encode()


async def test_subscribing_fails_without_a_connection(carrier: Carrier) -> None:
    await carrier.close()
    await carrier.publish("greeting")  # lost, without error
    with pytest.raises(LedgerError):
        async with carrier.subscribe("greeting"):
            pass


async def test_subscription_continues_after_a_server_restart(
    server: EmbeddedServer, jetstream: JetStreamLedger
) -> None:
    async with jetstream.subscribe("greeting") as heard:
        await jetstream.publish("greeting", b"before")
        assert (await take(heard, 1))[0].payload == b"before"
        next_one = asyncio.create_task(take(heard, 1))
        server.stop()
        server.start()
        while not next_one.done():  # published while disconnected, it is lost
            await jetstream.publish("greeting", b"after")
            await asyncio.wait({next_one}, timeout=0.05)
        assert (await next_one)[0].payload == b"after"


async def test_subscription_continues_after_nats_py_gave_up(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    """After a protocol error nats-py does not reconnect."""
    async with jetstream.subscribe("greeting") as heard:
        with pytest.raises(LedgerUnavailableError):
            await jetstream.api("X" * 5000, {})
        next_one = asyncio.create_task(take(heard, 1))
        while not next_one.done():
            await jetstream.publish("greeting", b"after")
            await asyncio.wait({next_one}, timeout=0.05)
        assert (await next_one)[0].payload == b"after"
