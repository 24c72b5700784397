"""The ledger on a real nats-server that is killed, stopped, full, or sends malformed data."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from msgspec.structs import replace
from nats.aio.client import Client

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError
from events.nats.client import consumer
from events.nats.client.connection import Connection
from events.nats.ledger import JetStreamLedger
from events.nats.server import MAX_PAYLOAD, EmbeddedServer
from events.nats.streams import NODE_STREAM, Stream, StreamConfig, command_stream
from events.process.settings import LedgerAddress
from events.schema import (
    Event,
    EventId,
    Stored,
)
from events.subjects import matches
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND, until

ONE = container(1)


async def everything(ledger: JetStreamLedger, subject: str = "plumbline.ev.>") -> list[Stored]:
    return [stored async for stored in ledger.read(subject)]


async def take(events: AsyncGenerator[Stored, None], count: int, seconds: float = 20) -> list[Stored]:
    taken: list[Stored] = []
    async with asyncio.timeout(seconds), aclosing(events):
        async for stored in events:
            taken.append(stored)
            if len(taken) == count:
                break
    return taken


async def fill(ledger: JetStreamLedger, count: int, *, size: int = 0, at_once: int = 64) -> list[Stored]:
    factory = EventFactory()
    events = [factory.note("x" * size, ONE) for _ in range(count)]
    sequences: list[int] = []
    for first in range(0, count, at_once):
        sequences += await asyncio.gather(*(ledger.append(event) for event in events[first : first + at_once]))
    return sorted(map(Stored, sequences, events))


def consumers_are(ledger: JetStreamLedger, count: int) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def probe() -> bool:
        return len(await consumers(ledger)) == count

    return probe


async def consumers(ledger: JetStreamLedger) -> list[dict[str, Any]]:
    return msgspec.json.decode(await ledger.api("CONSUMER.LIST.NODE", {}))["consumers"] or []


@asynccontextmanager
async def raw_client(server: EmbeddedServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, token=server.token)
    yield client
    await client.close()


async def at_rest(ledger: JetStreamLedger) -> dict[str, Any]:
    """Return the only consumer once it has nothing to send, or no pull request."""

    async def probe() -> bool:
        [watched] = await consumers(ledger)
        return not watched["num_waiting"] or not watched["num_pending"]

    await until(probe)
    [watched] = await consumers(ledger)
    return watched


def kill(server: EmbeddedServer) -> None:
    """Kill the server; ``start`` restarts it on the same port and store."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


# --- nothing is lost -------------------------------------------------------------------------------------------------


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


# --- the server is away ----------------------------------------------------------------------------------------------


async def test_append_times_out_and_is_not_sent_later(server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(server.address, patience=0.6)
    stored = await fill(ledger, 1)
    kill(server)
    loop = asyncio.get_running_loop()
    started = loop.time()
    ghosts = [EventFactory(f"ghost-{number}").note() for number in range(20)]
    outcomes = await asyncio.gather(*(ledger.append(event) for event in ghosts), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LedgerUnavailableError}
    assert "is nats-server running, and has its disk room?" in str(outcomes[0])
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


# --- readers leave nothing behind, and lose nothing ------------------------------------------------------------------


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


# --- no room ---------------------------------------------------------------------------------------------------------


async def fill_up(ledger: JetStreamLedger) -> tuple[list[Stored], LedgerError]:
    """Append until the ledger refuses; return the appended events and the error."""
    factory, stored = EventFactory(), list[Stored]()
    for number in itertools.count():
        event = factory.note("x" * 50_000 + str(number), ONE)
        try:
            stored.append(Stored(await ledger.append(event), event))
        except LedgerError as error:
            return stored, error
    raise AssertionError("unreachable")


async def test_full_stream_is_reported_and_recovers_with_room(server: EmbeddedServer) -> None:
    config = StreamConfig(name="NODE", max_bytes=1_000_000)
    ledger = await JetStreamLedger.connect(server.address, config=config)
    stored, error = await fill_up(ledger)
    assert isinstance(error, LedgerFullError)
    assert "free room on its disk, or raise its limit" in str(error)
    assert await everything(ledger) == stored
    await ledger.purge("plumbline.ev.>", stored[4].sequence)
    event = EventFactory("later").note()
    last = Stored(await ledger.append(event), event)
    assert await everything(ledger) == [*stored[5:], last]
    await ledger.close()


async def test_store_at_its_limit_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run", max_store=1_000_000)
    server.start()
    try:
        ledger = await JetStreamLedger.connect(server.address)
        stored, error = await fill_up(ledger)
        assert isinstance(error, LedgerFullError)
        assert await everything(ledger) == stored
        await ledger.close()
    finally:
        server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "plumbline-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_full_disk_is_reported_and_loses_no_acknowledged_event(small_disk: Path, tmp_path: Path) -> None:
    ballast = small_disk / "ballast"
    server = EmbeddedServer(small_disk / "store", tmp_path / "run")
    server.start()
    try:
        ledger = await JetStreamLedger.connect(server.address, patience=1.0)
        # Another process fills the disk after the start: the server uses only a part of what was free then.
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 700_000))
        stored, error = await fill_up(ledger)
        assert isinstance(error, LedgerFullError | LedgerUnavailableError)
        assert "disk" in str(error)
        assert len(stored) > 5
        with pytest.raises(LedgerError, match="disk"):
            await ledger.append(EventFactory("still full").note())
        assert not server.healthy()
        ballast.unlink()
        server.stop()
        server.start()
        assert server.healthy()
        kept = {entry.event.id: entry for entry in await everything(ledger)}
        assert [kept[entry.event.id] for entry in stored] == stored
        assert await ledger.append(EventFactory("room again").note()) > stored[-1].sequence
        await ledger.close()
    finally:
        server.stop()


