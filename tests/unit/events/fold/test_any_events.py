"""The fold accepts any events in any order."""

from __future__ import annotations

import copy

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from events.fold import MAX_ANOMALIES, Sandbox, State, advance
from events.schema import (
    TYPES,
    AttachPlanned,
    ContainerId,
    Data,
    Event,
    EventId,
    IfName,
    LeakId,
    NodeName,
    Pod,
    RequestId,
    Stored,
    Unknown,
)
from tests.support.stories.catalogue import failed_and_rolled_back
from tests.support.stories.events import EventFactory, container
from tests.support.stories.folded import applied, reasons
from tests.support.stories.values import DRIFT, FAILURE, LEAK, NETWORKS, planned

IDS = [EventId(f"id-{number}") for number in range(6)]


def contents(state: State) -> tuple[object, ...]:
    return dict(state.sandboxes), dict(state.pending), dict(state.epochs), state.sequence


def _data() -> st.SearchStrategy[Data]:
    names = st.sampled_from([IfName("eth0"), IfName("net1"), IfName("")])
    networks = st.sampled_from(NETWORKS[:2])
    plans = st.lists(st.sampled_from([planned(0), planned(1), planned(1, IfName("eth1"))]), max_size=3)
    values: dict[str, st.SearchStrategy[object]] = {
        "ifname": names,
        "network": networks,
        "attachments": plans.map(tuple),
        "failure": st.just(FAILURE),
        "seconds": st.just(0.1),
        "pid": st.just(1),
        "request": st.just(RequestId("r")),
        "pod": st.just(Pod("default", "p")),
        "drifts": st.just((DRIFT,)),
        "leak": st.sampled_from([LEAK, msgspec.structs.replace(LEAK, id=LeakId("link/x"))]),
        "results": st.sampled_from([(), ("{}",), ("{}", "{}")]),
        "plan": st.builds(
            AttachPlanned,
            ifname=names,
            netns=st.just("/run/netns/a"),
            path=st.just(""),
            cni_version=st.just("1.0.0"),
            attachments=plans.map(tuple),
        ),
    }
    known = [
        st.builds(
            cls,
            **{
                field.name: values.get(field.name, st.sampled_from(["", "x"]))
                for field in msgspec.structs.fields(cls)
                if field.required
            },
        )
        for cls in TYPES.values()
    ]
    return st.one_of(*known, st.just(Unknown(type="NeverHeardOf", version=7, data=msgspec.Raw(b"[]"))))


ANY_EVENT = st.builds(
    Event,
    id=st.sampled_from(IDS),
    at=st.just("2026-01-01T00:00:00.000000000Z"),
    node=st.sampled_from([NodeName("n1"), NodeName("n2")]),
    boot_id=st.just(""),
    epoch=st.integers(0, 3),
    sandbox=st.sampled_from([ContainerId(""), ContainerId("a"), ContainerId("b")]),
    cause=st.sampled_from([EventId(""), *IDS]),
    trace=st.just(""),
    data=_data(),
)


@given(st.lists(ANY_EVENT, max_size=60), st.booleans())
def test_fold_accepts_any_sequence_of_events(events: list[Event], keep_closed: bool) -> None:
    state = applied(events, keep_closed=keep_closed)
    assert state.sequence == len(events)
    assert keep_closed or all(sandbox.holds_resources for sandbox in state.sandboxes.values())
    assert all(key == sandbox.key for key, sandbox in state.sandboxes.items())


@given(st.lists(ANY_EVENT, max_size=40), st.data())
def test_repeated_event_changes_nothing(events: list[Event], data: st.DataObject) -> None:
    state = applied(events)
    before = contents(state)
    again = data.draw(st.lists(st.integers(0, len(events)), max_size=10))
    for sequence in again:
        assert state.apply(Stored(sequence, events[sequence - 1] if sequence else _some_event())) is None
    assert contents(state) == before


@given(st.lists(ANY_EVENT, max_size=40), st.integers(0, 40), st.booleans())
def test_fold_in_two_parts_gives_the_same_state(events: list[Event], cut: int, keep_closed: bool) -> None:
    """The second part starts with only the values of the first part."""
    whole = applied(events, keep_closed=keep_closed)
    first = applied(events[:cut], keep_closed=keep_closed)
    second = State(keep_closed=keep_closed)
    second.sandboxes, second.pending, second.epochs, second.sequence = copy.copy(contents(first))  # type: ignore[assignment]
    for sequence, event in enumerate(events[cut:], len(events[:cut]) + 1):
        second.apply(Stored(sequence, event))
    assert contents(second) == contents(whole)
    assert first.anomaly_count + second.anomaly_count == whole.anomaly_count


@given(st.lists(ANY_EVENT, max_size=30))
def test_advance_does_not_change_its_arguments(events: list[Event]) -> None:
    sandbox: Sandbox | None = None
    for sequence, event in enumerate(events, 1):
        before = msgspec.json.encode(sandbox)
        after, _ = advance(sandbox, event, sequence)
        assert msgspec.json.encode(sandbox) == before
        assert advance(sandbox, event, sequence) == (after, _)
        sandbox = after


@given(st.permutations(list(failed_and_rolled_back(EventFactory(), container(1)))))
def test_fold_accepts_a_shuffled_story(events: list[Event]) -> None:
    assert not applied(events).pending or reasons(applied(events))


def test_anomalies_beyond_the_limit_are_counted() -> None:
    state = applied(_some_event() for _ in range(MAX_ANOMALIES + 5))
    assert (len(state.anomalies), state.anomaly_count) == (MAX_ANOMALIES, MAX_ANOMALIES + 5)


def _some_event() -> Event:
    return EventFactory().event(Unknown(type="NeverHeardOf", version=1, data=msgspec.Raw(b"{}")))
