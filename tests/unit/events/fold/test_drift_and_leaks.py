"""The fold keeps the last observed drift of a sandbox, and each leak until it ends."""

from __future__ import annotations

import msgspec

from events.fold import SandboxKey
from events.schema import (
    ComparisonRequested,
    ContainerId,
    DriftObserved,
    Event,
    EventId,
    LeakObserved,
    LeakReclaimFailed,
    NodeCompared,
    NodeName,
    Pod,
    ReclaimRequested,
    RequestId,
)
from tests.support.stories.events import EventFactory, container
from tests.support.stories.folded import applied
from tests.support.stories.life import Life
from tests.support.stories.values import DRIFT, ETH0, FAILURE, LEAK


def drifting(factory: EventFactory, sandbox: ContainerId) -> Event:
    return factory.event(DriftObserved(ifname=ETH0, pod=Pod("a", "b"), drifts=(DRIFT,)), sandbox)


def test_drift_is_the_last_observed_and_changes_nothing_else() -> None:
    factory, box = EventFactory(), container(1)
    attached = list(Life(factory, box).add())
    observed = drifting(factory, box)
    state = applied([*attached, observed])
    seen = state.sandboxes[SandboxKey(box, ETH0)]
    assert (seen.drifts, seen.drift) == ((DRIFT,), observed.id)
    before = applied(attached).sandboxes[SandboxKey(box, ETH0)]
    assert msgspec.structs.replace(seen, drifts=(), drift=EventId("")) == before
    later = factory.event(DriftObserved(ifname=ETH0, pod=Pod("a", "b")), box)
    assert applied([*attached, observed, later]).sandboxes[SandboxKey(box, ETH0)] == before


def test_sandbox_in_detach_has_no_drift() -> None:
    factory, box = EventFactory(), container(1)
    life = Life(factory, box)
    events = [*life.add(), drifting(factory, box), life.del_requested(), drifting(factory, box)]
    assert applied(events).sandboxes[SandboxKey(box, ETH0)].drifts == ()


def test_observations_of_the_reconciler_change_no_sandbox() -> None:
    factory, box = EventFactory(), container(1)
    events = [*Life(factory, box).add(), msgspec.structs.replace(drifting(factory, box), node=NodeName(""))]
    state = applied(events)
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
