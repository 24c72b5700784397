"""What happens to requests when the ledger dies, is down, or is full."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node.node import MakeNode, Node, gated_pod
from tests.support.waiting import eventually


def kill_server(node: Node) -> None:
    os.kill(node.server.pid, signal.SIGKILL)
    node.server.stop()


def test_server_killed_between_requests_costs_no_request(node: Node) -> None:
    pod, other = node.samplepod(), node.samplepod("other")
    assert pod.add().exit_code == 0
    kill_server(node)
    node.server.start()
    assert other.add().exit_code == 0
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)
    node.assert_attached(other)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_server_killed_within_a_request_costs_no_request(node: Node, command: str) -> None:
    pod, gate = gated_pod(node, command)
    if command == "DEL":
        assert pod.add().exit_code == 0
    call = pod.call(command)
    gate.reached()
    kill_server(node)
    gate.open()
    node.server.start()
    answer = call.answer()
    assert answer.exit_code == 0, answer
    if command == "ADD":
        node.assert_attached(pod)
    else:
        eventually(lambda: node.event_types(pod)[-1] == "DetachCompleted", "the ledger has the outcome")


def test_del_undoes_an_add_that_the_ledger_stores_too_late(node: Node) -> None:
    """The server hangs, so neither request is confirmed, and the worker is killed before it learns what was stored."""
    pod = node.samplepod()
    os.kill(node.server.pid, signal.SIGSTOP)
    assert pod.add().code == 11
    assert pod.delete() == (0, "", "")
    node.pause()  # a killed one may take what it has sent with it
    os.kill(node.server.pid, signal.SIGCONT)
    eventually(lambda: "AttachRequested" in node.recorded(pod), "the ledger has the ADD")
    node.kill()
    node.start()
    eventually(lambda: pod.key not in node.state().sandboxes, "the DEL is done")
    node.assert_detached(pod)


def test_without_a_ledger_add_fails_and_del_runs_later(node: Node) -> None:
    pod, late = node.samplepod(), node.samplepod("late")
    assert pod.add().exit_code == 0
    node.server.stop()
    add, delete = late.call("ADD"), pod.call("DEL")
    answer = add.answer()
    assert answer.code == 11
    assert "is nats-server running" in answer.msg
    assert "pod default/late" in answer.msg
    assert delete.answer() == (0, "", "")
    assert len(list(node.spool.iterdir())) == 1
    # It tries to drain the spool, and must not lose it when it can't.
    eventually(lambda: node.log.read_text().count("upkeep_postponed") >= 2, "the worker tries again")
    assert len(list(node.spool.iterdir())) == 1
    node.server.start()
    eventually(lambda: node.event_types(pod)[-1] == "DetachCompleted", "the spooled DEL is done")
    node.settle()
    node.assert_detached(pod, late)
    assert late.add().exit_code == 0


def test_add_waits_for_spooled_dels_of_its_container(node: Node) -> None:
    """The runtime considers them done: with podman, a restarted container keeps its ID."""
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    nobody = str(node.spool / "nobody.sock")
    assert pod.delete(PLUMBLINE_SOCKET=nobody, PLUMBLINE_DEADLINE="0.1") == (0, "", "")
    assert pod.add().exit_code == 0
    eventually(lambda: "DetachCompleted" in node.event_types(pod), "the spooled DEL is done")
    assert [name for name in node.event_types(pod) if name.endswith("Requested")] == [
        "AttachRequested",
        "DetachRequested",
        "AttachRequested",
    ]
    node.assert_attached(pod)


def test_add_after_a_del_that_lost_the_ledger_is_retried(node: Node) -> None:
    pod, gate = gated_pod(node, "DEL")
    assert pod.add().exit_code == 0
    delete = pod.call("DEL")
    gate.reached()
    add = pod.call("ADD")
    eventually(lambda: node.event_types(pod)[-1] == "AttachRequested", "the ADD waits for its turn")
    node.server.stop()
    gate.open()
    assert delete.answer() == (0, "", "")
    answer = add.answer()
    assert answer.code == 11
    assert "has not yet confirmed the outcome of the previous request" in answer.msg
    node.server.start()
    eventually(
        lambda: node.event_types(pod)[-2:] == ("DetachCompleted", "AttachFailed"), "the ledger has both outcomes"
    )
    assert pod.add().exit_code == 0
    node.assert_attached(pod)


def test_add_that_loses_the_ledger_is_undone(node: Node) -> None:
    pod, gate = gated_pod(node)
    call = pod.call("ADD")
    gate.reached()
    node.server.stop()
    gate.open()
    answer = call.answer()
    assert answer.code == 11
    assert "is nats-server running" in answer.msg
    assert not pod.links()
    assert not node.reserved()
    node.server.start()
    eventually(lambda: node.event_types(pod)[-1] == "AttachFailed", "the ledger has the outcome")
    node.assert_detached(pod)
    assert pod.add().exit_code == 0
    node.assert_attached(pod)


def test_plan_stored_before_its_request_is_repeated(node: Node) -> None:
    """Both are sent without a wait between them, and an append that is repeated may come late."""
    node.terminate()
    node.ended()
    node.start("behind:AttachRequested:1")
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    assert node.event_types(pod)[:3] == ("AttachPlanned", "AttachRequested", "AttachPlanned")
    node.restart()
    node.assert_attached(pod)
    assert pod.check().exit_code == 0
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free in *folder*; return the file that takes the room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def test_full_disk_only_delays_requests(disk: Path, make_node: MakeNode) -> None:
    node = make_node(store=disk / "ledger")
    node.start()
    pod, late = node.samplepod(), node.samplepod("late")
    assert pod.add().exit_code == 0
    ballast = fill(disk)
    for _ in range(2):
        answer = late.add()
        assert answer.code == 11
        assert "pod default/late" in answer.msg
        assert "full" in answer.msg or "disk" in answer.msg
        assert not late.links()
    assert pod.delete() == (0, "", "")
    assert len(list(node.spool.iterdir())) == 1
    ballast.unlink()
    node.server.stop()
    node.server.start()
    eventually(lambda: node.event_types(pod)[-1] == "DetachCompleted", "the spooled DEL is done")
    node.settle()
    node.assert_detached(pod, late)
    assert late.add().exit_code == 0
    node.assert_attached(late)


def test_plan_too_large_for_the_ledger_fails_alone(node: Node) -> None:
    """A request that can never be recorded is dropped, so it does not block others."""
    node.nad("bulky", node.macvlan(comment="x" * 1_000_000))
    bulky, pod = node.pod("bulky", ",".join(["bulky"] * 10)), node.samplepod()
    answer = bulky.add()
    assert answer.exit_code == 1
    assert "pod default/bulky" in answer.msg
    assert "the ledger takes" in answer.msg
    assert "select fewer networks" in answer.msg
    assert node.event_types(bulky)[-1] == "AttachFailed"
    node.kill()
    assert pod.add(PLUMBLINE_DEADLINE="0.1").code == 11
    assert bulky.delete() == (0, "", "")
    node.start()
    assert pod.add().exit_code == 0
