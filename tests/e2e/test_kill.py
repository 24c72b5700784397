"""A worker that dies, at any instant, loses no request and leaves nothing half done.

The boundaries are the appends to the ledger: what a worker does between two of them is what its successor can't know.
Every one of them is tried, right before the ledger has the event and right after; the stories are held to be complete
by ``test_the_stories_are_complete``.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeworker.plugins.orphans import orphans
from tests.support.node.kernel import eventually, ip, links
from tests.support.node.node import ADD_STORY, DEL_STORY, ROLLBACK_STORY, MakeNode, Node, carried
from tests.support.node.runtime import Answer, Call, PodSandbox

GC_STORY = ("GcRequested", *DEL_STORY, "GcCompleted")
NATIVE, EXECUTED = "auto", "never"


def boundaries(story: tuple[str, ...], native: tuple[str, ...]) -> pytest.MarkDecorator:
    """Kill a worker around each event of *story*, or of *native* where it makes interfaces itself."""
    return pytest.mark.parametrize(
        ("node", "fault"),
        [
            pytest.param(way, f"{moment}:{name}:{events[: index + 1].count(name)}", id=f"{way}-{moment}-{name}-{index}")
            for way, events in ((NATIVE, native), (EXECUTED, story))
            for index, name in enumerate(events)
            for moment in ("before", "after")
        ],
        indirect=["node"],
    )


@pytest.fixture(params=[NATIVE, EXECUTED], ids=["native", "executed"])
def node(make_node: MakeNode, request: pytest.FixtureRequest) -> Node:
    """A node whose worker does not run yet; it makes interfaces itself, or has plugins make them."""
    return make_node(native=request.param)


def succeed(node: Node, call: Call) -> Answer:
    """Return the answer to *call*, given by the successor of the worker that is going to die of it."""
    assert node.ended() == -signal.SIGKILL
    node.start()
    return call.answer()


def broken_pod(node: Node) -> PodSandbox:
    """Return a pod whose second network can't be attached."""
    node.plugin(
        "broken",
        'cat > /dev/null; [ $CNI_COMMAND = DEL ] || { echo \'{"code":42,"msg":"no more uplinks"}\'; exit 1; }',
    )
    node.nad("broken", {"cniVersion": "1.0.0", "type": "broken"})
    return node.pod("broken", "broken")


def collect(node: Node) -> Call:
    """Start a GC that finds nothing valid."""
    request = {**node.conf(version="1.1.0"), "cni.dev/valid-attachments": []}
    return node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request)


@pytest.mark.parametrize(("node", "way"), [(NATIVE, NATIVE), (EXECUTED, EXECUTED)], indirect=["node"])
def test_the_stories_are_complete(node: Node, way: str) -> None:
    """What the other tests go by is what happens when nothing fails."""
    told: Callable[[tuple[str, ...]], tuple[str, ...]] = carried if way == NATIVE else tuple
    node.start()
    pod, broken = node.samplepod(), broken_pod(node)
    assert pod.add().exit_code == 0
    assert pod.delete().exit_code == 0
    assert node.story(pod) == (*ADD_STORY, *DEL_STORY)
    assert node.recorded(pod) == told((*ADD_STORY, *DEL_STORY))
    assert broken.add().exit_code == 1
    assert node.recorded(broken) == ROLLBACK_STORY
    pod.config = node.conf(version="1.1.0")
    assert pod.add().exit_code == 0
    before = node.events()[-1].sequence
    assert collect(node).answer().exit_code == 0
    assert tuple(s.event.type for s in node.events() if s.sequence > before) == told(GC_STORY)


@boundaries(ADD_STORY, carried(ADD_STORY))
def test_attach_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    answer = succeed(node, pod.call("ADD"))
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    assert pod.delete().exit_code == 0
    node.assert_detached(pod)


def test_an_attach_does_not_go_on_in_a_namespace_that_came_to_the_path_of_its_own(node: Node) -> None:
    """As with ``/proc/PID/ns/net``, when another pod's process got the number while no worker ran."""
    node.start("after:AttachPlanned:1")
    pod = node.samplepod()
    call = pod.call("ADD")
    assert node.ended() == -signal.SIGKILL
    held = os.open(pod.netns, os.O_RDONLY)  # or the new one could have the number of the old one, which would be free
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
        os.close(held)


@boundaries(DEL_STORY, carried(DEL_STORY))
def test_detach_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    answer = succeed(node, pod.call("DEL"))
    assert answer == (0, "", "")
    node.settle()
    node.assert_detached(pod)


@boundaries(ROLLBACK_STORY, ROLLBACK_STORY)
def test_rollback_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = broken_pod(node)
    answer = succeed(node, pod.call("ADD"))
    assert answer.exit_code == 1
    assert "default/broken" in answer.msg or "gave up" in answer.msg, answer
    node.assert_detached(pod)
    assert node.story(pod)[-1] == "AttachFailed"
    assert pod.delete() == (0, "", "")


