"""Plugins and native processes whose worker is killed, and a worker whose processes are."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from nodeworker.plugins.orphans import orphans
from tests.support.node.kill_points import EXECUTED, NATIVE
from tests.support.node.node import Node
from tests.support.waiting import eventually


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
def test_successor_waits_for_the_host_local_of_a_killed_worker(
    node: Node, command: str, network: str, orphan: str
) -> None:
    """The successor begins once the inherited plugin has ended or was killed after a timeout."""
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
    if orphan == "hangs":  # its successor runs the plugin again, at once
        eventually(lambda: not inherited & set(orphans(node.name)), "the orphan is ended")
    gate.open()
    answer = call.answer()
    assert answer.exit_code == 0, answer
    if command == "ADD":
        node.assert_attached(pod)
    node.settle()


@pytest.mark.parametrize("node", [EXECUTED], ids=["executed"], indirect=True)
def test_killed_plugin_takes_its_host_local_with_it(node: Node) -> None:
    """A host-local that outlives its plugin could reserve an address after the DEL."""
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
def test_worker_ends_when_a_native_process_dies_and_the_next_continues(node: Node, command: str) -> None:
    node.start()
    assert node.samplepod("first").add().exit_code == 0
    pod = node.samplepod()
    if command == "DEL":
        assert pod.add().exit_code == 0
    lock = node.addresses / "default" / "lock"
    with lock.open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        call = pod.call(command)
        (waiting,) = eventually(
            lambda: [pid for pid in node.children() if opened(pid, lock)], "a native process waits for the lock"
        )
        os.kill(waiting, signal.SIGKILL)
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
