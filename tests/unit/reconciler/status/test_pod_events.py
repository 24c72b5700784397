"""Kubernetes Events of a pod: Multus' text after a success, the error's message after a failure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from events.fold import State
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachRequested,
    AttachWarning,
    ErrorClass,
    Event,
    Failure,
    IfName,
    NetworkName,
    NodeName,
    Phase,
    Pod,
    Stored,
    WarningKind,
)
from reconciler.status.kubernetes.pod_events import MESSAGE_LIMIT, OF_WARNING, PodEvent, Throttle, pod_events
from tests.support.stories.events import container
from tests.support.stories.node import Node

BOX = container(1)
POD = Pod("shop", "web", "uid-1")


def all_pod_events(events: Iterable[Event]) -> list[PodEvent]:
    """Return the Events after *events*."""
    state = State(keep_closed=True)
    said: list[PodEvent] = []
    for sequence, event in enumerate(events, 1):
        sandbox = state.apply(Stored(sequence, event))
        said += pod_events(event, sandbox)
    return said


def events_of_failure(error_class: ErrorClass, message: str, pod: Pod = POD) -> list[PodEvent]:
    """Return the events of an ADD that fails at once."""
    node = Node()
    asked = next(node.attach(BOX, pod))
    failure = Failure(error_class=error_class, phase=Phase.RESOLVE, message=message, code=7)
    assert isinstance(asked.data, AttachRequested)
    failed = AttachFailed(request=asked.data.request, ifname=asked.data.ifname, failure=failure)
    return all_pod_events([asked, node.event(failed, BOX, asked.id)])


def test_each_interface_has_multus_text_with_addresses_and_network() -> None:
    said = all_pod_events(Node().attach(BOX, POD, ("pods", "shop/macvlan")))
    assert [(each.pod, each.type, each.reason) for each in said] == [(POD, "Normal", "AddedInterface")] * 2
    number = sum(BOX.encode()) % 250
    assert [each.message for each in said] == [
        f"Add eth0 [10.0.0.{number}/24] from pods",
        f"Add net1 [10.1.0.{number}/24] from shop/macvlan",
    ]


def test_a_missing_network_has_multus_reason() -> None:
    (said,) = events_of_failure(ErrorClass.NETWORK_NOT_FOUND, "pod shop/web: network shop/nope does not exist")
    assert (said.type, said.reason) == ("Warning", "NoNetworkFound")
    assert said.message == "pod shop/web: network shop/nope does not exist"


def test_any_other_failure_is_a_warning_with_its_message() -> None:
    said = all_pod_events(Node().attach(BOX, POD, fails_at=1))
    assert [(each.type, each.reason) for each in said] == [("Warning", "FailedAddingInterface")]
    assert "no free address" in said[0].message


def test_a_failed_detach_is_a_warning_too() -> None:
    node = Node()
    said = all_pod_events([*node.attach(BOX, POD), *node.detach(BOX, POD, fails=True)])
    assert [each.reason for each in said] == ["AddedInterface", "AddedInterface", "FailedRemovingInterface"]


def test_each_warning_of_an_attach_is_an_event() -> None:
    *before, completed = Node().attach(BOX, POD)
    assert isinstance(completed.data, AttachCompleted)
    warned = tuple(
        AttachWarning(kind=kind, network=NetworkName("shop/fast"), ifname=IfName("net1"), message=f"{kind.value} it is")
        for kind in WarningKind
    )
    said = all_pod_events([*before, replace(completed, data=replace(completed.data, warnings=warned))])
    assert [(each.type, each.reason, each.message) for each in said[2:]] == [
        ("Warning", OF_WARNING[kind], f"{kind.value} it is") for kind in WarningKind
    ]


def test_a_repeated_add_writes_no_event() -> None:
    node = Node()
    first = list(node.attach(BOX, POD))
    asked, *_, completed = node.attach(BOX, POD)
    assert len(all_pod_events([*first, asked, completed])) == 2


def test_a_pod_without_uid_gets_no_events() -> None:
    assert events_of_failure(ErrorClass.PLUGIN_FAILED, "no", replace(POD, uid="")) == []


def test_an_unknown_sandbox_gets_no_events() -> None:
    *_, failed = Node().attach(BOX, POD, fails_at=0)
    assert pod_events(failed, None) == []


def test_a_long_message_keeps_beginning_and_end() -> None:
    (said,) = events_of_failure(ErrorClass.PLUGIN_FAILED, "begin" + "x" * 3000 + "end")
    assert len(said.message) <= MESSAGE_LIMIT
    assert said.message.startswith("begin")
    assert said.message.endswith("end")


# --- not too often ---------------------------------------------------------------------------------------------------


def saying(number: int = 0, uid: str = "u") -> PodEvent:
    return PodEvent(Pod("default", "p", uid), NodeName("n"), "Warning", "FailedAddingInterface", f"sentence {number}")


def test_equal_text_about_a_pod_is_one_event_with_a_count() -> None:
    throttle = Throttle()
    assert [throttle.admit(saying(), at).times for at in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert saying().name == saying().name
    assert len({saying().name, saying(1).name, saying(uid="other").name}) == 3


def test_a_constantly_failing_pod_gets_events_at_a_limited_rate() -> None:
    throttle = Throttle()
    in_an_hour = [throttle.admit(saying(number), float(number * 5)).admitted for number in range(720)]
    assert all(in_an_hour[:25])
    assert sum(in_an_hour) <= 25 + 3600 / 300 + 1


def test_one_noisy_pod_does_not_limit_another() -> None:
    throttle = Throttle()
    for number in range(100):
        throttle.admit(saying(number), 0.0)
    assert throttle.admit(saying(uid="other"), 0.0).admitted


def test_old_entries_are_evicted() -> None:
    throttle = Throttle()
    throttle.admit(saying(), 0.0)
    for number in range(5000):
        throttle.admit(saying(number, uid=f"u{number}"), 0.0)
    assert throttle.admit(saying(), 0.0).times == 1
