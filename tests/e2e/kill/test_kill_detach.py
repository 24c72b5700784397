"""A worker that is killed at any point of a DEL, a rollback or a GC loses no request and leaves nothing half done."""

from __future__ import annotations

from tests.support.node.kill_points import GC_EVENTS, boundaries, broken_pod, collect, succeed
from tests.support.node.node import DEL_EVENTS, ROLLBACK_EVENTS, Node, carried


@boundaries(DEL_EVENTS, carried(DEL_EVENTS))
def test_detach_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    answer = succeed(node, pod.call("DEL"))
    assert answer == (0, "", "")
    node.settle()
    node.assert_detached(pod)


@boundaries(ROLLBACK_EVENTS, ROLLBACK_EVENTS)
def test_rollback_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = broken_pod(node)
    answer = succeed(node, pod.call("ADD"))
    assert answer.exit_code == 1
    assert "default/broken" in answer.msg or "gave up" in answer.msg, answer
    node.assert_detached(pod)
    assert node.event_types(pod)[-1] == "AttachFailed"
    assert pod.delete() == (0, "", "")


@boundaries(GC_EVENTS, carried(GC_EVENTS))
def test_gc_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    pod.config = node.conf(version="1.1.0")
    assert pod.add().exit_code == 0
    answer = succeed(node, collect(node))
    assert answer == (0, "", "")
    node.settle()
    node.assert_detached(pod)
