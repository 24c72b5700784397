"""What happens to requests when the worker, the runtime or a plugin fails, and when many come at once."""

from __future__ import annotations

from events.schema import AttachFailed, DetachRequested, ErrorClass
from tests.support.node.node import MakeNode, Node, gated_pod
from tests.support.waiting import eventually

# --- the runtime ---


def test_del_overtakes_its_add(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    assert pod.delete() == (0, "", "")
    answer = add.answer()
    assert answer.code == 11
    assert "pod default/gated: a DEL of the same container and interface came meanwhile" in answer.msg
    node.assert_detached(pod)
    assert node.event_types(pod)[-2:] == ("AttachFailed", "DetachCompleted")
    assert node.failures(pod)[-1].error_class is ErrorClass.OVERTAKEN


def test_abandoned_add_is_undone(node: Node) -> None:
    pod, gate = gated_pod(node)
    add = pod.call("ADD")
    gate.reached()
    add.kill()
    eventually(lambda: node.event_types(pod)[-1:] == ("AttachFailed",), "the ADD is given up")
    assert node.failures(pod)[-1].error_class is ErrorClass.ABANDONED
    node.assert_detached(pod)
    assert pod.delete() == (0, "", "")


def test_add_past_its_deadline_is_undone(node: Node) -> None:
    pod, gate = gated_pod(node)
    answer = pod.add(PLUMBLINE_DEADLINE="3")
    gate.reached()
    assert answer.code == 11
    eventually(lambda: node.event_types(pod)[-1:] == ("AttachFailed",), "the ADD is given up")
    node.assert_detached(pod)
    gate.open()
    assert pod.add().exit_code == 0  # the runtime tries again
    node.assert_attached(pod)


def test_abandoned_del_is_done(node: Node) -> None:
    pod, gate = gated_pod(node, "DEL")
    assert pod.add().exit_code == 0
    call = pod.call("DEL")
    gate.reached()
    call.kill()
    gate.open()
    eventually(lambda: node.event_types(pod)[-1:] == ("DetachCompleted",), "the DEL is done")
    node.assert_detached(pod)


def test_calls_for_one_container_run_one_after_another(node: Node) -> None:
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


def test_del_runs_while_gc_detaches_another_container(node: Node) -> None:
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


def test_other_containers_do_not_wait_for_a_hung_plugin(node: Node) -> None:
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


def test_spooled_del_is_done_by_the_next_worker(node: Node) -> None:
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    node.kill()
    assert pod.delete() == (0, "", "")
    assert len(list(node.spool.iterdir())) == 1
    assert pod.links()
    node.start()  # it opens when the spool is empty
    node.assert_detached(pod)
    assert not list(node.spool.iterdir())


def test_invalid_spooled_request_delays_no_other(node: Node) -> None:
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


def test_failed_detach_is_retried_until_it_succeeds(node: Node) -> None:
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
    eventually(lambda: node.event_types(pod)[-1] == "DetachCompleted", "the worker succeeds")
    retries = [e.data.retry for e in node.events_of(pod) if isinstance(e.data, DetachRequested)]
    assert retries == [0, 1, 2]
    node.assert_detached(pod)
    lines = [line for line in node.log.read_text().splitlines() if "interface_detach_failed" in line]
    assert len(lines) == 1, "the first failure is logged, and not its repetitions"
    assert "pod=default/stuck" in lines[0]
    assert f"sandbox={pod.container_id[:12]}" in lines[0]


def test_failed_rollback_is_retried_until_it_succeeds(node: Node) -> None:
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
    eventually(lambda: node.event_types(pod)[-1] == "DetachCompleted", "the worker succeeds")
    node.assert_detached(pod)


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


def test_successor_finishes_twenty_pods_of_a_killed_worker(node: Node) -> None:
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
