"""The journal: its state equals the ledger, whatever the ledger does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from events.fold import SandboxKey, SandboxPhase
from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerFullError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import (
    AttachRequested,
    Data,
    ErrorClass,
    Event,
    InterfaceAttached,
    InterfaceDetached,
    NetworkName,
    Phase,
    WorkerStarted,
    WorkerStopped,
)
from nodeworker.errors import RequestFailedError
from nodeworker.journal import journal as module
from nodeworker.journal.effect_log import EffectLog
from nodeworker.journal.journal import Journal
from tests.support.waiting import until
from tests.support.worker.worker_harness import BOX, ETH0, NODE, PLANNED, attach, completed, failed

KEY = SandboxKey(BOX, ETH0)
ATTACHED = InterfaceAttached(network=NetworkName("default"), ifname=ETH0, result="{}", seconds=0.1)
DETACHED = InterfaceDetached(network=NetworkName("default"), ifname=ETH0)


class UnreliableLedger(MemoryLedger):
    """A ledger in memory whose next appends fail: each error is raised once, if ``late`` after the append."""

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
async def journal(ledger: UnreliableLedger) -> AsyncIterator[Journal]:
    journal = Journal(ledger, NODE)
    await journal.open_epoch(WorkerStarted(version="1", pid=1))
    yield journal
    await journal.close()


@pytest.fixture
async def back(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set it to retry postponed events; until then none is retried, however slow the machine is."""
    back = asyncio.Event()
    catch_up = journal._catch_up

    async def when_back() -> None:
        await back.wait()
        await catch_up()

    monkeypatch.setattr(journal, "_catch_up", when_back)
    return back


async def consumed(journal: Journal, intent: Data) -> Event:
    """Append and consume *intent*, as the worker does."""
    await journal.append_intent(journal.event(intent, BOX))
    async for stored in journal.intents():
        return stored.event
    raise AssertionError


async def nothing_postponed(journal: Journal) -> None:
    await until(lambda: journal.nothing_postponed)


async def test_state_is_what_the_ledger_has_confirmed(journal: Journal) -> None:
    intent = await consumed(journal, attach())
    for data in (PLANNED, ATTACHED, completed()):
        await journal.record(data, BOX, intent.id)
    assert journal.state.sandboxes[KEY].phase is SandboxPhase.ATTACHED
    assert not journal.state.pending
    assert not journal.state.anomalies


async def test_an_intent_is_applied_when_it_is_consumed(journal: Journal) -> None:
    await journal.append_intent(journal.event(attach(), BOX))
    assert KEY not in journal.state.sandboxes
    async for _ in journal.intents():
        break
    assert KEY in journal.state.sandboxes


async def test_a_record_of_an_open_intent_is_applied_behind_it(journal: Journal, ledger: UnreliableLedger) -> None:
    intent = journal.event(attach(), BOX)
    ledger.hold.clear()
    request = asyncio.create_task(journal.append_intent(intent))
    await asyncio.sleep(0)
    assert journal.has_open_intent(BOX)
    recording = journal.record(PLANNED, BOX, intent.id)
    await asyncio.sleep(0)
    ledger.hold.set()
    await request
    await until(lambda: ledger.appends == 3)
    await asyncio.sleep(0)
    assert not recording.done()
    async for _ in journal.intents():
        break
    await recording
    assert not journal.has_open_intent(BOX)
    assert journal.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]


async def test_a_record_of_a_refused_intent_is_not_retried(journal: Journal, ledger: UnreliableLedger) -> None:
    ledger.errors = [LedgerFullError("full"), LedgerFullError("full")]
    ledger.hold.clear()
    intent = journal.event(attach(), BOX)
    request = asyncio.create_task(journal.append_intent(intent))
    await asyncio.sleep(0)
    recording = journal.record(PLANNED, BOX, intent.id)
    await asyncio.sleep(0)
    ledger.hold.set()
    for refused in (request, recording):
        with pytest.raises(LedgerFullError):
            await refused
    assert journal.nothing_postponed
    assert not journal.has_open_intent(BOX)
    assert await ledger.types() == ["WorkerStarted"]


async def test_a_successor_loads_the_same_state_and_follows_from_there(
    ledger: UnreliableLedger, journal: Journal
) -> None:
    intent = await consumed(journal, attach())
    await journal.record(PLANNED, BOX, intent.id)
    successor = Journal(ledger, NODE)
    assert [stored.event.type async for stored in successor.load()] == await ledger.types()
    assert successor.state.sandboxes == journal.state.sandboxes
    await successor.open_epoch(WorkerStarted(version="1", pid=2))
    assert successor.state.epochs == {NODE: 2}
    again = await consumed(successor, attach("r2"))
    assert again.epoch == 2
    assert isinstance(again.data, AttachRequested)
    assert again.data.request == "r2"  # not r1, which was loaded


async def test_of_two_workers_that_start_at_once_one_fails(ledger: UnreliableLedger) -> None:
    ledger.hold.clear()
    both = [asyncio.create_task(Journal(ledger, NODE).open_epoch(WorkerStarted(version="1", pid=n))) for n in (1, 2)]
    await until(lambda: ledger.appends == 2)
    ledger.hold.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "NoneType"]


@pytest.mark.parametrize("error", [LedgerUnavailableError("down"), LedgerFullError("full")])
async def test_a_refused_event_raises_and_is_recorded_later(
    ledger: UnreliableLedger, journal: Journal, back: asyncio.Event, error: LedgerError
) -> None:
    intent = await consumed(journal, attach())
    ledger.errors = [error, LedgerUnavailableError("still down")]
    with pytest.raises(type(error)):
        await journal.record(PLANNED, BOX, intent.id)
    assert not journal.nothing_postponed
    assert journal.state.sandboxes[KEY].plan is None
    back.set()
    await nothing_postponed(journal)
    assert journal.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]


