"""The recorder: state and ledger never part, whatever the ledger does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from worker_harness import BOX, ETH0, NODE, PLANNED, attach, completed, failed, until

from events.fold import SandboxKey, SandboxPhase
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import (
    AttachRequested,
    Data,
    Event,
    InterfaceAttached,
    InterfaceDetached,
    NetworkName,
    WorkerStarted,
    WorkerStopped,
)
from nodeworker.journal import journal as module
from nodeworker.journal.journal import Recorder

KEY = SandboxKey(BOX, ETH0)
ATTACHED = InterfaceAttached(network=NetworkName("default"), ifname=ETH0, result="{}", seconds=0.1)
DETACHED = InterfaceDetached(network=NetworkName("default"), ifname=ETH0)


class UnreliableLedger(MemoryLedger):
    """A ledger in memory whose next appends go wrong: each error is raised once, after the append where it is late."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[LedgerError] = []
        self.late = False
        self.appends = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        self.appends += 1
        await self.hold.wait()
        if not self.errors:
            return await super().append(event, expect)
        error = self.errors.pop(0)
        if self.late:
            await super().append(event, expect)
        raise error

    async def types(self) -> list[str]:
        return [stored.event.type async for stored in self.read()]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.001)


@pytest.fixture
def ledger() -> UnreliableLedger:
    return UnreliableLedger()


@pytest.fixture
async def recorder(ledger: UnreliableLedger) -> AsyncIterator[Recorder]:
    recorder = Recorder(ledger, NODE)
    await recorder.open_epoch(WorkerStarted(version="1", pid=1))
    yield recorder
    await recorder.close()


