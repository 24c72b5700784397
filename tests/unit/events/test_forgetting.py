"""Purges remove all closed groups of a ledger, and nothing that its fold needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import subjects
from events.fold import Leaked, Pending, Sandbox, SandboxKey, State
from events.forgetting import Forgetting
from events.ledger.memory import MemoryLedger
from events.schema import (
    NO_NODE,
    NO_SANDBOX,
    TYPES,
    ComparisonRequested,
    ContainerId,
    Event,
    EventId,
    GcCompleted,
    GcRequested,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    NodeCompared,
    NodeName,
    Pod,
    ReclaimRequested,
    ReconcilerElected,
    RequestId,
    StatusPublished,
    Stored,
    Unknown,
    WorkerStarted,
    WorkerStopped,
)
from tests.support.stories.catalogue import ENDINGS, Story, leaked_and_reclaimed
from tests.support.stories.events import EventFactory, container
from tests.support.stories.node import interleave
from tests.support.stories.values import ETH0

REQUEST = RequestId("r")
ADDRESS = Leak(id=LeakId("file/10.0.0.2"), kind=LeakKind.ADDRESS_UNOWNED, what="10.0.0.2", path="/ipam/10.0.0.2")


# --- stories of the node itself, beside those of its sandboxes ---


def compared(factory: EventFactory, _: ContainerId) -> Iterator[Event]:
    """Comparisons by the node itself, and one on request."""
    yield factory.event(NodeCompared(request=RequestId("")))
    intent = factory.event(ComparisonRequested(request=REQUEST, command=3))
    yield intent
    yield factory.event(NodeCompared(request=RequestId("")))
    yield factory.event(NodeCompared(request=REQUEST), cause=intent.id)
    yield factory.event(NodeCompared(request=RequestId("")))


def collected_nothing(factory: EventFactory, _: ContainerId) -> Iterator[Event]:
    intent = factory.event(GcRequested(request=REQUEST, config="{}"))
    yield intent
    yield factory.event(GcCompleted(request=REQUEST), cause=intent.id)


def address_reclaimed(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    leak = msgspec.structs.replace(ADDRESS, id=LeakId(f"file/{sandbox}"))
    yield factory.event(LeakObserved(leak=leak))
    observed = factory.event(LeakObserved(leak=leak, sightings=2))
    yield observed
    intent = factory.event(ReclaimRequested(request=REQUEST, leak=leak, command=5), cause=observed.id)
    yield intent
    yield factory.event(LeakReclaimed(request=REQUEST, leak=leak), cause=intent.id)


def worker_restarted(factory: EventFactory, _: ContainerId) -> Iterator[Event]:
    yield factory.event(WorkerStopped(reason="signal"))
    factory.epoch += 1
    yield factory.event(WorkerStarted(version="1", pid=2))


def status_published_late(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    data = StatusPublished(node=factory.node, ifname=ETH0, pod=Pod(), text="[]")
    yield msgspec.structs.replace(factory.event(data, sandbox), node=NO_NODE)


STORIES: list[Story] = [
    *ENDINGS,
    compared,
    collected_nothing,
    address_reclaimed,
    worker_restarted,
    status_published_late,
]


# --- the rules ---


async def ledger_of(events: Sequence[Event]) -> MemoryLedger:
    ledger = MemoryLedger()
    for event in events:
        await ledger.append(event)
    return ledger


async def folded(ledger: MemoryLedger) -> State:
    state = State()
    async for stored in ledger.read():
        state.apply(stored)
    return state


Meaning = tuple[
    dict[SandboxKey, Sandbox],
    dict[EventId, Pending],
    dict[tuple[NodeName, LeakId], Leaked],
    dict[NodeName, int],
    dict[NodeName, int],
]


def meaning(state: State) -> Meaning:
    """Return the state that a worker or a reconciler uses."""
    commands = {node: command for node, command in state.commands.items() if command}
    return dict(state.sandboxes), dict(state.pending), dict(state.leaks), dict(state.epochs), commands


async def forget(ledger: MemoryLedger, node: NodeName, old: int, live: frozenset[ContainerId] = frozenset()) -> int:
    """Purge what the first *old* events allow; return the number of purged events."""
    forgetting = Forgetting(node, live)
    for stored in [stored async for stored in ledger.read()][:old]:
        forgetting.add(stored)
    return sum([await ledger.purge(*purge) for purge in forgetting.purges()])


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Return the first events of a node's life."""
    factory = EventFactory()
    events = [factory.event(WorkerStarted(version="1", pid=1))]
    chosen = draw(st.lists(st.sampled_from(STORIES), min_size=1, max_size=8))
    if draw(st.booleans()):  # a container ID may have several lives
        for number, story in enumerate(chosen):
            events += story(factory, container(number % 3))
        return events[: draw(st.integers(1, len(events)))]
    lives = [story(factory, container(number)) for number, story in enumerate(chosen)]
    unfinished = [islice(life, draw(st.integers(1, 12))) for life in lives]
    return [*events, *interleave(unfinished, lambda count: draw(st.integers(0, count - 1)))]