async def test_an_outcome_that_is_refused_fails_in_the_phase_record(ledger: UnreliableLedger, journal: Journal) -> None:
    intent = await consumed(journal, attach())
    ledger.errors = [LedgerFullError("full")]
    with pytest.raises(RequestFailedError) as refused:
        async with EffectLog(journal, intent) as effects:
            effects.finish(completed())
    assert (refused.value.failure.error_class, refused.value.failure.phase) == (ErrorClass.LEDGER_FULL, Phase.RECORD)


async def test_an_unacknowledged_event_is_recorded_once(ledger: UnreliableLedger, journal: Journal) -> None:
    intent = await consumed(journal, attach())
    ledger.errors = [LedgerUnavailableError("no answer")]
    ledger.late = True
    with pytest.raises(LedgerUnavailableError):
        await journal.record(PLANNED, BOX, intent.id)
    await nothing_postponed(journal)
    assert journal.state.sandboxes[KEY].plan == PLANNED
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachPlanned"]
    assert not journal.state.anomalies


async def test_events_of_a_sandbox_stay_in_order_when_the_ledger_comes_back(
    ledger: UnreliableLedger, journal: Journal, back: asyncio.Event
) -> None:
    intent = await consumed(journal, attach())
    await journal.record(PLANNED, BOX, intent.id)
    ledger.errors = [LedgerUnavailableError("down")]
    with pytest.raises(LedgerUnavailableError):
        await journal.record(ATTACHED, BOX, intent.id)
    for data in (DETACHED, failed()):  # the ledger is back, and yet they wait
        with pytest.raises(LedgerUnavailableError, match="an earlier event"):
            await journal.record(data, BOX, intent.id)
    await journal.record(WorkerStopped(reason="others do not wait"))
    back.set()
    await nothing_postponed(journal)
    assert [name for name in await ledger.types() if name not in ("WorkerStarted", "WorkerStopped")] == [
        "AttachRequested",
        "AttachPlanned",
        "InterfaceAttached",
        "InterfaceDetached",
        "AttachFailed",
    ]
    assert not journal.state.sandboxes
    assert not journal.state.pending
    assert not journal.state.anomalies


async def test_an_impossible_event_is_not_retried(ledger: UnreliableLedger, journal: Journal) -> None:
    intent = await consumed(journal, attach())
    ledger.errors = [LedgerError("larger than max_payload")]
    with pytest.raises(LedgerError, match="max_payload"):
        await journal.record(PLANNED, BOX, intent.id)
    assert journal.nothing_postponed
    await journal.record(failed(), BOX, intent.id)
    assert not journal.state.pending


async def test_an_impossible_event_does_not_block_later_ones(
    ledger: UnreliableLedger, journal: Journal, back: asyncio.Event
) -> None:
    intent = await consumed(journal, attach())
    ledger.errors = [LedgerUnavailableError("down"), LedgerError("larger than max_payload")]
    with pytest.raises(LedgerUnavailableError):
        await journal.record(PLANNED, BOX, intent.id)
    with pytest.raises(LedgerUnavailableError):
        await journal.record(failed(), BOX, intent.id)
    back.set()
    await nothing_postponed(journal)
    assert await ledger.types() == ["WorkerStarted", "AttachRequested", "AttachFailed"]


async def test_an_append_continues_when_its_caller_is_cancelled(ledger: UnreliableLedger, journal: Journal) -> None:
    intent = await consumed(journal, attach())
    ledger.hold.clear()
    before = ledger.appends
    caller = asyncio.ensure_future(journal.record(PLANNED, BOX, intent.id))
    await until(lambda: ledger.appends > before)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    ledger.hold.set()
    await journal.close()
    assert journal.state.sandboxes[KEY].plan == PLANNED


async def test_close_cancels_the_appends_in_progress(ledger: UnreliableLedger, journal: Journal) -> None:
    intent = await consumed(journal, attach())
    ledger.hold.clear()
    caller = asyncio.ensure_future(journal.record(PLANNED, BOX, intent.id))
    await asyncio.sleep(0)
    await journal.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_replaced_worker_records_nothing_more(journal: Journal, ledger: UnreliableLedger) -> None:
    await journal.record(ATTACHED, BOX)
    assert not journal.replaced.is_set()
    await Journal(ledger, NODE).open_epoch(WorkerStarted(version="1", pid=2))
    end = await ledger.last_sequence()
    with pytest.raises(ConflictError, match=f"another worker now serves node {NODE}"):
        await journal.record(DETACHED, BOX)
    assert journal.replaced.is_set()
    with pytest.raises(ConflictError):
        await journal.append_intent(journal.event(attach("late"), BOX))
    assert await ledger.last_sequence() == end


async def test_postponed_events_are_dropped_after_a_takeover(journal: Journal, ledger: UnreliableLedger) -> None:
    ledger.errors = [LedgerUnavailableError("down")]
    with pytest.raises(LedgerUnavailableError):
        await journal.record(ATTACHED, BOX)
    successor = Journal(ledger, NODE)
    await successor.open_epoch(WorkerStarted(version="1", pid=2))
    await until(lambda: journal.nothing_postponed)
    assert journal.replaced.is_set()
    assert "InterfaceAttached" not in await ledger.types()
