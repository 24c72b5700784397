"""Recovery finishes what is open; retention purges what ended long ago."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest

from events.fold import Pending
from events.ledger.ledger import Ledger, LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.schema import (
    NO_NODE,
    ComparisonRequested,
    ContainerId,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    Event,
    EventId,
    GcCompleted,
    GcRequested,
    InterfaceAttached,
    InterfaceDetached,
    InterfaceDetachFailed,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    NetworkName,
    NodeCompared,
    Pod,
    ReclaimRequested,
    RequestId,
    StatusPublished,
    Stored,
    WorkerStarted,
    new_event_id,
    rfc3339,
)
from nodeworker.intake import recovery as module
from nodeworker.intake.recovery import Recovery
from nodeworker.intake.spool import Spool
from nodeworker.journal import retention as retention_module
from nodeworker.journal.journal import Journal
from nodeworker.journal.retention import Retention
from nodeworker.metrics import WorkerMetrics
from nodeworker.sandboxes.answers import OK, Answers
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.shim.frame import Frame
from tests.support.waiting import BOUND, until
from tests.support.worker.worker_harness import (
    BOX,
    ETH0,
    FAILURE,
    NODE,
    PLANNED,
    CountingLedger,
    attach,
    completed,
    detach,
    failed,
)

DEL = Frame(
    request=RequestId("de" * 16),
    seconds_left=0.0,
    env={"CNI_COMMAND": "DEL", "CNI_CONTAINERID": BOX, "CNI_IFNAME": ETH0},
    stdin=b"{}",
)
ATTACHED = InterfaceAttached(network=NetworkName("default"), ifname=ETH0, result="{}", seconds=0.1)
DETACHED = InterfaceDetached(network=NetworkName("default"), ifname=ETH0)
REFUSED = InterfaceDetachFailed(network=NetworkName("default"), ifname=ETH0, failure=FAILURE)


class Desk:
    """Stands for scheduler and dispatcher: notes the intents that it gets."""

    def __init__(self) -> None:
        self.given: dict[EventId, bool] = {}

    def has(self, intent: EventId) -> bool:
        return intent in self.given

    def dispatch(self, intent: Stored | Pending, *, resumed: bool = False) -> None:
        self.given[intent.event.id] = resumed


class Worker:
    """A journal that consumes its intents, with recovery and spool."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.journal = Journal(ledger, NODE)
        self.desk = Desk()
        self.answers = Answers()
        self.metrics = metrics = WorkerMetrics()
        self.spool = Spool(folder, self.journal, self.answers, metrics)
        scheduler, dispatcher = cast("Scheduler", self.desk), cast("Dispatcher", self.desk)
        self.recovery = Recovery(self.journal, scheduler, dispatcher, self.spool, self.answers, metrics)

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"plumbline_{name}")

    async def consume(self) -> None:
        async for stored in self.journal.intents():
            self.desk.dispatch(stored)

    async def intent(self, data: Data, sandbox: str = BOX) -> EventId:
        """Append an intent, and return its ID once it is consumed."""
        known = set(self.desk.given)
        await self.journal.append_intent(self.journal.event(data, ContainerId(sandbox)))
        await until(lambda: set(self.desk.given) > known)
        (event_id,) = set(self.desk.given) - known
        return event_id

    async def append_all(self, *datas: Data, sandbox: str = BOX) -> None:
        """Append an intent and what followed it."""
        cause = await self.intent(datas[0], sandbox)
        for data in datas[1:]:
            await self.journal.record(data, ContainerId(sandbox), cause)

    async def attached(self, sandbox: str = BOX) -> None:
        await self.append_all(attach(), PLANNED, ATTACHED, completed(), sandbox=sandbox)

    async def detached(self, sandbox: str = BOX) -> None:
        await self.append_all(
            detach(), DETACHED, DetachCompleted(request=RequestId("r2"), ifname=ETH0), sandbox=sandbox
        )

    async def refused(self) -> None:
        await self.append_all(detach(), REFUSED, DetachFailed(request=RequestId("r2"), ifname=ETH0, failure=FAILURE))