@pytest.fixture
async def back(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set it to have what was postponed tried again; until then nothing is, however slow the machine."""
    back = asyncio.Event()
    catch_up = recorder._catch_up

    async def when_back() -> None:
        await back.wait()
        await catch_up()

    monkeypatch.setattr(recorder, "_catch_up", when_back)
    return back


async def taken_in(recorder: Recorder, intent: Data) -> Event:
    """Have *intent* recorded and consumed, as the worker does."""
    await recorder.request(recorder.event(intent, BOX))
    async for stored in recorder.intents():
        return stored.event
    raise AssertionError


async def settled(recorder: Recorder) -> None:
    await until(lambda: recorder.settled)


async def test_state_is_what_the_ledger_has_confirmed(recorder: Recorder) -> None:
    intent = await taken_in(recorder, attach())
    for data in (PLANNED, ATTACHED, completed()):
        await recorder.record(data, BOX, intent.id)
    assert recorder.state.sandboxes[KEY].phase is SandboxPhase.ATTACHED
    assert not recorder.state.pending
    assert not recorder.state.anomalies


async def test_an_intent_is_applied_where_it_is_consumed(recorder: Recorder) -> None:
    await recorder.request(recorder.event(attach(), BOX))
    assert KEY not in recorder.state.sandboxes
    async for _ in recorder.intents():
        break
    assert KEY in recorder.state.sandboxes


async def test_what_is_recorded_for_an_intent_on_its_way_is_applied_behind_it(
    recorder: Recorder, ledger: UnreliableLedger
) -> None:
    intent = recorder.event(attach(), BOX)
    ledger.hold.clear()
    request = asyncio.create_task(recorder.request(intent))
    await asyncio.sleep(0)
    assert recorder.expects(BOX)
    recording = recorder.begin(PLANNED, BOX, intent.id)
    await asyncio.sleep(0)
    ledger.hold.set()
    await request
    await until(lambda: ledger.appends == 3)
    await asyncio.sleep(0)
    assert not recording.done()
    async for _ in recorder.intents():
        break
    await recording
    assert not recorder.expects(BOX)
    assert recorder.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]


async def test_what_was_begun_for_an_intent_that_the_ledger_refused_is_not_told_later(
    recorder: Recorder, ledger: UnreliableLedger
) -> None:
    ledger.errors = [LedgerFullError("full"), LedgerFullError("full")]
    ledger.hold.clear()
    intent = recorder.event(attach(), BOX)
    request = asyncio.create_task(recorder.request(intent))
    await asyncio.sleep(0)
    recording = recorder.begin(PLANNED, BOX, intent.id)
    await asyncio.sleep(0)
    ledger.hold.set()
    for refused in (request, recording):
        with pytest.raises(LedgerFullError):
            await refused
    assert recorder.settled
    assert not recorder.expects(BOX)
    assert await ledger.types() == ["WorkerStarted"]


async def test_a_successor_loads_the_same_state_and_follows_from_there(
    ledger: UnreliableLedger, recorder: Recorder
) -> None:
    intent = await taken_in(recorder, attach())
    await recorder.record(PLANNED, BOX, intent.id)
    successor = Recorder(ledger, NODE)
    assert [stored.event.type async for stored in successor.load()] == await ledger.types()
    assert successor.state.sandboxes == recorder.state.sandboxes
    await successor.open_epoch(WorkerStarted(version="1", pid=2))
    assert successor.state.epochs == {NODE: 2}
    again = await taken_in(successor, attach("r2"))
    assert again.epoch == 2
    assert isinstance(again.data, AttachRequested)
    assert again.data.request == "r2"  # not r1, which was loaded


async def test_of_two_workers_that_start_at_once_one_gives_up(ledger: UnreliableLedger) -> None:
    ledger.hold.clear()
    both = [asyncio.create_task(Recorder(ledger, NODE).open_epoch(WorkerStarted(version="1", pid=n))) for n in (1, 2)]
    await until(lambda: ledger.appends == 2)
    ledger.hold.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "NoneType"]


@pytest.mark.parametrize("error", [LedgerUnavailableError("away"), LedgerFullError("full")])
async def test_what_the_ledger_does_not_take_is_raised_and_recorded_later(
    ledger: UnreliableLedger, recorder: Recorder, back: asyncio.Event, error: LedgerError
) -> None:
    intent = await taken_in(recorder, attach())
    ledger.errors = [error, LedgerUnavailableError("still away")]
    with pytest.raises(type(error)):
        await recorder.record(PLANNED, BOX, intent.id)
    assert not recorder.settled
    assert recorder.state.sandboxes[KEY].plan is None
    back.set()
    await settled(recorder)
    assert recorder.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]


async def test_what_the_ledger_took_without_saying_so_is_in_it_once(
    ledger: UnreliableLedger, recorder: Recorder
) -> None:
    intent = await taken_in(recorder, attach())
    ledger.errors = [LedgerUnavailableError("no answer")]
    ledger.late = True
    with pytest.raises(LedgerUnavailableError):
        await recorder.record(PLANNED, BOX, intent.id)
    await settled(recorder)
    assert recorder.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]
    assert not recorder.state.anomalies


async def test_events_of_a_sandbox_stay_in_order_when_the_ledger_comes_back(
    ledger: UnreliableLedger, recorder: Recorder, back: asyncio.Event
) -> None:
    intent = await taken_in(recorder, attach())
    await recorder.record(PLANNED, BOX, intent.id)
    ledger.errors = [LedgerUnavailableError("away")]
    with pytest.raises(LedgerUnavailableError):
        await recorder.record(ATTACHED, BOX, intent.id)
    for data in (DETACHED, failed()):  # the ledger is back, and yet they wait
        with pytest.raises(LedgerUnavailableError, match="what came before"):
            await recorder.record(data, BOX, intent.id)
    await recorder.record(WorkerStopped(reason="others do not wait"))
    back.set()
    await settled(recorder)
    assert [name for name in await ledger.types() if name not in ("WorkerStarted", "WorkerStopped")] == [
        "AttachRequested",
        "AttachPlanned",
        "InterfaceAttached",
        "InterfaceDetached",
        "AttachFailed",
    ]
    assert not recorder.state.sandboxes
    assert not recorder.state.pending
    assert not recorder.state.anomalies


async def test_what_can_never_be_recorded_is_not_tried_again(ledger: UnreliableLedger, recorder: Recorder) -> None:
    intent = await taken_in(recorder, attach())
    ledger.errors = [LedgerError("larger than max_payload")]
    with pytest.raises(LedgerError, match="max_payload"):
        await recorder.record(PLANNED, BOX, intent.id)
    assert recorder.settled
    await recorder.record(failed(), BOX, intent.id)
    assert not recorder.state.pending


async def test_what_turns_out_to_be_impossible_holds_up_nobody(
    ledger: UnreliableLedger, recorder: Recorder, back: asyncio.Event
) -> None:
    intent = await taken_in(recorder, attach())
    ledger.errors = [LedgerUnavailableError("away"), LedgerError("larger than max_payload")]
    with pytest.raises(LedgerUnavailableError):
        await recorder.record(PLANNED, BOX, intent.id)
    with pytest.raises(LedgerUnavailableError):
        await recorder.record(failed(), BOX, intent.id)
    back.set()
    await settled(recorder)
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachFailed"]


async def test_an_append_goes_on_without_its_caller(ledger: UnreliableLedger, recorder: Recorder) -> None:
    intent = await taken_in(recorder, attach())
    ledger.hold.clear()
    before = ledger.appends
    caller = asyncio.create_task(recorder.record(PLANNED, BOX, intent.id))
    await until(lambda: ledger.appends > before)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    ledger.hold.set()
    await recorder.close()
    assert recorder.state.sandboxes[KEY].plan == PLANNED


async def test_closing_gives_up_what_the_ledger_does_not_take(ledger: UnreliableLedger, recorder: Recorder) -> None:
    intent = await taken_in(recorder, attach())
    ledger.hold.clear()
    caller = asyncio.create_task(recorder.record(PLANNED, BOX, intent.id))
    await asyncio.sleep(0)
    await recorder.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_worker_whose_node_another_took_over_records_nothing_more(
    recorder: Recorder, ledger: UnreliableLedger
) -> None:
    await recorder.record(ATTACHED, BOX)
    assert not recorder.replaced.is_set()
    await Recorder(ledger, NODE).open_epoch(WorkerStarted(version="1", pid=2))
    end = await ledger.last_sequence()
    with pytest.raises(ConflictError, match=f"another worker has taken node {NODE} over"):
        await recorder.record(DETACHED, BOX)
    assert recorder.replaced.is_set()
    with pytest.raises(ConflictError):
        await recorder.request(recorder.event(attach("late"), BOX))
    assert await ledger.last_sequence() == end


async def test_what_was_postponed_is_given_up_when_another_took_the_node_over(
    recorder: Recorder, ledger: UnreliableLedger
) -> None:
    ledger.errors = [LedgerUnavailableError("away")]
    with pytest.raises(LedgerUnavailableError):
        await recorder.record(ATTACHED, BOX)
    successor = Recorder(ledger, NODE)
    await successor.open_epoch(WorkerStarted(version="1", pid=2))
    await until(lambda: recorder.settled)
    assert recorder.replaced.is_set()
    assert "InterfaceAttached" not in await ledger.types()