@given(histories(), st.data())
async def test_remaining_events_mean_the_same(events: list[Event], data: st.DataObject) -> None:
    ledger = await ledger_of(events)
    before = await folded(ledger)
    for old in (*data.draw(st.lists(st.integers(0, len(events)), max_size=2)), len(events)):
        await forget(ledger, EventFactory().node, old)
        assert meaning(await folded(ledger)) == meaning(before)
    assert (await folded(ledger)).anomaly_count <= before.anomaly_count


@given(histories(), st.data())
async def test_interrupted_purges_reopen_nothing(events: list[Event], data: st.DataObject) -> None:
    """The worker, or the ledger, may end between any two purges."""
    ledger = await ledger_of(events)
    before = await folded(ledger)
    forgetting = Forgetting(EventFactory().node)
    async for stored in ledger.read():
        forgetting.add(stored)
    purges = list(forgetting.purges())
    for purge in purges[: data.draw(st.integers(0, len(purges)))]:
        await ledger.purge(*purge)
    assert meaning(await folded(ledger)) == meaning(before)


@pytest.mark.parametrize("story", [story for story in STORIES if not ENDINGS.get(story)], ids=lambda s: s.__name__)
async def test_closed_groups_are_purged_completely(story: Story) -> None:
    """Except fences and the newest command: without that a node would take old commands again."""
    factory = EventFactory()
    events = list(story(factory, container(1)))
    later = factory.event(ComparisonRequested(request=REQUEST, command=1000))
    ledger = await ledger_of([*events, later])
    await forget(ledger, factory.node, len(events) + 1)
    left = [stored.event async for stored in ledger.read()]
    assert [event for event in left if not isinstance(event.data, WorkerStarted)] == [later]


async def test_newest_fences_remain_after_a_year_of_restarts() -> None:
    factory = EventFactory()
    events: list[Event] = []
    for _ in range(200):
        events += [*worker_restarted(factory, NO_SANDBOX), factory.event(NodeCompared(request=RequestId("")))]
        elected = factory.event(ReconcilerElected(replica="a"))
        events.append(msgspec.structs.replace(elected, node=NO_NODE))
    ledger = await ledger_of(events)
    assert await forget(ledger, factory.node, len(events)) == len(events) - 2
    left = [stored.event async for stored in ledger.read()]
    assert [event.type for event in left] == ["WorkerStarted", "ReconcilerElected"]
    assert left[0].epoch == 201


async def test_answer_to_the_newest_command_stays() -> None:
    factory = EventFactory()
    ledger = await ledger_of(list(address_reclaimed(factory, container(1))))
    assert await forget(ledger, factory.node, 4) == 0


async def test_open_leak_retains_its_events_and_no_comparison() -> None:
    factory = EventFactory()
    held = [factory.event(LeakObserved(leak=ADDRESS)), factory.event(LeakObserved(leak=ADDRESS, sightings=2))]
    ledger = await ledger_of(
        [*held, factory.event(NodeCompared(request=RequestId(""))), *collected_nothing(factory, NO_SANDBOX)]
    )
    assert await forget(ledger, factory.node, 5) == 3
    assert [stored.event async for stored in ledger.read()] == held


async def test_events_of_another_node_are_not_purged() -> None:
    mine, other = EventFactory(), EventFactory("worker-2.example.net")
    theirs = [*leaked_and_reclaimed(other, container(1)), *worker_restarted(other, NO_SANDBOX)]
    theirs += status_published_late(other, container(2))
    ledger = await ledger_of(
        [*theirs, *leaked_and_reclaimed(mine, container(3)), *status_published_late(mine, container(3))]
    )
    await forget(ledger, mine.node, 100)
    assert [stored.event async for stored in ledger.read()] == theirs


async def test_live_container_retains_its_earlier_lives() -> None:
    factory, box = EventFactory(), container(1)
    events = list(leaked_and_reclaimed(factory, box))
    ledger = await ledger_of(events)
    assert await forget(ledger, factory.node, len(events), frozenset({box})) == 0
    assert await forget(ledger, factory.node, len(events)) == len(events)


async def test_unknown_event_retains_the_events_after_it() -> None:
    factory, box = EventFactory(), container(1)
    strange = factory.event(Unknown(type="SandboxFrozen", version=1, data=msgspec.Raw(b"{}")), box)
    life = list(leaked_and_reclaimed(factory, box))
    ledger = await ledger_of([*life, strange, *leaked_and_reclaimed(factory, box)])
    await forget(ledger, factory.node, 100)
    assert await anext(ledger.read()) == Stored(len(life) + 1, strange)


def test_every_node_event_type_can_be_purged() -> None:
    """Events of a new type must not accumulate for ever."""
    factory = EventFactory()
    for name in TYPES.keys() - {"WorkerStarted", "ReconcilerElected"}:
        forgetting = Forgetting(factory.node)
        data = Unknown(type=name, version=99, data=msgspec.Raw(b"{}"))
        forgetting.add(Stored(1, factory.event(data)))
        assert len(forgetting._groups) == 1, name
        assert subjects.subject(factory.node, "", name) in next(iter(forgetting._groups.values())).subjects
