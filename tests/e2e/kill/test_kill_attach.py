"""A worker that is killed at any point of an ADD loses no request and leaves nothing half done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.node.kernel import ip, links
from tests.support.node.kill_points import EXECUTED, GC_EVENTS, NATIVE, boundaries, broken_pod, collect, succeed
from tests.support.node.node import ADD_EVENTS, DEL_EVENTS, ROLLBACK_EVENTS, Node, carried


@pytest.mark.parametrize(("node", "native"), [(NATIVE, NATIVE), (EXECUTED, EXECUTED)], indirect=["node"])
def test_undisturbed_worker_records_the_expected_events(node: Node, native: str) -> None:
    """The other tests' events are those of a worker that is not killed."""
    in_ledger: Callable[[tuple[str, ...]], tuple[str, ...]] = carried if native == NATIVE else tuple
    node.start(executed=True)
    pod, broken = node.samplepod(), broken_pod(node)
    assert pod.add().exit_code == 0
    assert pod.delete().exit_code == 0
    assert node.event_types(pod) == (*ADD_EVENTS, *DEL_EVENTS)
    assert node.recorded(pod) == in_ledger((*ADD_EVENTS, *DEL_EVENTS))
    assert broken.add().exit_code == 1
    assert node.recorded(broken) == ROLLBACK_EVENTS
    pod.config = node.conf(version="1.1.0")
    assert pod.add().exit_code == 0
    before = node.events()[-1].sequence
    assert collect(node).answer().exit_code == 0
    assert tuple(s.event.type for s in node.events() if s.sequence > before) == in_ledger(GC_EVENTS)


@boundaries(ADD_EVENTS, carried(ADD_EVENTS))
def test_attach_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    answer = succeed(node, pod.call("ADD"))
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    assert pod.delete().exit_code == 0
    node.assert_detached(pod)


def test_attach_stops_when_another_namespace_has_its_path(node: Node) -> None:
    """The path ``/proc/PID/ns/net`` is another pod's when a new process gets the PID."""
    node.start("after:AttachPlanned:1")
    pod = node.samplepod()
    call = pod.call("ADD")
    assert node.ended() == -signal.SIGKILL
    old = os.open(pod.netns, os.O_RDONLY)  # keeps its inode number from the new namespace
    try:
        ip("netns", "del", pod.namespace)
        ip("netns", "add", pod.namespace)
        ip("-n", pod.namespace, "link", "add", "eth0", "type", "bridge")
        node.start()
        answer = call.answer()
        assert answer.code == 4
        assert "is gone since its ADD was begun" in answer.msg
        assert set(links(pod.namespace)) == {"eth0"}
        assert not node.reserved()
        pod.end()
    finally:
        os.close(old)


@pytest.mark.parametrize(
    ("node", "faults"),
    [
        (EXECUTED, ("before:InterfaceAttached:1", "before:InterfaceAttached:1")),
        (EXECUTED, ("before:InterfaceAttached:2", "before:InterfaceAttached:1")),
        *((way, ("after:AttachPlanned:1", "before:AttachCompleted:1")) for way in (NATIVE, EXECUTED)),
        *((way, ("before:AttachCompleted:1", "after:AttachCompleted:1")) for way in (NATIVE, EXECUTED)),
    ],
    indirect=["node"],
)
def test_attach_survives_its_worker_and_the_next(node: Node, faults: tuple[str, str]) -> None:
    first, second = faults
    node.start(first)
    pod = node.samplepod()
    call = pod.call("ADD")
    assert node.ended() == -signal.SIGKILL
    node.start(second, wait=False)
    answer = succeed(node, call)
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
