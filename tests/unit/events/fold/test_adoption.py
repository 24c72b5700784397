"""An adopted sandbox is like an attached one, and events of the reconciler change no sandbox."""

from __future__ import annotations

from events.fold import AttachmentPhase, SandboxPhase
from events.schema import AttachPlanned, ContainerId, Event, NodeName, SandboxAdopted, StatusPublished
from tests.support.stories.catalogue import attached_and_kept
from tests.support.stories.events import EventFactory, container
from tests.support.stories.folded import applied, reasons
from tests.support.stories.life import Life
from tests.support.stories.values import ETH0, netns_of, planned, pod_of, result


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
