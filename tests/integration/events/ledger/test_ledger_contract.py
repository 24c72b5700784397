"""The contract of ``Ledger``: ``events.ledger.memory`` and ``events.nats.ledger`` pass these tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest

from events import subjects
from events.ledger.ledger import ConflictError, Expect, Ledger, LedgerError
from events.schema import (
    NO_SANDBOX,
    Event,
    Stored,
    Unknown,
    WorkerStopped,
)
from tests.support.stories.events import EventFactory, container
from tests.support.waiting import BOUND

ONE, TWO = container(1), container(2)


async def everything(ledger: Ledger, subject: str = "plumbline.ev.>", after: int = 0) -> list[Stored]:
    return [stored async for stored in ledger.read(subject, after)]


async def take(events: AsyncGenerator[Stored, None], count: int) -> list[Stored]:
    """Return the next *count* events, and close the iterator."""
    taken: list[Stored] = []
    async with asyncio.timeout(BOUND), aclosing(events):
        async for stored in events:
            taken.append(stored)
            if len(taken) == count:
                break
    return taken


async def fill(ledger: Ledger, count: int, factory: EventFactory | None = None) -> list[Stored]:
    factory = factory or EventFactory()
    events = [factory.note(str(number), ONE) for number in range(count)]
    return [Stored(await ledger.append(event), event) for event in events]


# --- append ----------------------------------------------------------------------------------------------------------


async def test_sequences_start_at_one_and_events_are_readable_at_once(ledger: Ledger) -> None:
    factory = EventFactory()
    for number in range(1, 6):
        event = factory.note(str(number), ONE)
        assert await ledger.append(event) == number
        assert (await everything(ledger))[-1] == Stored(number, event)


async def test_event_appended_again_returns_its_first_sequence(ledger: Ledger) -> None:
    (first, second) = await fill(ledger, 2)
    assert await ledger.append(first.event) == first.sequence
    assert await ledger.append(second.event) == second.sequence
    assert await everything(ledger) == [first, second]


async def test_concurrent_appends_store_each_event_once(ledger: Ledger) -> None:
    events = [EventFactory(f"node-{number}").note(sandbox=ONE) for number in range(50)]
    sequences = await asyncio.gather(*(ledger.append(event) for event in events), *(ledger.append(e) for e in events))
    assert sequences[:50] == sequences[50:]
    assert await everything(ledger) == sorted(zip(sequences[:50], events, strict=True))


async def test_append_succeeds_if_its_condition_holds(ledger: Ledger) -> None:
    factory = EventFactory()
    own = subjects.pattern(factory.node)
    first = await ledger.append(factory.note(), Expect(own, 0))
    other = await ledger.append(EventFactory("other").note())
    second = await ledger.append(factory.note(), Expect(own, first))
    assert (first, other, second) == (1, 2, 3)


@pytest.mark.parametrize("expected", [0, 1, 3, 7])
async def test_append_stores_nothing_if_its_condition_fails(ledger: Ledger, expected: int) -> None:
    stored = await fill(ledger, 2)
    event = EventFactory("other").note()
    with pytest.raises(ConflictError):
        await ledger.append(event, Expect(subjects.pattern(sandbox=ONE), expected))
    assert await everything(ledger) == stored
    assert await ledger.append(event) > stored[-1].sequence


async def test_one_of_two_writers_with_the_same_condition_wins(ledger: Ledger) -> None:
    factory = EventFactory()
    subject = subjects.pattern(factory.node, NO_SANDBOX)
    events = [factory.note(str(number)) for number in range(8)]
    outcomes = await asyncio.gather(
        *(ledger.append(event, Expect(subject, 0)) for event in events), return_exceptions=True
    )
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 7
    [winner] = [event for event, outcome in zip(events, outcomes, strict=True) if outcome == 1]
    assert await everything(ledger) == [Stored(1, winner)]


async def test_retried_append_is_no_conflict_after_later_events(ledger: Ledger) -> None:
    """Its first acknowledgement was lost, and at its retry the condition does not hold any more."""
    factory = EventFactory()
    subject = subjects.pattern(factory.node)
    mine, other = factory.note("mine", ONE), factory.note("other", ONE)
    sequence = await ledger.append(mine, Expect(subject, 0))
    assert await ledger.append(mine, Expect(subject, 0)) == sequence
    await ledger.append(other)
    await ledger.append(factory.note("another type and sandbox", TWO))
    assert await ledger.append(mine, Expect(subject, 0)) == sequence
    with pytest.raises(ConflictError):
        await ledger.append(factory.note("new", ONE), Expect(subject, 0))


async def test_condition_may_be_on_another_subject_than_the_events(ledger: Ledger) -> None:
    factory = EventFactory()
    about = subjects.pattern(sandbox=TWO)
    mine = factory.note("mine", ONE)
    sequence = await ledger.append(mine, Expect(about, 0))
    await ledger.append(factory.note("changed meanwhile", TWO))
    assert await ledger.append(mine, Expect(about, 0)) == sequence
    with pytest.raises(ConflictError):
        await ledger.append(factory.note("late", ONE), Expect(about, 0))


# --- what an event may be --------------------------------------------------------------------------------------------


async def test_ledger_stores_types_and_versions_of_a_later_release(ledger: Ledger) -> None:
    factory = EventFactory()
    unknown = [
        factory.event(
            Unknown(type="LinkPainted", version=1, data=msgspec.Raw(b'{"colour": "r\\u00f6t", "n": 1.0}')), ONE
        ),
        factory.event(Unknown(type="WorkerStopped", version=9, data=msgspec.Raw(b"[1, 2,3]"))),
        factory.event(Unknown(type="With.dots and blanks*>", version=1, data=msgspec.Raw(b"{}"))),
    ]
    for event in unknown:
        await ledger.append(event)
    assert [stored.event for stored in await everything(ledger)] == unknown
    assert [
        s.event for s in await everything(ledger, subjects.pattern(event_type="With.dots and blanks*>"))
    ] == unknown[2:]


@pytest.mark.parametrize("size", [1024 * 1024, 8 * 1024 * 1024 - 4096])
async def test_large_events_are_read_back_whole(ledger: Ledger, size: int) -> None:
    """An intent has up to 1 MiB of standard input, which may be six times as long in JSON."""
    factory = EventFactory()
    events = [factory.note("x" * size, ONE), factory.note("small", ONE), factory.note("\N{SNOWMAN}" * (size // 3), TWO)]
    for event in events:
        await ledger.append(event)
    assert [stored.event for stored in await everything(ledger)] == events
    assert [stored.event for stored in await take(ledger.follow(), 3)] == events
    last = await ledger.last(subjects.pattern(sandbox=TWO))
    assert last is not None
    assert last.event == events[2]


@pytest.mark.parametrize("name", ["node.with.dots", "node with blanks", "*", ">", "-", "=2D", "knöten", "$JS.API"])
async def test_any_node_name_is_stored_and_can_be_filtered(ledger: Ledger, name: str) -> None:
    mine = EventFactory(name).note(sandbox=ONE)
    await ledger.append(EventFactory("another").note(sandbox=ONE))
    sequence = await ledger.append(mine)
    assert await everything(ledger, subjects.pattern(name)) == [Stored(sequence, mine)]


# --- read ------------------------------------------------------------------------------------------------------------


async def test_reading_an_empty_ledger_yields_nothing(ledger: Ledger) -> None:
    assert await everything(ledger) == []
    assert await ledger.last("plumbline.ev.>") is None
    assert await ledger.last_sequence() == 0
    assert await ledger.purge("plumbline.ev.>", 100) == 0


async def test_read_ends_for_any_number_of_events(ledger: Ledger) -> None:
    """Around the size of a pull request."""
    stored = await fill(ledger, 1501)
    async with asyncio.timeout(8):  # it knows its end, without waiting for a timeout
        for count in (0, 1, 2, 498, 499, 500, 501, 999, 1000, 1001, 1500, 1501):
            assert await everything(ledger, after=1501 - count) == stored[1501 - count :]


async def test_read_yields_matching_events_after_its_start(ledger: Ledger) -> None:
    factory, other = EventFactory("node.one"), EventFactory("node.two")
    events = [
        factory.note("0", ONE),
        other.note("1", ONE),
        factory.note("2", TWO),
        factory.note("3"),
        factory.event(Unknown(type="Else", version=1, data=msgspec.Raw(b"{}")), ONE),
        factory.note("5", ONE),
    ]
    for event in events:
        await ledger.append(event)

    async def places(subject: str, after: int = 0) -> list[int]:
        return [events.index(stored.event) for stored in await everything(ledger, subject, after)]

    assert await places(subjects.pattern("node.one")) == [0, 2, 3, 4, 5]
    assert await places(subjects.pattern("node.one"), after=3) == [3, 4, 5]
    assert await places(subjects.pattern(sandbox=ONE)) == [0, 1, 4, 5]
    assert await places(subjects.pattern("node.one", NO_SANDBOX)) == [3]
    assert await places(subjects.pattern(event_type="Else")) == [4]
    assert await places(subjects.subject("node.one", ONE, "WorkerStopped"), after=1) == [5]
    assert await places(subjects.pattern("nobody")) == []
    assert await places("plumbline.ev.>", after=6) == []
    assert await places("plumbline.ev.>", after=99) == []


async def test_read_ends_with_the_last_event_at_its_call(ledger: Ledger) -> None:
    stored = await fill(ledger, 3)
    seen: list[Stored] = []
    async for entry in ledger.read():
        seen.append(entry)
        await ledger.append(EventFactory(f"late-{entry.sequence}").note())
    assert seen == stored


# --- follow ----------------------------------------------------------------------------------------------------------


async def test_follow_yields_old_and_new_events_once_in_order(ledger: Ledger) -> None:
    before = await fill(ledger, 700)
    following = asyncio.create_task(take(ledger.follow(), 1400))
    after = await fill(ledger, 700, EventFactory("later"))
    assert await following == before + after


async def test_follow_yields_matching_events_after_its_start(ledger: Ledger) -> None:
    factory = EventFactory()
    patterns = (subjects.pattern(factory.node, ONE), subjects.pattern(factory.node, NO_SANDBOX, "WorkerStopped"))
    following = asyncio.create_task(take(ledger.follow(patterns, after=2), 3))
    wanted: list[Stored] = []
    for sandbox in (ONE, NO_SANDBOX, TWO, ONE, TWO, TWO, NO_SANDBOX, ONE):
        event = factory.note(sandbox=sandbox)
        stored = Stored(await ledger.append(event), event)
        if sandbox != TWO and stored.sequence > 2:
            wanted.append(stored)
    assert await following == wanted


async def test_several_followers_are_independent(ledger: Ledger) -> None:
    following = [asyncio.create_task(take(ledger.follow(), 100)) for _ in range(3)]
    stored = await fill(ledger, 100)
    assert await asyncio.gather(*following) == [stored] * 3


async def test_new_follower_resumes_where_another_was_closed(ledger: Ledger) -> None:
    stored = await fill(ledger, 10)
    first = await take(ledger.follow(), 4)
    assert first + await take(ledger.follow(after=first[-1].sequence), 6) == stored


async def test_follower_waits_until_it_is_cancelled(ledger: Ledger) -> None:
    await fill(ledger, 3)
    seen: asyncio.Queue[Stored] = asyncio.Queue()

    async def follow() -> None:
        async for stored in ledger.follow():
            seen.put_nowait(stored)

    task = asyncio.create_task(follow())
    for sequence in (1, 2, 3):
        assert (await seen.get()).sequence == sequence
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- last, purge, close ----------------------------------------------------------------------------------------------


async def test_last_returns_the_newest_matching_event(ledger: Ledger) -> None:
    factory = EventFactory()
    events = [factory.note(str(number), sandbox) for number, sandbox in enumerate((ONE, TWO, ONE, NO_SANDBOX))]
    for event in events:
        await ledger.append(event)
    assert await ledger.last("plumbline.ev.>") == Stored(4, events[3])
    assert await ledger.last(subjects.pattern(sandbox=ONE)) == Stored(3, events[2])
    assert await ledger.last(subjects.subject(factory.node, TWO, "WorkerStopped")) == Stored(2, events[1])
    assert await ledger.last(subjects.pattern(sandbox=container(3))) is None


async def test_purge_deletes_matching_events_up_to_a_sequence(ledger: Ledger) -> None:
    factory = EventFactory()
    kept: list[Event] = []
    for number, sandbox in enumerate((ONE, TWO, ONE, TWO, ONE), 1):
        event = factory.note(str(number), sandbox)
        await ledger.append(event)
        if sandbox == TWO or number > 3:
            kept.append(event)
    assert await ledger.purge(subjects.pattern(factory.node, ONE), 3) == 2
    assert await ledger.purge(subjects.pattern(factory.node, ONE), 3) == 0
    assert [stored.event for stored in await everything(ledger)] == kept
    assert [s.sequence for s in await take(ledger.follow(), 3)] == [2, 4, 5]


async def test_sequences_continue_after_a_purge_of_everything(ledger: Ledger) -> None:
    await fill(ledger, 3)
    assert await ledger.purge("plumbline.ev.>", 3) == 3
    assert await everything(ledger) == []
    assert await ledger.last("plumbline.ev.>") is None
    assert await ledger.last_sequence() == 3
    assert await ledger.append(EventFactory("later").note()) == 4
    assert await ledger.append(EventFactory("later still").note(), Expect(subjects.pattern(sandbox=ONE), 0)) == 5


async def test_read_ends_if_its_remaining_events_are_purged(ledger: Ledger) -> None:
    await fill(ledger, 1500)
    seen = 0
    async with asyncio.timeout(BOUND):
        async for _ in ledger.read():
            if not seen:
                await ledger.purge("plumbline.ev.>", 1500)
            seen += 1
    assert 1 <= seen <= 1500


async def test_closed_ledger_refuses_appends(ledger: Ledger) -> None:
    await fill(ledger, 1)
    await ledger.close()
    with pytest.raises(LedgerError):
        await ledger.append(EventFactory("late").note())
    with pytest.raises(LedgerError):
        await ledger.last_sequence()
    with pytest.raises(LedgerError):
        await everything(ledger)


async def test_append_leaves_the_event_unchanged(ledger: Ledger) -> None:
    event = EventFactory().event(WorkerStopped(reason='quotes " and \n lines, \x00 and \N{PILE OF POO}'), ONE)
    before = msgspec.structs.asdict(event)
    await ledger.append(event)
    assert msgspec.structs.asdict(event) == before
    assert [stored.event for stored in await everything(ledger)] == [event]
