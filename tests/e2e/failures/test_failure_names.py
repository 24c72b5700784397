"""Every failure names pod, network and plugin, in every phase, also where one name is a part of another.

The pod is ``default/web``, its network ``default/web-net``, which has the pod's name in its own.
"""

from __future__ import annotations

from typing import Any

import pytest

from events.schema import (
    AttachFailed,
    DriftRepairFailed,
    Failure,
    InterfaceAttachFailed,
    InterfaceDetachFailed,
    Phase,
)
from tests.support.node.kernel import ip
from tests.support.node.node import PARENT, MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

NETWORK = {"cniVersion": "1.1.0", "name": "web", "type": "web-plugin"}
WHAT = "net1 of default/web-net"
REASON = "web is not what it was"


def refuse(node: Node, *commands: str) -> None:
    """Install the network's plugin: it refuses *commands*."""
    error = f'{{"code": 42, "msg": "{REASON}"}}'
    node.plugin(
        "web-plugin",
        f"cat > /dev/null; case $CNI_COMMAND in {'|'.join(commands) or '-'}) echo '{error}'; exit 1;; "
        'ADD) echo \'{"cniVersion":"1.1.0"}\';; esac',
    )


@pytest.fixture
def web(node: Node) -> PodSandbox:
    node.nad("web-net", NETWORK)
    return node.pod("web", "web-net", node.conf(version="1.1.0"))


def recorded(node: Node, pod: PodSandbox, kind: type[Any]) -> list[Failure]:
    data: list[Any] = [event.data for event in node.events_of(pod) if isinstance(event.data, kind)]
    return [each.failure for each in data]


def names(failure: Failure) -> tuple[str, str, str, str]:
    return failure.subject, failure.network, failure.plugin_type, failure.phase.value


def test_refusal_to_plan_names_pod_and_network(node: Node) -> None:
    pod = node.pod("web", "web-net")
    sentence = "pod default/web: network default/web-net does not exist; create it, or correct the annotation"
    assert pod.add().msg.startswith(sentence)
    (failure,) = recorded(node, pod, AttachFailed)
    assert names(failure) == ("pod default/web", "default/web-net", "", "resolve")


def test_failed_add_names_pod_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "ADD")
    sentence = f"pod default/web: web-plugin failed to add {WHAT}: {REASON}"
    assert web.add().msg == sentence
    failures = recorded(node, web, AttachFailed) + recorded(node, web, InterfaceAttachFailed)
    assert [each.message for each in failures] == [sentence] * 2
    assert {names(each) for each in failures} == {("pod default/web", "default/web-net", "web-plugin", "add")}


def test_failed_rollback_names_pod_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "ADD", "DEL")
    assert web.add().exit_code == 1
    first = recorded(node, web, InterfaceDetachFailed)[0]
    assert first.message == f"pod default/web: web-plugin failed to delete {WHAT}: {REASON}"
    assert names(first) == ("pod default/web", "default/web-net", "web-plugin", "rollback")
    refuse(node)
    node.settle()


def test_overtaken_add_names_pod_and_network(node: Node) -> None:
    gate = node.gate("macvlan")
    node.nad("web-net", node.macvlan(type=gate.type))
    pod = node.pod("web", "web-net")
    add = pod.call("ADD")
    gate.reached()
    assert pod.delete().exit_code == 0
    sentence = add.answer().msg
    assert sentence.startswith("pod default/web: a DEL of the same container and interface came meanwhile")
    assert sentence.endswith(f", while {WHAT} was being added")
    failures = recorded(node, pod, AttachFailed) + recorded(node, pod, InterfaceAttachFailed)
    assert [each.message for each in failures] == [sentence] * 2


def test_failed_del_names_pod_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "DEL")
    assert web.add().exit_code == 0
    sentence = f"pod default/web: web-plugin failed to delete {WHAT}: {REASON}"
    assert web.delete().msg == sentence
    assert recorded(node, web, InterfaceDetachFailed)[0].message == sentence
    refuse(node)
    node.settle()


def test_failed_check_names_pod_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "CHECK")
    assert web.add().exit_code == 0
    assert web.check().msg == f"pod default/web: web-plugin failed to check {WHAT}: {REASON}"


def test_check_of_unknown_sandbox_names_the_pod_once(web: PodSandbox) -> None:
    expected = f"pod default/web: container {web.container_id[:12]} is not in the ledger as eth0: nothing to check"
    assert web.check().msg == expected


def test_failed_gc_names_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "GC")
    assert web.add().exit_code == 0
    valid = [{"containerID": web.container_id, "ifname": "eth0"}]
    request = {**node.conf(version="1.1.0"), "cni.dev/valid-attachments": valid}
    answer = node.runtime.call("GC", {"CNI_PATH": ""}, request).answer()
    assert answer.msg == f"web-plugin failed to collect garbage of default/web-net: {REASON}"


def test_gc_that_can_not_detach_names_pod_network_and_plugin(node: Node, web: PodSandbox) -> None:
    refuse(node, "DEL")
    assert web.add().exit_code == 0
    request = {**node.conf(version="1.1.0"), "cni.dev/valid-attachments": []}
    answer = node.runtime.call("GC", {"CNI_PATH": ""}, request).answer()
    assert answer.msg == f"pod default/web: web-plugin failed to delete {WHAT}: {REASON}"
    refuse(node)
    node.settle()


def test_failed_status_names_network_and_plugin(node: Node) -> None:
    refuse(node, "STATUS")
    conf = node.conf({**NETWORK, "name": "web-net"}, version="1.1.0")
    answer = node.runtime.call("STATUS", {"CNI_PATH": ""}, conf).answer()
    assert answer.msg == f"web-plugin is not ready to serve web-net: {REASON}"
    absent = node.conf({**NETWORK, "name": "web-net", "type": "web"}, version="1.1.0")
    answer = node.runtime.call("STATUS", {"CNI_PATH": ""}, absent).answer()
    assert answer.msg.startswith("the default network: web is not ready to serve web-net: plugin web is not in ")


def test_failed_repair_names_pod_and_network(make_node: MakeNode) -> None:
    node = make_node()
    node.start()
    node.nad("web-net", node.macvlan())
    pod = node.pod("web", "web-net")
    with reconciler(node):
        assert pod.add().exit_code == 0
        ip("link", "set", PARENT, "down")
        try:
            failure = eventually(lambda: recorded(node, pod, DriftRepairFailed), "it can't be repaired")[0]
        finally:
            ip("link", "set", PARENT, "up")
    assert failure.message.startswith(f"pod default/web: not all drift could be repaired: {WHAT} (parent down: ")
    assert (failure.subject, failure.network, failure.phase) == ("pod default/web", "default/web-net", Phase.REPAIR)
