"""A stopping worker finishes its requests, and does not wait for a hung plugin."""

from __future__ import annotations

import pytest

from nodeworker.plugins.orphans import orphans
from tests.support.node.node import Node
from tests.support.waiting import eventually


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_stopped_worker_finishes_requests_in_progress(node: Node, command: str) -> None:
    gate = node.gate("host-local", command)
    pod = node.pod("gated", config=node.conf(node.bridge(ipam=node.host_local("10.87.0.0/16", gate.type))))
    node.start(executed=True)
    if command == "DEL":
        assert pod.add().exit_code == 0
    call = pod.call(command)
    gate.reached()
    node.terminate()
    eventually(lambda: not node.socket.exists(), "the worker accepts no request")
    gate.open()
    assert node.ended() == 0
    node.start()
    assert call.answer().exit_code == 0
    if command == "ADD":
        node.assert_attached(pod)
        assert node.event_types(pod).count("AttachRequested") == 1
    node.settle()


def test_stopped_worker_does_not_wait_for_a_hung_plugin(node: Node) -> None:
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
