"""What happens to requests when the ledger, the worker, the runtime or a plugin fails underneath them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_kernel import eventually
from e2e_node import Gate, MakeNode, Node
from e2e_runtime import PodSandbox

from events.schema import AttachFailed, DetachRequested, ErrorClass


def gated_pod(node: Node, command: str = "ADD", name: str = "gated") -> tuple[PodSandbox, Gate]:
    """Return a pod with two interfaces, and the gate that the address of the second waits at."""
    gate = node.gate("host-local", command)
    node.nad("gated", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    return node.pod(name, "gated"), gate


# --- the runtime ---


def test_a_del_that_overtakes_its_add(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    assert pod.delete() == (0, "", "")
    answer = add.answer()
    assert answer.code == 11
    assert "pod default/gated: a DEL of the same container came meanwhile" in answer.msg
    node.assert_detached(pod)
    assert node.story(pod)[-2:] == ("AttachFailed", "DetachCompleted")
    assert node.failures(pod)[-1].error_class is ErrorClass.OVERTAKEN


def test_an_add_that_nobody_waits_for_is_undone(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    add.kill()
    eventually(lambda: node.story(pod)[-1:] == ("AttachFailed",), "the ADD is given up")
    assert node.failures(pod)[-1].error_class is ErrorClass.ABANDONED
    node.assert_detached(pod)
    assert pod.delete() == (0, "", "")


def test_an_add_that_takes_too_long_is_undone(node: Node) -> None:
    pod, gate = gated_pod(node)
    answer = pod.add(PLUMBLINE_DEADLINE="0.5")
    gate.reached()
    assert answer.code == 11
    eventually(lambda: node.story(pod)[-1:] == ("AttachFailed",), "the ADD is given up")
    node.assert_detached(pod)
    gate.open()
    assert pod.add().exit_code == 0  # the runtime tries again
    node.assert_attached(pod)


def test_a_del_that_nobody_waits_for_is_done(node: Node) -> None:
    pod, gate = gated_pod(node, "DEL")
    assert pod.add().exit_code == 0
    call = pod.call("DEL")
    gate.reached()
    call.kill()
    gate.open()
    eventually(lambda: node.story(pod)[-1:] == ("DetachCompleted",), "the DEL is done")
    node.assert_detached(pod)


def test_calls_for_one_container_take_turns(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    check, again = pod.call("CHECK"), pod.call("ADD")
    gate.open()
    first = add.answer()
    assert first.exit_code == 0
    assert check.answer() == (0, "", "")
    assert again.answer() == first
    node.assert_attached(pod)


def test_a_del_that_is_done_while_gc_is_at_another_container(node: Node) -> None:
    slow, gate = gated_pod(node, "DEL", "slow")
    quick = node.samplepod("quick")
    conf = node.conf(version="1.1.0")
    for pod in (slow, quick):
        pod.config = conf
        assert pod.add().exit_code == 0
    collect = node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, {**conf, "cni.dev/valid-attachments": []})
    gate.reached()
    assert quick.delete() == (0, "", "")
    gate.open()
    assert collect.answer() == (0, "", "")
    node.assert_detached(slow, quick)


def test_other_containers_do_not_wait_for_a_plugin_that_hangs(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    other = node.samplepod()
    assert other.add().exit_code == 0
    assert other.delete() == (0, "", "")
    assert add.running()
    gate.open()
    assert add.answer().exit_code == 0


# --- the worker ---


def test_add_waits_for_a_worker(make_node: MakeNode) -> None:
    node = make_node()
    pod = node.samplepod()
    add = pod.call("ADD")
    node.start()
    assert add.answer().exit_code == 0
    node.assert_attached(pod)


def test_del_without_worker_is_done_by_the_next(node: Node) -> None:
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    node.kill()
    assert pod.delete() == (0, "", "")
    assert len(list(node.spool.iterdir())) == 1
    assert pod.links()
    node.start()  # it opens when the spool is empty
    node.assert_detached(pod)
    assert not list(node.spool.iterdir())


def test_a_spooled_request_that_is_none_holds_up_nobody(node: Node) -> None:
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    node.kill()
    torn = node.spool / f"{'0' * 32}.req"
    torn.write_bytes(b"PLB1 and then the power went")
    assert pod.delete() == (0, "", "")
    node.start()
    node.assert_detached(pod)
    (aside,) = node.spool.iterdir()
    assert aside.suffix == ".bad"
    aside.unlink()


# --- plugins ---


def test_a_detach_that_fails_is_repeated_until_it_succeeds(node: Node) -> None:
    tries = node.bin / "tries"
    node.plugin(
        "stubborn",
        f'cat > /dev/null; if [ $CNI_COMMAND = ADD ]; then echo \'{{"cniVersion":"1.0.0"}}\'; exit; fi; '
        f"echo >> {tries}; [ $(wc -l < {tries}) -ge 3 ] && exit; "
        'echo \'{"code":42,"msg":"switch is busy"}\'; exit 1',
    )
    node.nad("stubborn", {"cniVersion": "1.0.0", "type": "stubborn"})
    pod = node.pod("stuck", "stubborn")
    assert pod.add().exit_code == 0
    answer = pod.delete()
    assert answer.code == 42
    assert answer.msg == "pod default/stuck: stubborn failed to delete net1 of default/stubborn: switch is busy"
    assert not pod.links()  # the other interface does not wait for this one
    eventually(lambda: node.story(pod)[-1] == "DetachCompleted", "the worker succeeds")
    retries = [e.data.retry for e in node.events_of(pod) if isinstance(e.data, DetachRequested)]
    assert retries == [0, 1, 2]
    node.assert_detached(pod)


def test_a_rollback_that_fails_is_repeated_until_it_succeeds(node: Node) -> None:
    tries = node.bin / "tries"
    node.plugin(
        "stubborn",
        f"cat > /dev/null; [ $CNI_COMMAND = DEL ] && echo >> {tries} && [ $(wc -l < {tries}) -ge 2 ] && exit; "
        'echo \'{"code":42,"msg":"switch is busy"}\'; exit 1',
    )
    node.nad("stubborn", {"cniVersion": "1.0.0", "type": "stubborn"})
    pod = node.pod("stuck", "stubborn")
    answer = pod.add()
    assert answer.code == 42
    assert "stubborn failed to add net1 of default/stubborn: switch is busy" in answer.msg
    (left,) = [e.data.left for e in node.events_of(pod) if isinstance(e.data, AttachFailed)]
    assert left == ("net1",)
    eventually(lambda: node.story(pod)[-1] == "DetachCompleted", "the worker succeeds")
    node.assert_detached(pod)


# --- the ledger ---


def kill_server(node: Node) -> None:
    os.kill(node.server.pid, signal.SIGKILL)
    node.server.stop()


def test_a_server_that_dies_between_requests_is_not_missed(node: Node) -> None:
    pod, other = node.samplepod(), node.samplepod("other")
    assert pod.add().exit_code == 0
    kill_server(node)
    node.server.start()
    assert other.add().exit_code == 0
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)
    node.assert_attached(other)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_server_that_dies_within_a_request_is_not_missed(node: Node, command: str) -> None:
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
        eventually(lambda: node.story(pod)[-1] == "DetachCompleted", "the ledger has the outcome")


def test_without_ledger_add_fails_and_del_is_done_later(node: Node) -> None:
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
    eventually(lambda: node.story(pod)[-1] == "DetachCompleted", "the spooled DEL is done")
    node.assert_detached(pod, late)
    assert late.add().exit_code == 0


def test_an_add_that_loses_the_ledger_is_undone(node: Node) -> None:
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
    eventually(lambda: node.story(pod)[-1] == "AttachFailed", "the ledger has the outcome")
    node.assert_detached(pod)
    assert pod.add().exit_code == 0
    node.assert_attached(pod)


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


def test_a_full_disk_costs_nothing_but_time(disk: Path, make_node: MakeNode) -> None:
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
    eventually(lambda: node.story(pod)[-1] == "DetachCompleted", "the spooled DEL is done")
    node.assert_detached(pod, late)
    assert late.add().exit_code == 0
    node.assert_attached(late)


def test_a_plan_too_large_for_the_ledger_fails_alone(node: Node) -> None:
    """What can never be recorded is not tried for ever, which would hold up everybody else."""
    node.nad("bulky", node.macvlan(comment="x" * 1_000_000))
    bulky, pod = node.pod("bulky", ",".join(["bulky"] * 10)), node.samplepod()
    answer = bulky.add()
    assert answer.exit_code == 1
    assert "pod default/bulky" in answer.msg
    assert "max_payload" in answer.msg
    assert node.story(bulky)[-1] == "AttachFailed"
    node.kill()
    assert pod.add(PLUMBLINE_DEADLINE="0.1").code == 11
    assert bulky.delete() == (0, "", "")
    node.start()
    assert pod.add().exit_code == 0


# --- many at once ---


def test_thirty_pods_at_once(node: Node) -> None:
    pods = [node.samplepod(f"pod-{number}") for number in range(30)]
    adds = [pod.call("ADD") for pod in pods]
    answers = [add.answer() for add in adds]
    assert [answer for answer in answers if answer.exit_code] == []
    assert len({answer.address() for answer in answers}) == 30
    assert len({address for pod in pods for address in pod.links()["net1"].addresses}) == 30
    for pod in pods:
        node.assert_attached(pod)
    deletes = [pod.call("DEL") for pod in pods]
    assert {delete.answer() for delete in deletes} == {(0, "", "")}
    node.assert_detached(*pods)


def test_a_worker_that_dies_with_twenty_pods_on_its_hands(node: Node) -> None:
    pods = [node.samplepod(f"pod-{number}") for number in range(20)]
    adds = [pod.call("ADD") for pod in pods]
    eventually(lambda: len(node.reserved()) >= 20, "it is half way")
    node.kill()
    node.start()
    answers = [add.answer() for add in adds]
    assert [answer for answer in answers if answer.exit_code] == []
    assert len({answer.address() for answer in answers}) == 20
    for pod in pods:
        node.assert_attached(pod)
    deletes = [pod.call("DEL") for pod in pods]
    eventually(lambda: len(node.reserved()) <= 20, "it is half way")
    node.kill()
    node.start()
    assert {delete.answer() for delete in deletes} == {(0, "", "")}
    node.settle()
