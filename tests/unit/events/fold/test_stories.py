"""A valid story leaves exactly the attached sandboxes, with their results."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.fold import SandboxKey, SandboxPhase, State, request_of
from events.schema import AttachCompleted, IfName, Stored
from tests.support.stories.catalogue import (
    ENDINGS,
    Story,
    attached_and_detached,
    attached_and_kept,
    failed_and_rolled_back,
)
from tests.support.stories.events import EventFactory, container
from tests.support.stories.folded import applied, numbered, reasons
from tests.support.stories.life import with_carried_effects
from tests.support.stories.node import interleave
from tests.support.stories.values import ETH0, result


@pytest.mark.parametrize("story", ENDINGS, ids=lambda story: story.__name__)
def test_legal_story_leaves_live_sandboxes_and_nothing_pending(story: Story) -> None:
    state = applied(story(EventFactory(), container(1)))
    assert reasons(state) == []
    assert not state.pending
    assert sorted(state.sandboxes) == [SandboxKey(container(1), ifname) for ifname in sorted(ENDINGS[story])]


@given(st.lists(st.sampled_from(list(ENDINGS)), max_size=8), st.randoms(use_true_random=False))
def test_interleaved_stories_are_independent(chosen: list[Story], dice: random.Random) -> None:
    factories = [EventFactory(), EventFactory("worker-2")]
    in_turn = [story(factories[index % 2], container(index)) for index, story in enumerate(chosen)]
    state = applied(interleave(in_turn, dice.randrange))
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
    in_turn = [story(EventFactory(f"worker-{index}"), container(index)) for index, story in enumerate(chosen)]
    apart = [Stored(n, event) for n, event in enumerate(interleave(in_turn, dice.randrange), 1)]
    one, other = State(keep_closed=True), State(keep_closed=True)
    for stored in apart:
        one.apply(stored)
    for stored in with_carried_effects(apart):
        other.apply(stored)
    assert reasons(other) == []
    assert other.pending == one.pending
    assert other.sandboxes == one.sandboxes


def test_carried_effect_of_no_attachment_is_an_anomaly() -> None:
    *begun, outcome = with_carried_effects(numbered(attached_and_kept(EventFactory(), container(1))))
    assert isinstance(outcome.event.data, AttachCompleted)
    first, *others = outcome.event.data.effects
    data = replace(outcome.event.data, effects=(replace(first, ifname=IfName("net9")), *others))
    state = State()
    for stored in (*begun, Stored(outcome.sequence, replace(outcome.event, data=data))):
        state.apply(stored)
    assert reasons(state) == ["the plan has no attachment net9 of k8s-pod-network"]
    assert state.sandboxes[SandboxKey(container(1), ETH0)].phase is SandboxPhase.PLANNED


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


def test_request_of_knows_only_intents_and_outcomes() -> None:
    in_turn = [(event.type, request_of(event)) for event in failed_and_rolled_back(EventFactory(), container(1))]
    named = {name for name, request in in_turn if request is not None}
    assert named == {"AttachRequested", "AttachFailed"}