@pytest.fixture
def ledger() -> CountingLedger:
    return CountingLedger()


@pytest.fixture
async def worker(ledger: CountingLedger, tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(ledger, tmp_path / "spool")
    await worker.journal.open_epoch(WorkerStarted(version="1", pid=1))
    consuming = asyncio.create_task(worker.consume())
    yield worker
    consuming.cancel()
    await worker.journal.close()


async def retries(ledger: CountingLedger) -> list[int]:
    datas = [stored.event.data async for stored in ledger.read()]
    return [data.retry for data in datas if isinstance(data, DetachRequested) and data.retry]


async def test_an_open_intent_that_is_not_queued_is_resumed(worker: Worker) -> None:
    intent = await worker.intent(attach("r7"))
    assert worker.recovery.resume() == []
    worker.desk.given.clear()
    assert worker.recovery.resume() == [RequestId("r7")]
    assert worker.desk.given == {intent: True}


async def test_intents_are_resumed_in_their_order(worker: Worker) -> None:
    ids = [await worker.intent(attach(f"r{number}"), f"box-{number}") for number in range(5)]
    worker.desk.given.clear()
    worker.recovery.resume()
    assert list(worker.desk.given) == ids


async def test_nothing_is_resumed_before_the_ledger_has_all_events(worker: Worker, ledger: CountingLedger) -> None:
    intent = await worker.intent(attach())
    ledger.available = False
    with pytest.raises(LedgerUnavailableError):
        await worker.journal.record(PLANNED, BOX, intent)
    worker.desk.given.clear()
    assert worker.recovery.resume() == []


async def test_a_spooled_request_becomes_an_intent_and_is_removed(worker: Worker) -> None:
    worker.spool.put(DEL)
    assert await worker.spool.drain() == [DEL.request]
    assert len(worker.spool) == 0
    await until(lambda: worker.desk.given)
    (pending,) = worker.journal.state.pending.values()
    assert isinstance(pending.event.data, DetachRequested)
    assert pending.event.data.spooled
    assert (pending.event.sandbox, pending.event.data.request) == (BOX, DEL.request)
    worker.answers.give(DEL.request, OK)
    assert await worker.answers.wait(DEL.request) == OK


async def test_a_spooled_request_stays_until_the_ledger_takes_it(worker: Worker, ledger: CountingLedger) -> None:
    worker.spool.put(DEL)
    ledger.available = False
    for _ in range(3):
        with pytest.raises(LedgerUnavailableError):
            await worker.spool.drain()
        assert len(worker.spool) == 1
    ledger.available = True
    assert await worker.spool.drain() == [DEL.request]
    assert len(worker.spool) == 0
    await until(lambda: worker.desk.given)


async def test_gauges_tell_what_is_so_without_a_round_of_the_recovery(worker: Worker) -> None:
    assert (worker.gauge("spooled_requests"), worker.gauge("detach_retries")) == (0, 0)
    worker.spool.put(DEL)
    await worker.attached()
    await worker.refused()
    assert (worker.gauge("spooled_requests"), worker.gauge("detach_retries")) == (1, 1)
    for spooled in worker.spool.requests():
        worker.spool.remove(spooled)
    again = await worker.intent(DetachRequested(request=RequestId("again"), ifname=ETH0, netns="", pod=Pod()))
    await worker.journal.record(DETACHED, BOX, again)
    await worker.journal.record(DetachCompleted(request=RequestId("again"), ifname=ETH0), BOX, again)
    assert (worker.gauge("spooled_requests"), worker.gauge("detach_retries")) == (0, 0)


async def test_a_spooled_request_with_an_unknown_command_is_dropped(worker: Worker) -> None:
    worker.spool.put(Frame(request=RequestId("00" * 16), seconds_left=0.0, env={"CNI_COMMAND": "UPDATE"}, stdin=b""))
    worker.spool.put(DEL)
    assert await worker.spool.drain() == [DEL.request]
    assert len(worker.spool) == 0


async def test_a_failed_detach_is_retried_with_backoff(
    worker: Worker, ledger: CountingLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.001)
    monkeypatch.setattr(module, "_FIRST_RETRY", 0.01)
    monkeypatch.setattr(module, "_LAST_RETRY", 0.08)
    await worker.attached()
    await worker.refused()
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(worker.recovery.run())
    times = [loop.time()]
    for count in range(1, 7):
        known = len(worker.desk.given)
        await until(lambda known=known: len(worker.desk.given) > known)
        times.append(loop.time())
        assert await retries(ledger) == list(range(1, count + 1))
        retry = list(worker.desk.given)[-1]
        await worker.journal.record(REFUSED, BOX, retry)
        await worker.journal.record(DetachFailed(request=RequestId("r2"), ifname=ETH0, failure=FAILURE), BOX, retry)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    for pause, wanted in zip(pauses, (0.01, 0.02, 0.04, 0.08, 0.08, 0.08), strict=True):
        assert pause > wanted / 2  # both ends are seen a little late
    running.cancel()


async def test_only_an_incomplete_rollback_is_retried(
    worker: Worker, ledger: CountingLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.001)
    monkeypatch.setattr(module, "_FIRST_RETRY", 0.001)
    await worker.append_all(attach(), PLANNED, ATTACHED, DETACHED, failed(), sandbox="clean")
    await worker.append_all(attach(), PLANNED, ATTACHED, REFUSED, failed(), sandbox="dirty")
    running = asyncio.create_task(worker.recovery.run())
    known = len(worker.desk.given)
    await until(lambda: len(worker.desk.given) > known)
    running.cancel()
    asked = [s.event.sandbox async for s in ledger.read() if isinstance(s.event.data, DetachRequested)]
    assert asked == ["dirty"]


async def test_recovery_survives_an_unavailable_ledger(
    worker: Worker, ledger: CountingLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.001)
    worker.spool.put(DEL)
    ledger.available = False
    running = asyncio.create_task(worker.recovery.run())
    await until(lambda: ledger.appends > 5)
    ledger.available = True
    await until(lambda: worker.desk.given)
    running.cancel()


# --- retention, on the real thing ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("nats")
    server = EmbeddedServer(folder / "store", folder / "run")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def lasting(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[tuple[JetStreamLedger, Worker]]:
    """A worker on JetStream."""
    ledger = await JetStreamLedger.connect(server.address)
    worker = Worker(ledger, tmp_path / "spool")
    async for _ in worker.journal.load():
        pass
    await worker.journal.open_epoch(WorkerStarted(version="1", pid=1))
    consuming = asyncio.create_task(worker.consume())
    yield ledger, worker
    consuming.cancel()
    await asyncio.wait({consuming})
    await worker.journal.close()
    await ledger.close()


async def of(ledger: Ledger, sandbox: str) -> list[Event]:
    return [stored.event async for stored in ledger.read() if stored.event.sandbox == sandbox]


async def publish(ledger: Ledger, sandbox: str) -> None:
    """Append what the reconciler writes of a sandbox."""
    data = StatusPublished(node=NODE, ifname=ETH0, pod=Pod(), text="[]")
    now = time.time_ns()
    event = Event(
        id=new_event_id(now // 1_000_000, secrets.token_bytes(10)),
        at=rfc3339(now),
        node=NO_NODE,
        boot_id="",
        epoch=0,
        sandbox=ContainerId(sandbox),
        cause=EventId(""),
        trace="",
        data=data,
    )
    await ledger.append(event)


async def test_retention_purges_sandboxes_that_ended_long_ago(lasting: tuple[JetStreamLedger, Worker]) -> None:
    ledger, worker = lasting
    closed, live, failure, back, recent = (f"{name}-{secrets.token_hex(4)}" for name in ("c", "l", "f", "b", "r"))
    await worker.attached(closed)
    await worker.detached(closed)
    await worker.attached(live)
    await worker.append_all(attach(), failed(), sandbox=failure)
    for _ in range(2):  # one container ID, twice
        await worker.attached(back)
        await worker.detached(back)
    await worker.attached(back)
    await publish(ledger, closed)  # later than it was closed
    await publish(ledger, live)
    await worker.append_all(attach(), failed(), sandbox=f"last-{failure}")
    now = time.time_ns()
    await worker.attached(recent)
    await worker.detached(recent)

    retention = Retention(ledger, worker.journal, hours=1)
    assert await retention.purge(now - int(3600e9)) == 0
    assert len(await of(ledger, closed)) == 8
    assert await retention.purge(now) == 3
    assert await of(ledger, closed) == await of(ledger, failure) == []
    assert [event.type for event in await of(ledger, live)][-2:] == ["AttachCompleted", "StatusPublished"]
    assert len(await of(ledger, back)) == 18  # it lives: nothing of it goes
    assert len(await of(ledger, recent)) == 7
    assert [event.type for event in await of(ledger, "")][-1] == "WorkerStarted"

    state = worker.journal.state
    assert {key.container_id for key in state.sandboxes} >= {live, back}
    successor = Journal(ledger, NODE)
    async for _ in successor.load():
        pass
    assert successor.state.sandboxes == state.sandboxes
    assert not successor.state.anomalies


async def test_retention_purges_ended_events_of_the_node_itself(lasting: tuple[JetStreamLedger, Worker]) -> None:
    ledger, worker = lasting
    record = worker.journal.record
    box = f"missed-{secrets.token_hex(4)}"
    gone = Leak(id=LeakId(f"sandbox/{box}/eth0"), kind=LeakKind.SANDBOX_GONE, what=box, holder=ContainerId(box))
    stuck = Leak(id=LeakId("link/veth1"), kind=LeakKind.LINK_UNOWNED, what="veth1")
    await worker.append_all(
        GcRequested(request=RequestId("g"), config="{}"), GcCompleted(request=RequestId("g")), sandbox=""
    )
    await worker.attached(box)
    await record(LeakObserved(leak=gone, sightings=2), ContainerId(box))
    reclaim = await worker.intent(ReclaimRequested(request=RequestId("c"), leak=gone, command=8), box)
    await worker.detached(box)
    await record(LeakReclaimed(request=RequestId("c"), leak=gone), ContainerId(box), reclaim)  # later than the last DEL
    await worker.append_all(
        ComparisonRequested(request=RequestId("n"), command=9), NodeCompared(request=RequestId("n")), sandbox=""
    )
    await record(LeakObserved(leak=stuck))
    await record(LeakObserved(leak=stuck, sightings=2))
    await worker.intent(GcRequested(request=RequestId("open"), config="{}"), "")
    state = worker.journal.state

    assert await Retention(ledger, worker.journal, hours=1, copied=lambda: 1).purge(time.time_ns()) == 0
    assert len(await of(ledger, box)) == 10  # the hub has not got it
    assert await Retention(ledger, worker.journal, hours=1).purge(time.time_ns()) >= 1
    assert await of(ledger, box) == []
    left = [event.type for event in await of(ledger, "")]
    kept = ["ComparisonRequested", "NodeCompared", "LeakObserved", "LeakObserved", "GcRequested"]  # the newest command
    assert left == ["WorkerStarted", *kept]

    successor = Journal(ledger, NODE)
    async for _ in successor.load():
        pass
    again = successor.state
    assert (again.sandboxes, again.pending, again.leaks) == (state.sandboxes, state.pending, state.leaks)
    assert (again.epochs, again.commands) == (state.epochs, {NODE: 9})
    assert not again.anomalies
    await successor.open_epoch(WorkerStarted(version="1", pid=2))
    assert again.epochs[NODE] == state.epochs[NODE] + 1


async def test_retention_retries_when_the_ledger_was_unavailable(
    worker: Worker, ledger: CountingLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_INTERVAL", 0.001)
    await worker.attached()
    await worker.detached()
    ledger.available = False
    running = asyncio.create_task(Retention(ledger, worker.journal, hours=0).run())
    await asyncio.sleep(0.01)
    assert not running.done()
    ledger.available = True
    async with asyncio.timeout(BOUND):
        while await of(ledger, BOX):  # noqa: ASYNC110  # what is looked at has no event to wait for
            await asyncio.sleep(0.001)
    running.cancel()