@boundaries(GC_STORY, carried(GC_STORY))
def test_gc_survives_the_worker(node: Node, fault: str) -> None:
    node.start(fault)
    pod = node.samplepod()
    pod.config = node.conf(version="1.1.0")
    assert pod.add().exit_code == 0
    answer = succeed(node, collect(node))
    assert answer == (0, "", "")
    node.settle()
    node.assert_detached(pod)


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


@pytest.mark.parametrize(
    ("command", "network", "orphan"),
    [
        ("ADD", "default", "finishes"),
        ("ADD", "additional", "finishes"),
        ("ADD", "additional", "hangs"),
        ("DEL", "default", "finishes"),
        ("DEL", "additional", "finishes"),
        ("DEL", "default", "hangs"),
    ],
)
def test_a_worker_that_dies_while_host_local_runs(node: Node, command: str, network: str, orphan: str) -> None:
    """The successor begins when the plugin that it inherited has finished, or has been given up."""
    gate = node.gate("host-local", command)
    if network == "default":
        pod = node.samplepod()
        pod.config = node.conf(node.bridge(ipam=node.host_local("10.87.0.0/16", gate.type)))
    else:
        node.nad("gated", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
        pod = node.pod("gated", "gated")
    node.start()
    if command == "DEL":
        assert pod.add().exit_code == 0
    call = pod.call(command)
    gate.reached()
    node.kill()
    inherited = set(orphans(node.name))
    assert inherited
    node.start(wait=False)
    if orphan == "hangs":  # its successor runs the plugin anew, at once
        eventually(lambda: not inherited & set(orphans(node.name)), "the orphan is ended")
    gate.open()
    answer = call.answer()
    assert answer.exit_code == 0, answer
    if command == "ADD":
        node.assert_attached(pod)
    node.settle()


@pytest.mark.parametrize("node", [EXECUTED], ids=["executed"], indirect=True)
def test_a_plugin_that_dies_takes_its_host_local_with_it(node: Node) -> None:
    """An address that is reserved after its DEL would belong to nobody."""
    node.start()
    gate = node.gate("host-local")
    pod = node.pod("killed", config=node.conf(node.bridge(ipam=node.host_local("10.87.0.0/16", gate.type))))
    call = pod.call("ADD")
    os.kill(gate.reached(), signal.SIGKILL)
    answer = call.answer()
    assert answer.code == 100
    assert "ended by SIGKILL" in answer.msg
    assert not orphans(node.name)
    gate.open()


@pytest.mark.parametrize("node", [NATIVE], ids=["native"], indirect=True)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_worker_one_of_whose_processes_dies_ends_and_the_next_goes_on(node: Node, command: str) -> None:
    node.start()
    assert node.samplepod("first").add().exit_code == 0
    pod = node.samplepod()
    if command == "DEL":
        assert pod.add().exit_code == 0
    lock = node.addresses / "default" / "lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        call = pod.call(command)
        (at_it,) = eventually(lambda: [pid for pid in node.children() if opened(pid, lock)], "the lock is waited for")
        os.kill(at_it, signal.SIGKILL)
        assert node.ended() == 1
        node.expected_mistakes += 2  # which process ended, and that the worker ends
    node.start()
    answer = call.answer()
    assert answer.exit_code == 0, answer
    if command == "ADD":
        node.assert_attached(pod)
    node.settle()


def opened(pid: int, file: Path) -> bool:
    """Return whether the process *pid* has *file* open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{each}") == str(file) for each in os.listdir(folder))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_worker_that_is_stopped_finishes_what_it_is_at(node: Node, command: str) -> None:
    gate = node.gate("host-local", command)
    pod = node.pod("gated", config=node.conf(node.bridge(ipam=node.host_local("10.87.0.0/16", gate.type))))
    node.start()
    if command == "DEL":
        assert pod.add().exit_code == 0
    call = pod.call(command)
    gate.reached()
    node.terminate()
    eventually(lambda: not node.socket.exists(), "the worker lets nobody in")
    gate.open()
    assert node.ended() == 0
    node.start()
    assert call.answer().exit_code == 0
    if command == "ADD":
        node.assert_attached(pod)
        assert node.story(pod).count("AttachRequested") == 1
    node.settle()


def test_a_worker_that_is_stopped_does_not_wait_for_a_plugin_that_hangs(node: Node) -> None:
    gate = node.gate("host-local")
    pod = node.pod("gated", config=node.conf(node.bridge(ipam=node.host_local("10.87.0.0/16", gate.type))))
    node.start()
    call = pod.call("ADD")
    gate.reached()
    node.terminate()
    assert node.ended(10) == 0
    assert not orphans(node.name)
    gate.open()
    node.start()
    assert call.answer().exit_code == 0
    node.assert_attached(pod)
