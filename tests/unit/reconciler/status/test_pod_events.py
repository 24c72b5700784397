"""What people read on the pod: Multus' words where it succeeded, the error's sentence where it did not."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from events.fold import State
from events.schema import (
    AttachFailed,
    AttachRequested,
    ErrorClass,
    Event,
    Failure,
    NodeName,
    Phase,
    Pod,
    Stored,
)
from reconciler.status.kubernetes.pod_events import MESSAGE_LIMIT, PodEvent, Throttle, pod_events
from tests.support.stories.node import Node, container_id

BOX = container_id(1)
POD = Pod("shop", "web", "uid-1")


def told(events: Iterable[Event]) -> list[PodEvent]:
    """What is said when *events* have come one after another."""
    state = State(keep_closed=True)
    said: list[PodEvent] = []
    for sequence, event in enumerate(events, 1):
        sandbox = state.apply(Stored(sequence, event))
        said += pod_events(event, sandbox)
    return said


def told_of_failure(error_class: ErrorClass, message: str, pod: Pod = POD) -> list[PodEvent]:
    """What is said of an ADD that fails at once."""
    node = Node()
    asked = next(node.attach(BOX, pod))
    failure = Failure(error_class=error_class, phase=Phase.RESOLVE, message=message, code=7)
    assert isinstance(asked.data, AttachRequested)
    failed = AttachFailed(request=asked.data.request, ifname=asked.data.ifname, failure=failure)
    return told([asked, node.event(failed, BOX, asked.id)])


def test_each_interface_is_told_with_its_addresses_and_network_as_multus_tells_it() -> None:
    said = told(Node().attach(BOX, POD, ("pods", "shop/macvlan")))
    assert [(each.pod, each.type, each.reason) for each in said] == [(POD, "Normal", "AddedInterface")] * 2
    number = sum(BOX.encode()) % 250
    assert [each.message for each in said] == [
        f"Add eth0 [10.0.0.{number}/24] from pods",
        f"Add net1 [10.1.0.{number}/24] from shop/macvlan",
    ]


def test_a_network_that_does_not_exist_has_the_reason_that_people_grep_for() -> None:
    (said,) = told_of_failure(ErrorClass.NETWORK_NOT_FOUND, "pod shop/web: network shop/nope does not exist")
    assert (said.type, said.reason) == ("Warning", "NoNetworkFound")
    assert said.message == "pod shop/web: network shop/nope does not exist"


def test_any_other_failure_is_a_warning_with_its_sentence() -> None:
    said = told(Node().attach(BOX, POD, fails_at=1))
    assert [(each.type, each.reason) for each in said] == [("Warning", "FailedAddingInterface")]
    assert "no free address" in said[0].message


def test_a_detach_that_failed_is_a_warning_too() -> None:
    node = Node()
    said = told([*node.attach(BOX, POD), *node.detach(BOX, POD, fails=True)])
    assert [each.reason for each in said] == ["AddedInterface", "AddedInterface", "FailedRemovingInterface"]


def test_a_repeated_add_that_is_given_the_recorded_result_says_nothing_again() -> None:
    node = Node()
    first = list(node.attach(BOX, POD))
    asked, *_, completed = node.attach(BOX, POD)
    assert len(told([*first, asked, completed])) == 2


def test_a_pod_without_uid_gets_no_events_that_its_successor_would_inherit() -> None:
    assert told_of_failure(ErrorClass.PLUGIN_FAILED, "no", replace(POD, uid="")) == []


def test_nothing_is_said_of_a_sandbox_that_is_not_known() -> None:
    *_, failed = Node().attach(BOX, POD, fails_at=0)
    assert pod_events(failed, None) == []


def test_a_long_sentence_keeps_its_beginning_and_its_end() -> None:
    (said,) = told_of_failure(ErrorClass.PLUGIN_FAILED, "begin" + "x" * 3000 + "end")
    assert len(said.message) <= MESSAGE_LIMIT
    assert said.message.startswith("begin")
    assert said.message.endswith("end")


# --- not too often ---------------------------------------------------------------------------------------------------


def saying(number: int = 0, uid: str = "u") -> PodEvent:
    return PodEvent(Pod("default", "p", uid), NodeName("n"), "Warning", "FailedAddingInterface", f"sentence {number}")


def test_the_same_words_about_the_same_pod_are_one_event_that_counts() -> None:
    throttle = Throttle()
    assert [throttle.admit(saying(), at).times for at in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert saying().name == saying().name
    assert len({saying().name, saying(1).name, saying(uid="other").name}) == 3


def test_a_pod_that_fails_all_the_time_is_told_of_less_and_less() -> None:
    throttle = Throttle()
    in_an_hour = [throttle.admit(saying(number), float(number * 5)).admitted for number in range(720)]
    assert all(in_an_hour[:25])
    assert sum(in_an_hour) <= 25 + 3600 / 300 + 1


def test_one_noisy_pod_does_not_silence_another() -> None:
    throttle = Throttle()
    for number in range(100):
        throttle.admit(saying(number), 0.0)
    assert throttle.admit(saying(uid="other"), 0.0).admitted


def test_what_was_said_long_ago_is_forgotten_so_that_memory_stays_bounded() -> None:
    throttle = Throttle()
    throttle.admit(saying(), 0.0)
    for number in range(5000):
        throttle.admit(saying(number, uid=f"u{number}"), 0.0)
    assert throttle.admit(saying(), 0.0).times == 1
