"""The fold accepts any events, and a legal story leaves exactly the attached sandboxes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.fold import (
    MAX_ANOMALIES,
    Attachment,
    AttachmentPhase,
    Sandbox,
    SandboxKey,
    SandboxPhase,
    State,
    advance,
    request_of,
)
from events.schema import (
    TYPES,
    AttachCompleted,
    AttachPlanned,
    ComparisonRequested,
    ContainerId,
    Data,
    Drift,
    DriftKind,
    DriftObserved,
    ErrorClass,
    Event,
    EventId,
    Failure,
    IfName,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimFailed,
    NodeCompared,
    NodeName,
    Phase,
    Pod,
    ReclaimRequested,
    RequestId,
    SandboxAdopted,
    StatusPublished,
    Stored,
    Unknown,
    WorkerStarted,
)
from tests.support.stories.catalogue import (
    ENDINGS,
    Story,
    attached_and_detached,
    attached_and_kept,
    failed_and_rolled_back,
)
from tests.support.stories.events import EventFactory, container
from tests.support.stories.life import Life, with_carried_effects
from tests.support.stories.node import interleave
from tests.support.stories.values import ETH0, NETWORKS, netns_of, planned, pod_of, result

IDS = [EventId(f"id-{number}") for number in range(6)]
MOVED = Drift(kind=DriftKind.LINK_DOWN, network=planned(0).network, ifname=ETH0)
LEAK = Leak(id=LeakId("address/10.0.0.2"), kind=LeakKind.ADDRESS_UNOWNED, what="10.0.0.2")
FAILURE = Failure(error_class=ErrorClass.PLUGIN_FAILED, phase=Phase.ADD, message="no", code=100)


def applied(events: Iterable[Event], *, keep_closed: bool = False) -> State:
    state = State(keep_closed=keep_closed)
    for sequence, event in enumerate(events, 1):
        state.apply(Stored(sequence, event))
    return state


def contents(state: State) -> tuple[object, ...]:
    return dict(state.sandboxes), dict(state.pending), dict(state.epochs), state.sequence


def reasons(state: State) -> list[str]:
    return [anomaly.reason for anomaly in state.anomalies]


# --- any events ------------------------------------------------------------------------------------------------------


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
        "drifts": st.just((MOVED,)),
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


# --- legal stories ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", ENDINGS, ids=lambda story: story.__name__)
def test_legal_story_leaves_live_sandboxes_and_nothing_pending(story: Story) -> None:
    state = applied(story(EventFactory(), container(1)))
    assert reasons(state) == []
    assert not state.pending
    assert sorted(state.sandboxes) == [SandboxKey(container(1), ifname) for ifname in sorted(ENDINGS[story])]


@given(st.lists(st.sampled_from(list(ENDINGS)), max_size=8), st.randoms(use_true_random=False))
def test_interleaved_stories_are_independent(chosen: list[Story], dice: random.Random) -> None:
    factories = [EventFactory(), EventFactory("worker-2")]
    told = [story(factories[index % 2], container(index)) for index, story in enumerate(chosen)]
    state = applied(interleave(told, dice.randrange))
    expected = [SandboxKey(container(index), name) for index, story in enumerate(chosen) for name in ENDINGS[story]]
    assert reasons(state) == []
    assert not state.pending
    assert sorted(state.sandboxes) == sorted(expected)


@given(st.sampled_from(list(ENDINGS)), st.data())
def test_container_id_may_be_used_again_after_its_detach(story: Story, data: st.DataObject) -> None:
    """Only without remaining resources: a runtime adds a sandbox again after its removal."""
    gone = data.draw(st.sampled_from([tale for tale, left in ENDINGS.items() if not left]))
    factory = EventFactory()
    state = applied([*gone(factory, container(1)), *story(factory, container(1))])
    assert (reasons(state), sorted(key.ifname for key in state.sandboxes)) == ([], sorted(ENDINGS[story]))


@given(st.lists(st.sampled_from(list(ENDINGS)), max_size=8), st.randoms(use_true_random=False))
def test_carried_effects_equal_effects_of_their_own(chosen: list[Story], dice: random.Random) -> None:
    told = [story(EventFactory(f"worker-{index}"), container(index)) for index, story in enumerate(chosen)]
    apart = [Stored(n, event) for n, event in enumerate(interleave(told, dice.randrange), 1)]
    one, other = State(keep_closed=True), State(keep_closed=True)
    for stored in apart:
        one.apply(stored)
    for stored in with_carried_effects(apart):
        other.apply(stored)
    assert reasons(other) == []
    assert other.pending == one.pending
    assert other.sandboxes == one.sandboxes


def test_carried_effect_of_no_attachment_is_an_anomaly() -> None:
    *begun, outcome = with_carried_effects(_numbered(attached_and_kept(EventFactory(), container(1))))
    assert isinstance(outcome.event.data, AttachCompleted)
    first, *others = outcome.event.data.effects
    data = replace(outcome.event.data, effects=(replace(first, ifname=IfName("net9")), *others))
    state = State()
    for stored in (*begun, Stored(outcome.sequence, replace(outcome.event, data=data))):
        state.apply(stored)
    assert reasons(state) == ["the plan has no attachment net9 of k8s-pod-network"]
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.PLANNED


def _numbered(events: Iterable[Event]) -> list[Stored]:
    return [Stored(sequence, event) for sequence, event in enumerate(events, 1)]


@pytest.mark.parametrize("story", ENDINGS, ids=lambda story: story.__name__)
def test_keep_closed_retains_detached_sandboxes(story: Story) -> None:
    events = list(story(EventFactory(), container(1)))
    live, all_kept = applied(events), applied(events, keep_closed=True)
    assert {key: s for key, s in all_kept.sandboxes.items() if s.holds_resources} == live.sandboxes
    assert {key.ifname for key in all_kept.sandboxes} >= {ETH0}
    assert all_kept.anomaly_count == 0


def test_apply_returns_the_sandbox_that_it_drops() -> None:
    state = State()
    story = attached_and_detached(EventFactory(), container(1))
    results = [state.apply(Stored(number, event)) for number, event in enumerate(story, 1)]
    assert results[-1] is not None
    assert results[-1].phase is SandboxPhase.DETACHED
    assert not state.sandboxes


def test_results_are_available_for_the_detach() -> None:
    state = applied(attached_and_kept(EventFactory(), container(1)))
    sandbox = state.sandboxes[SandboxKey(container(1), ETH0)]
    assert sandbox.phase is SandboxPhase.ATTACHED
    assert [a.result for a in sandbox.attachments] == [
        result(a.plan.ifname, container(1), index) for index, a in enumerate(sandbox.attachments)
    ]
    assert sandbox.result == sandbox.attachments[0].result


def test_waiting_add_has_its_own_sandbox_after_the_detach() -> None:
    life = Life(EventFactory(), container(1))
    detach, again = life.del_requested(), life.add_requested(2)
    state = applied([*life.add(), detach, again, *life.unmake(detach)])
    sandbox = state.sandboxes[SandboxKey(container(1), ETH0)]
    assert (sandbox.phase, sandbox.intent, sandbox.attachments) == (SandboxPhase.REQUESTED, again.id, ())


def test_answered_add_starts_no_sandbox_later() -> None:
    life = Life(EventFactory(), container(1))
    again = life.add_requested(2)
    state = applied([*life.add(), again, life.add_completed(again), *life.delete()])
    assert not state.sandboxes


def test_event_of_a_replaced_worker_is_an_anomaly() -> None:
    factory = EventFactory()
    started = factory.event(WorkerStarted(version="0.1.0", pid=1))
    late = msgspec.structs.replace(Life(factory, container(1)).add_requested(), epoch=0)
    state = applied([started, late])
    assert reasons(state) == ["written by a worker that another had replaced"]
    assert state.epochs == {factory.node: 1}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (0, "no request for this sandbox came before it"),
        (1, "the plan has no attachment eth0 of k8s-pod-network"),
    ],
)
def test_gap_in_a_story_is_an_anomaly(missing: int, reason: str) -> None:
    events = list(attached_and_kept(EventFactory(), container(1)))
    del events[missing]
    assert reason in reasons(applied(events))


@pytest.mark.parametrize("late", [2, 3])
def test_sandbox_is_attached_after_outcome_and_effects_in_any_order(late: int) -> None:
    events = list(attached_and_kept(EventFactory(), container(1)))
    (key, attached), *_ = applied(events).sandboxes.items()
    *others, completed = [each for index, each in enumerate(events) if index != late]
    before = applied([*others, completed])
    assert before.sandboxes[key].phase is SandboxPhase.PLANNED
    state = applied([*others, completed, events[late]])
    now = state.sandboxes[key]
    assert reasons(state) == []
    assert (now.phase, now.attachments, now.result) == (attached.phase, attached.attachments, attached.result)
    assert now.phase is SandboxPhase.ATTACHED


@pytest.mark.parametrize("in_order", [True, False])
def test_plan_before_its_request_is_ignored(in_order: bool) -> None:
    life = Life(EventFactory(), container(1))
    intent = life.add_requested()
    early, plan = life.plan(intent), life.plan(intent)
    state = State(in_order=in_order)
    told = [Stored(1, early), Stored(2, intent)]
    for stored in told if in_order else reversed(told):  # a writer knows its intents from what it reads
        state.apply(stored)
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.REQUESTED
    state.apply(Stored(3, plan))
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.PLANNED
    assert reasons(state) == []


def test_plan_belongs_only_to_its_own_request() -> None:
    life = Life(EventFactory(), container(1))
    detach, again = life.del_requested(), life.add_requested(2)
    state = applied([*life.add(), detach, again, life.plan(again), *life.unmake(detach)])
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.REQUESTED
    assert reasons(state) == []


@pytest.mark.parametrize("done_before", [0, 1], ids=["undone", "detached"])
@pytest.mark.parametrize("carried", [True, False])
def test_late_detach_does_not_affect_the_next_add(carried: bool, done_before: int) -> None:
    """A worker that learns late of its own outcome repeats a finished detach."""
    life = Life(EventFactory(), container(1))
    intent, detach, late, again = (
        life.add_requested(),
        life.del_requested(),
        life.del_requested(2),
        life.add_requested(2),
    )
    undone = [life.detached(intent, plan) for plan in reversed(life.plans)]
    failed = life.add_failed(intent, life.failure(life.plans[0], Phase.ADD))
    over = [*life.unmake(detach)] if done_before else [*undone, failed, *life.unmake(detach)]
    begun = [intent, *life.make(intent), detach, late, again, life.plan(again)]
    told = _numbered([*begun, *over, *life.unmake(late)])
    state = State()
    for stored in with_carried_effects(told) if carried else told:
        state.apply(stored)
    sandbox = state.sandboxes[SandboxKey(container(1), ETH0)]
    assert reasons(state) == []
    assert (sandbox.phase, sandbox.intent, sandbox.attachments) == (SandboxPhase.REQUESTED, again.id, ())
    assert list(state.pending) == [again.id]


@pytest.mark.parametrize("carried", [True, False])
def test_detach_that_is_done_twice_ends_the_sandbox(carried: bool) -> None:
    life = Life(EventFactory(), container(1))
    first, second = life.del_requested(), life.del_requested(2)
    told = _numbered([*life.add(), first, *life.unmake(first), second, *life.unmake(second)])
    state = State()
    for stored in with_carried_effects(told) if carried else told:
        state.apply(stored)
    assert reasons(state) == []
    assert not state.sandboxes
    assert not state.pending


@pytest.mark.parametrize("keep_closed", [True, False])
def test_outcome_detaches_the_sandbox_despite_later_effects(keep_closed: bool) -> None:
    life = Life(EventFactory(), container(1))
    detach = life.del_requested()
    *effects, completed = life.unmake(detach)
    state = State(keep_closed=keep_closed)
    for sequence, event in enumerate([*life.add(), detach, completed, *effects], 1):
        state.apply(Stored(sequence, event))
    assert reasons(state) == []
    phases = [box.phase for box in state.sandboxes.values()]
    assert phases == ([SandboxPhase.DETACHED] if keep_closed else [])


def test_undoing_a_late_confirmed_attach_is_no_anomaly() -> None:
    life = Life(EventFactory(), container(1))
    intent = life.add_requested()
    undone = [life.detached(intent, plan) for plan in reversed(life.plans)]
    failed = life.add_failed(intent, life.failure(life.plans[0], Phase.ADD))
    state = applied([intent, *life.make(intent), *undone, failed])
    assert reasons(state) == []
    assert not state.sandboxes


def test_outcome_does_not_hide_a_failed_interface() -> None:
    life = Life(EventFactory(), container(1))
    intent = life.add_requested()
    first, failed = life.attached(intent, life.plans[0]), life.attach_failed(intent, life.plans[1])
    state = applied([intent, life.plan(intent), first, failed, life.add_completed(intent)])
    assert reasons(state) == ["completed after an interface could not be attached"]
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.PLANNED


def test_effect_after_its_outcome_finds_its_sandbox() -> None:
    factory = EventFactory()
    first, second = (
        Life(factory, container(1), IfName("eth0"), NETWORKS[:1]),
        Life(factory, container(1), IfName("eth1")),
    )
    detach = second.del_requested()
    late = second.detached(detach, second.plans[1])
    story = [*first.add(), *second.add(), detach, second.del_failed(detach, second.plans[1]), late]
    state = applied(story)
    assert state.sandboxes[SandboxKey(container(1), IfName("eth1"))].attachments[1].phase is AttachmentPhase.DETACHED
    assert reasons(state) == []


# --- tables ----------------------------------------------------------------------------------------------------------

P, A, F, D, X = (
    AttachmentPhase.PLANNED,
    AttachmentPhase.ATTACHED,
    AttachmentPhase.ATTACH_FAILED,
    AttachmentPhase.DETACHED,
    AttachmentPhase.DETACH_FAILED,
)


def sandbox_of(phase: SandboxPhase, *attachments: AttachmentPhase) -> Sandbox:
    made = tuple(Attachment(plan=planned(i, network=f"shop/{i}"), phase=phase) for i, phase in enumerate(attachments))
    return Sandbox(key=SandboxKey(container(1), ETH0), node=NodeName("n"), phase=phase, attachments=made)


@pytest.mark.parametrize(
    ("phases", "count"),
    [
        ((), 0),
        ((P, P), 2),  # the ledger may not have the effect yet
        ((A, P, P), 3),
        ((A, A), 2),
        ((P, A, P), 3),  # the event of the first one comes later
        ((F, P, P), 1),
        ((A, F, P), 2),
        ((P, F, P), 2),
        ((A, D, P), 2),  # being undone
        ((D, D, P), 2),
        ((D, X, D), 3),
        ((A, X, P), 2),
        ((X, P), 1),
    ],
)
def test_attempted_returns_attachments_that_may_have_resources(phases: Sequence[AttachmentPhase], count: int) -> None:
    sandbox = sandbox_of(SandboxPhase.PLANNED, *phases)
    assert sandbox.attempted() == sandbox.attachments[:count]


@pytest.mark.parametrize(
    ("phase", "attachments", "holds"),
    [
        (SandboxPhase.REQUESTED, (), True),
        (SandboxPhase.PLANNED, (P, P), True),
        (SandboxPhase.ATTACHED, (A, A), True),
        (SandboxPhase.DETACHING, (A, D), True),
        (SandboxPhase.DETACH_FAILED, (D, X), True),
        (SandboxPhase.DETACH_FAILED, (D, D), False),
        (SandboxPhase.DETACH_FAILED, (), False),
        (SandboxPhase.DETACHED, (A,), False),  # the outcome decides
        (SandboxPhase.ATTACH_FAILED, (), False),
        (SandboxPhase.ATTACH_FAILED, (D, D, P, P), False),
        (SandboxPhase.ATTACH_FAILED, (D, X, P), True),
        (SandboxPhase.ATTACH_FAILED, (A, D), True),
        (SandboxPhase.ATTACH_FAILED, (P, P), True),
    ],
)
def test_holds_resources_by_phase(phase: SandboxPhase, attachments: tuple[AttachmentPhase, ...], holds: bool) -> None:
    assert sandbox_of(phase, *attachments).holds_resources is holds


def test_request_of_knows_only_intents_and_outcomes() -> None:
    told = [(event.type, request_of(event)) for event in failed_and_rolled_back(EventFactory(), container(1))]
    named = {name for name, request in told if request is not None}
    assert named == {"AttachRequested", "AttachFailed"}


# --- adoption --------------------------------------------------------------------------------------------------------


def adoption(factory: EventFactory, sandbox: ContainerId, results: int = 2) -> Event:
    plans = tuple(planned(index) for index in range(2))
    plan = AttachPlanned(
        ifname=ETH0,
        netns=netns_of(sandbox),
        path="/opt/cni/bin",
        cni_version="1.0.0",
        attachments=plans,
    )
    given = tuple(result(each.ifname, sandbox, index) for index, each in enumerate(plans[:results]))
    return factory.event(
        SandboxAdopted(ifname=ETH0, source="multus", plan=plan, results=given, config='{"name": "multus"}'),
        sandbox,
    )


def test_adopted_sandbox_equals_an_attached_one() -> None:
    sandbox = container(1)
    event = adoption(EventFactory(), sandbox)
    state = applied([event])
    (adopted,) = state.sandboxes.values()
    assert (adopted.phase, adopted.intent, state.pending) == (SandboxPhase.ATTACHED, event.id, {})
    assert all(attachment.phase is AttachmentPhase.ATTACHED and attachment.result for attachment in adopted.attachments)
    assert isinstance(event.data, SandboxAdopted)
    assert adopted.request is not None
    assert adopted.request.config == event.data.config, "by its name GC knows whose network it is"
    assert not state.anomalies


def test_adopted_sandbox_is_detached_as_any_other() -> None:
    factory, sandbox = EventFactory(), container(1)
    events = [adoption(factory, sandbox), *Life(factory, sandbox).delete()]
    state = applied(events)
    assert (state.sandboxes, reasons(state)) == ({}, [])


def test_attached_sandbox_is_not_adopted() -> None:
    factory, sandbox = EventFactory(), container(1)
    before = list(attached_and_kept(factory, sandbox))
    state = applied([*before, adoption(factory, sandbox)])
    assert reasons(state) == ["adopted while attached"]
    assert state.sandboxes == applied(before).sandboxes


def test_adoption_with_too_few_results_is_an_anomaly() -> None:
    state = applied([adoption(EventFactory(), container(1), results=1)])
    assert reasons(state) == ["adopted with 1 results for 2 attachments"]


def test_events_of_the_reconciler_change_no_sandbox() -> None:
    factory, sandbox = EventFactory(), container(1)
    before = list(attached_and_kept(factory, sandbox))
    published = factory.event(
        StatusPublished(node=NodeName("n1"), ifname=ETH0, pod=pod_of(sandbox), text="[]"), sandbox
    )
    state = applied([*before, published])
    assert (state.sandboxes, reasons(state)) == (applied(before).sandboxes, [])


# --- drift and leaks -------------------------------------------------------------------------------------------------


def drifting(factory: EventFactory, sandbox: ContainerId) -> Event:
    return factory.event(DriftObserved(ifname=ETH0, pod=Pod("a", "b"), drifts=(MOVED,)), sandbox)


def test_drift_is_the_last_observed_and_changes_nothing_else() -> None:
    factory, box = EventFactory(), container(1)
    attached = list(Life(factory, box).add())
    observed = drifting(factory, box)
    state = applied([*attached, observed])
    seen = state.sandboxes[SandboxKey(box, ETH0)]
    assert (seen.drifts, seen.drift) == ((MOVED,), observed.id)
    before = applied(attached).sandboxes[SandboxKey(box, ETH0)]
    assert msgspec.structs.replace(seen, drifts=(), drift=EventId("")) == before
    later = factory.event(DriftObserved(ifname=ETH0, pod=Pod("a", "b")), box)
    assert applied([*attached, observed, later]).sandboxes[SandboxKey(box, ETH0)] == before


def test_sandbox_in_detach_has_no_drift() -> None:
    factory, box = EventFactory(), container(1)
    life = Life(factory, box)
    story = [*life.add(), drifting(factory, box), life.del_requested(), drifting(factory, box)]
    assert applied(story).sandboxes[SandboxKey(box, ETH0)].drifts == ()


def test_observations_of_the_reconciler_change_no_sandbox() -> None:
    factory, box = EventFactory(), container(1)
    story = [*Life(factory, box).add(), msgspec.structs.replace(drifting(factory, box), node=NodeName(""))]
    state = applied(story)
    assert state.sandboxes[SandboxKey(box, ETH0)].drifts == ()
    assert not state.anomalies


def test_leak_lasts_from_first_observation_to_gone_or_reclaimed() -> None:
    factory = EventFactory()
    first, second = (factory.event(LeakObserved(leak=LEAK, sightings=n)) for n in (1, 2))
    intent = factory.event(ReclaimRequested(request=RequestId("r"), leak=LEAK, command=5), cause=second.id)
    refused = factory.event(LeakReclaimFailed(request=RequestId("r"), leak=LEAK, failure=FAILURE), cause=intent.id)
    state = applied([first, second, intent, refused])
    (leaked,) = state.leaks.values()
    assert (leaked.first_at, leaked.event, leaked.observed.sightings) == (first.at, second.id, 2)
    assert leaked.refused == FAILURE
    assert (state.commands, state.pending) == ({factory.node: 5}, {})
    gone = factory.event(LeakObserved(leak=LEAK, gone=True))
    assert not applied([first, second, intent, refused, gone]).leaks


def test_comparison_closes_only_its_own_request() -> None:
    factory = EventFactory()
    intent = factory.event(ComparisonRequested(request=RequestId("r")))
    by_itself = factory.event(NodeCompared(request=RequestId("")))
    state = applied([intent, by_itself])
    assert list(state.pending) == [intent.id]
    assert not state.anomalies
    closing = factory.event(NodeCompared(request=RequestId("r")), cause=intent.id)
    assert not applied([intent, closing]).pending