async def test_event_above_the_servers_limit_is_refused_at_once(jetstream: JetStreamLedger) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(LedgerError, match="max_payload"):
        await jetstream.append(EventFactory().note("x" * MAX_PAYLOAD))
    with pytest.raises(LedgerError, match="too long"):
        await jetstream.append(EventFactory("n" * 2000).note())
    assert asyncio.get_running_loop().time() - started < 1
    assert jetstream.generation == 1
    assert await jetstream.append(EventFactory().note()) == 1


# --- the stream ------------------------------------------------------------------------------------------------------


async def test_stream_is_updated_only_if_it_differs(server: EmbeddedServer) -> None:
    advice: list[str] = []

    async def note(message: Any) -> None:
        advice.append(message.subject.split(".")[4])

    async with raw_client(server) as client:
        await client.subscribe("$JS.EVENT.ADVISORY.STREAM.*.NODE", cb=note)
        await client.flush()
        for config in (NODE_STREAM, NODE_STREAM, StreamConfig(name="NODE", max_age=3_600_000_000_000), NODE_STREAM):
            ledger = await JetStreamLedger.connect(server.address, config=config)
            await ledger.close()
        await client.flush()
    assert advice == ["CREATED", "UPDATED", "UPDATED"]


async def test_refused_stream_configuration_names_the_reason(server: EmbeddedServer) -> None:
    for config in (StreamConfig(name="NODE"), StreamConfig(name="OTHER")):
        try:
            ledger = await JetStreamLedger.connect(server.address, config=config)
        except LedgerError as error:
            assert "refused the stream OTHER: subjects overlap" in str(error)  # noqa: PT017  # the first must not raise
        else:
            assert config.name == "NODE"
            await ledger.close()


async def test_deleted_stream_is_an_error_not_an_empty_ledger(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1)
    await jetstream.api("STREAM.DELETE.NODE", {})
    for call in (jetstream.last_sequence(), jetstream.last("plumbline.ev.>"), everything(jetstream)):
        with pytest.raises(LedgerUnavailableError, match="stream not found"):
            await call


async def test_wrong_token_is_explained(server: EmbeddedServer) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(LedgerError, match="does not accept the token"):
            await JetStreamLedger.connect(LedgerAddress(server.url, "wrong"))
        with pytest.raises(LedgerError, match="does not accept the token"):
            await JetStreamLedger.connect(LedgerAddress(server.url))


async def test_invalid_address_is_explained() -> None:
    with pytest.raises(LedgerError, match="there is no ledger at 'nats://"):
        await JetStreamLedger.connect(LedgerAddress("nats://[::1"))


async def test_time_of_each_append_is_observed(server: EmbeddedServer) -> None:
    seconds: list[float] = []
    ledger = await JetStreamLedger.connect(server.address, observe_ack=seconds.append)
    await fill(ledger, 5)
    assert len(seconds) == 5
    assert all(0 < each < 2 for each in seconds)
    await ledger.close()


async def test_conflict_has_the_servers_reason(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 3)
    with pytest.raises(ConflictError, match="wrong last sequence: 3"):
        await jetstream.append(EventFactory("x").note(), Expect("plumbline.ev.>", 2))


# --- what both ledgers mean by a filter ------------------------------------------------------------------------------

_SUBJECTS = [
    "plumbline.ev.n.s.X",
    "plumbline.ev.n.-.X",
    "plumbline.ev.n.s",
    "plumbline.ev.n.s.X.y",
    "plumbline.ev",
    "plumbline",
]
_PATTERNS = [
    ">",
    "*",
    "plumbline.>",
    "plumbline.ev.>",
    "plumbline.ev",
    "plumbline.ev.*",
    "plumbline.ev.*.*.*",
    "plumbline.ev.n.*.X",
    "plumbline.*.n.s.X",
    "plumbline.ev.n.s.X",
    "plumbline.ev.n.s.X.>",
    "plumbline.ev.n.-.>",
    "plumbline.ev.N.s.X",
    "*.*",
    "*.>",
]


async def test_memory_ledger_matches_subjects_as_the_server_does(server: EmbeddedServer) -> None:
    got: set[tuple[str, str]] = set()
    async with raw_client(server) as client:
        for pattern in _PATTERNS:

            async def note(message: Any, pattern: str = pattern) -> None:
                got.add((message.subject, pattern))

            await client.subscribe(pattern, cb=note)
        for subject in _SUBJECTS:
            await client.publish(subject, b"")
        await client.flush()
        await client.drain()
    told = {(subject, pattern) for subject, pattern in got if subject in _SUBJECTS}
    assert told == {(s, p) for s in _SUBJECTS for p in _PATTERNS if matches(s, p)}


async def test_connection_that_never_opened_can_be_closed() -> None:
    connection = Connection(LedgerAddress("nats://127.0.0.1:1"), "test", 0.2)
    await connection.close()
    with pytest.raises(LedgerError, match="closed"):
        await connection.open()
