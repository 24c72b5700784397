"""The ledger while its nats-server is down, stopped or silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
from nats.aio.client import Client

from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.nats.client import consumer
from events.nats.client.connection import Connection
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.process.settings import LedgerAddress
from events.schema import Stored
from tests.support.nats.jetstream import consumers, everything, fill, kill
from tests.support.stories.events import EventFactory
from tests.support.waiting import until


async def test_append_times_out_and_is_not_sent_later(server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(server.address, patience=0.6)
    stored = await fill(ledger, 1)
    kill(server)
    loop = asyncio.get_running_loop()
    started = loop.time()
    ghosts = [EventFactory(f"ghost-{number}").note() for number in range(20)]
    outcomes = await asyncio.gather(*(ledger.append(event) for event in ghosts), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LedgerUnavailableError}
    assert "is nats-server running, and is there free space on its disk?" in str(outcomes[0])
    assert 0.5 < loop.time() - started < 2
    for call in (
        ledger.last_sequence(),
        ledger.last("plumbline.ev.>"),
        ledger.purge("plumbline.ev.>", 1),
        everything(ledger),
    ):
        with pytest.raises(LedgerUnavailableError):
            await call
    assert not ledger.connected
    server.start()
    await until(_connected(ledger))
    event = EventFactory("later").note()
    assert await ledger.append(event) == 2
    assert await everything(ledger) == [*stored, Stored(2, event)]
    await ledger.close()


def _connected(ledger: JetStreamLedger) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def probe() -> bool:
        return ledger.connected

    return probe


async def test_append_waits_for_a_server_that_is_back_in_time(
    server: EmbeddedServer, jetstream: JetStreamLedger
) -> None:
    kill(server)
    appending = asyncio.create_task(jetstream.append(EventFactory().note()))
    await asyncio.wait([appending], timeout=0.3)
    assert not appending.done()
    server.start()
    assert await appending == 1


async def test_cancelled_append_ends_at_once(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    kill(server)
    appending = asyncio.create_task(jetstream.append(EventFactory().note()))
    await asyncio.wait([appending], timeout=0.1)
    appending.cancel()
    await asyncio.wait([appending], timeout=0.5)
    assert appending.cancelled()


async def test_closed_client_does_not_retry_after_a_lost_cancellation(
    server: EmbeddedServer, jetstream: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[object] = []

    async def refused(_: object, to: object, *__: object) -> None:
        attempts.append(to)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ConnectionRefusedError

    async def trying() -> bool:
        return bool(attempts)

    monkeypatch.setattr(Client, "_connect_to_server", refused)
    kill(server)
    await until(trying)
    reconnecting = jetstream.connection._client._reconnection_task
    assert reconnecting is not None
    await jetstream.close()
    await asyncio.wait([reconnecting], timeout=5)
    assert reconnecting.done()
    assert len(attempts) == 1


async def test_connect_waits_for_a_server(server: EmbeddedServer) -> None:
    kill(server)
    connecting = asyncio.create_task(JetStreamLedger.connect(server.address))
    await asyncio.wait([connecting], timeout=0.3)
    assert not connecting.done()
    server.start()
    ledger = await connecting
    assert await ledger.last_sequence() == 0
    await ledger.close()


async def test_stopped_server_delays_but_loses_nothing(server: EmbeddedServer, jetstream: JetStreamLedger) -> None:
    stored = await fill(jetstream, 1200)
    async with aclosing(jetstream.follow()) as following, aclosing(jetstream.read()) as reading:
        followed, read = [await anext(following)], [await anext(reading)]
        with stopped(server):
            appending = asyncio.create_task(jetstream.append(event := EventFactory("late").note()))
            await asyncio.wait([appending], timeout=1.5)
            assert not appending.done()
        late = Stored(await appending, event)
        async with asyncio.timeout(10):
            followed += [await anext(following) for _ in range(1200)]
            read += [entry async for entry in reading]
    assert followed == [*stored, late]
    assert read == stored
    assert await everything(jetstream) == [*stored, late]


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_readers_detect_a_silent_server(
    server: EmbeddedServer, jetstream: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "_HEARTBEAT", 0.2)
    monkeypatch.setattr(consumer, "_GRACE", 0.2)
    await fill(jetstream, 1)
    async with aclosing(jetstream.follow()) as following:
        await anext(following)
        [before] = await consumers(jetstream)
        waiting = asyncio.ensure_future(anext(following))
        with stopped(server):
            await asyncio.wait([waiting], timeout=1.2)
        event = EventFactory("late").note()
        await jetstream.append(event)
        async with asyncio.timeout(10):
            assert (await waiting).event == event
        assert before["name"] not in [watched["name"] for watched in await consumers(jetstream)]


async def test_connection_that_never_opened_can_be_closed() -> None:
    connection = Connection(LedgerAddress("nats://127.0.0.1:1"), "test", 0.2)
    await connection.close()
    with pytest.raises(LedgerError, match="closed"):
        await connection.open()
