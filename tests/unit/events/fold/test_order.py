"""Events that are late, early, missing or repeated change only the sandbox of their request."""

from __future__ import annotations

import msgspec
import pytest

from events.fold import AttachmentPhase, SandboxKey, SandboxPhase, State
from events.schema import IfName, Intent, NodeName, Phase, Stored, WorkerStarted
from tests.support.stories.catalogue import attached_and_kept
from tests.support.stories.events import EventFactory, container
from tests.support.stories.folded import applied, numbered, reasons
from tests.support.stories.life import Life, with_carried_effects
from tests.support.stories.values import ETH0, NETWORKS


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


def test_event_of_another_node_changes_no_sandbox_and_closes_no_request() -> None:
    life, other = Life(EventFactory("node-1"), container(1)), NodeName("node-2")
    told = list(life.add())
    for end in range(1, len(told) + 1):
        before = applied(told[:end])
        forged = [msgspec.structs.replace(event, node=other) for event in [*told[end:], *life.delete()]]
        after = applied([*told[:end], *(event for event in forged if not isinstance(event.data, Intent))])
        assert after.sandboxes == before.sandboxes
        assert after.pending == before.pending
        assert any("node-2" in reason for reason in reasons(after))


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
    in_turn = [Stored(1, early), Stored(2, intent)]
    for stored in in_turn if in_order else reversed(in_turn):  # a writer knows its intents from what it reads
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
    """A worker that gets its own outcome late repeats a finished detach."""
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
    in_turn = numbered([*begun, *over, *life.unmake(late)])
    state = State()
    for stored in with_carried_effects(in_turn) if carried else in_turn:
        state.apply(stored)
    sandbox = state.sandboxes[SandboxKey(container(1), ETH0)]
    assert reasons(state) == []
    assert (sandbox.phase, sandbox.intent, sandbox.attachments) == (SandboxPhase.REQUESTED, again.id, ())
    assert list(state.pending) == [again.id]


@pytest.mark.parametrize("carried", [True, False])
def test_detach_that_is_done_twice_ends_the_sandbox(carried: bool) -> None:
    life = Life(EventFactory(), container(1))
    first, second = life.del_requested(), life.del_requested(2)
    in_turn = numbered([*life.add(), first, *life.unmake(first), second, *life.unmake(second)])
    state = State()
    for stored in with_carried_effects(in_turn) if carried else in_turn:
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
    events = [*first.add(), *second.add(), detach, second.del_failed(detach, second.plans[1]), late]
    state = applied(events)
    assert state.sandboxes[SandboxKey(container(1), IfName("eth1"))].attachments[1].phase is AttachmentPhase.DETACHED
    assert reasons(state) == []
