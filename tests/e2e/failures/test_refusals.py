"""Errors: the runtime gets a code and one sentence, the ledger an event, and no effect stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from events.schema import AttachFailed, ErrorClass
from tests.support.node.kernel import ip
from tests.support.node.node import Node
from tests.support.node.runtime import Answer, PodSandbox


@pytest.fixture
def node(shared_node: Node) -> Node:
    return shared_node


def assert_refused(
    node: Node, pod: PodSandbox, answer: Answer, code: int, error_class: ErrorClass, *words: str
) -> None:
    """The runtime and the ledger have the same failure, the ADD left no effect, and a DEL after it does nothing."""
    assert answer.code == code, answer
    for word in words:
        assert word in answer.msg
    assert "\n" not in answer.msg
    failure = node.failures(pod)[-1]
    assert (failure.message, failure.code, failure.error_class) == (answer.msg, code, error_class)
    assert node.event_types(pod)[-1] == "AttachFailed"
    node.assert_detached(pod)
    assert pod.delete() == (0, "", "")


@pytest.mark.parametrize(
    ("stdin", "code", "words"),
    [
        (b"{", 6, "JSON"),
        (b"", 6, "JSON"),
        (b"[]", 6, "not a JSON object"),
        (b'{"cniVersion":"1.0.0","name":"\xff\xfe"}', 6, "JSON"),
        (b'{"cniVersion":"1.0.0","name":"plumbline","type":"plumbline"}', 7, "no default network"),
        (b'{"cniVersion":"9.9.9","name":"plumbline","type":"plumbline"}', 1, "9.9.9"),
    ],
)
def test_invalid_configurations_are_refused(node: Node, stdin: bytes, code: int, words: str) -> None:
    pod = node.pod("misconfigured")
    answer = node.runtime.call("ADD", pod.env, stdin).answer()
    error_class = ErrorClass.UNSUPPORTED_VERSION if code == 1 else ErrorClass.INVALID_CONFIG
    assert_refused(node, pod, answer, code, error_class, "pod default/misconfigured", words)


@pytest.mark.parametrize("missing", ["CNI_NETNS", "CNI_PATH", "CNI_IFNAME"])
def test_add_without_a_required_parameter_is_refused(node: Node, missing: str) -> None:
    pod = node.pod("incomplete")
    answer = pod.call("ADD", without=missing).answer()
    assert answer.code == 4
    assert missing in answer.msg
    assert "pod default/incomplete" in answer.msg
    assert node.failures(pod)[-1].message == answer.msg


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("container_id", ["", "../../etc", "a/b", "-", "ä", "a b", "a.b>c", "a\nb"])
def test_invalid_container_ids_are_refused(node: Node, command: str, container_id: str) -> None:
    pod = node.pod("nameless")
    answer = pod.call(command, CNI_CONTAINERID=container_id).answer()
    assert answer.code == 4
    assert "CNI_CONTAINERID" in answer.msg
    assert node.failures()[-1].message == answer.msg


@pytest.mark.parametrize("ifname", ["a/b", "a b", "..", "x" * 16, "net%d"])
def test_invalid_interface_names_are_refused(node: Node, ifname: str) -> None:
    pod = node.pod("misnamed")
    for command in ("ADD", "DEL"):
        answer = pod.call(command, CNI_IFNAME=ifname).answer()
        assert answer.code == 4
        assert "CNI_IFNAME" in answer.msg
        assert node.failures(pod)[-1].message == answer.msg


def test_invalid_commands_are_refused(node: Node) -> None:
    pod = node.pod("any")
    before = node.events()
    assert pod.call("").answer().code == 4
    answer = pod.call("UPDATE").answer()
    assert answer.code == 4
    assert "UPDATE" in answer.msg
    assert pod.call("CHECK", without="CNI_CONTAINERID").answer().code == 3
    assert node.events() == before


def test_invalid_namespaces_are_refused(node: Node, tmp_path: Path) -> None:
    pod = node.pod("astray")
    regular = tmp_path / "regular"
    regular.touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, words in (
        ("/run/netns/not-there", "No such file"),
        (str(regular), "not a namespace file"),
        (str(tmp_path), "not a namespace file"),
        (str(fifo), "not a namespace file"),
        ("/dev/zero", "not a namespace file"),
        ("/proc/self/ns/mnt", "another kind"),
        (f"/proc/{os.getpid()}/ns/net", "the node's own"),
    ):
        answer = pod.add(CNI_NETNS=path)
        assert_refused(node, pod, answer, 4, ErrorClass.NAMESPACE_INVALID, "pod default/astray", path, words)


@pytest.mark.parametrize(
    ("networks", "error_class", "words"),
    [
        ("not-there", ErrorClass.NETWORK_NOT_FOUND, "default/not-there does not exist"),
        ("broken-json", ErrorClass.INVALID_CONFIG, "not JSON"),
        ("a/b/c", ErrorClass.INVALID_ANNOTATION, "a/b/c"),
        ("macvlan-conf@eth0", ErrorClass.INVALID_ANNOTATION, "eth0"),
        ("macvlan-conf@a,macvlan-conf@a", ErrorClass.INVALID_ANNOTATION, '"a"'),
        ("[{", ErrorClass.INVALID_ANNOTATION, "not valid JSON"),
        ('[{"name":"macvlan-conf","mac":"nonsense"}]', ErrorClass.INVALID_ANNOTATION, "mac"),
        ('[{"name":"macvlan-conf","ips":"10.1.1.1"}]', ErrorClass.INVALID_ANNOTATION, "ips"),
        ("own-type", ErrorClass.INVALID_CONFIG, "would call itself"),
        ("own-ipam", ErrorClass.INVALID_CONFIG, "would call itself"),
        ("path-type", ErrorClass.INVALID_CONFIG, "not the bare name"),
        ("future", ErrorClass.INVALID_CONFIG, "7.0.0"),
    ],
)
def test_unplannable_networks_are_refused(node: Node, networks: str, error_class: ErrorClass, words: str) -> None:
    node.nad("macvlan-conf", node.macvlan())
    node.nad("broken-json", '{"type": "macvlan"')
    node.nad("own-type", {"cniVersion": "1.0.0", "type": "plumbline"})
    node.nad("own-ipam", node.macvlan(ipam={"type": "plumbline"}))
    node.nad("path-type", {"cniVersion": "1.0.0", "type": "../lib/cni/macvlan"})
    node.nad("future", {"cniVersion": "7.0.0", "type": "macvlan"})
    pod = node.pod("unplannable", networks)
    answer = pod.add()
    assert_refused(node, pod, answer, 7, error_class, "pod default/unplannable", words)
    assert "InterfaceAttached" not in node.event_types(pod)


def test_unknown_pod_is_refused(node: Node) -> None:
    pod = node.pod("known")
    answer = pod.add(CNI_ARGS="K8S_POD_NAMESPACE=default;K8S_POD_NAME=unknown")
    assert_refused(node, pod, answer, 11, ErrorClass.POD_NOT_FOUND, "pod default/unknown")


def object_of(code: int, message: str) -> str:
    return json.dumps({"cniVersion": "1.0.0", "code": code, "msg": message})


@pytest.mark.parametrize(
    ("script", "code", "error_class", "words"),
    [
        (f"echo '{object_of(42, 'no more uplinks')}'; exit 1", 42, ErrorClass.PLUGIN_FAILED, "no more uplinks"),
        ("echo it is raining >&2; exit 3", 100, ErrorClass.PLUGIN_FAILED, "exit code 3: it is raining"),
        ("kill -SEGV $$", 100, ErrorClass.PLUGIN_FAILED, "SIGSEGV"),
        ("sleep 60", 11, ErrorClass.PLUGIN_TIMEOUT, "did not finish within"),
        ("sleep 60 & sleep 61", 11, ErrorClass.PLUGIN_TIMEOUT, "did not finish within"),
        ("echo this is no JSON", 102, ErrorClass.PLUGIN_OUTPUT, "not JSON"),
        ("echo '[]'", 102, ErrorClass.PLUGIN_OUTPUT, "not a JSON object"),
        ("exit 0", 102, ErrorClass.PLUGIN_OUTPUT, "not JSON"),
        ("exec head -c 100000000 /dev/zero", 102, ErrorClass.PLUGIN_OUTPUT, "printed more than"),
        ("head -c 100000000 /dev/zero >&2; exit 1", 100, ErrorClass.PLUGIN_FAILED, "exit code 1"),
        ("""echo '{"ips":[{"address":"ten"}]}'""", 102, ErrorClass.PLUGIN_OUTPUT, "ten"),
    ],
)
def test_failing_plugins_are_reported(node: Node, script: str, code: int, error_class: ErrorClass, words: str) -> None:
    node.plugin("failing", f"cat > /dev/null; [ $CNI_COMMAND = DEL ] && exit 0; {script}")
    node.nad("failing", {"cniVersion": "1.0.0", "type": "failing"})
    pod = node.pod("unlucky", "failing")
    answer = pod.add()
    where = "failing failed to add net1 of default/failing"
    assert_refused(node, pod, answer, code, error_class, "pod default/unlucky", where, words)
    assert "InterfaceAttachFailed" in node.event_types(pod)


def test_missing_plugin_is_reported(node: Node) -> None:
    """It can't be run for DEL either, but then it has made nothing."""
    node.nad("foreign", {"cniVersion": "1.0.0", "type": "nowhere"})
    pod = node.pod("unlucky", "foreign")
    answer = pod.add()
    words = "plugin nowhere is not in"
    assert_refused(node, pod, answer, 101, ErrorClass.PLUGIN_MISSING, "pod default/unlucky", "default/foreign", words)


def test_missing_uplink_is_reported(node: Node) -> None:
    node.nad("foreign", node.macvlan(master="nowhere0"))
    pod = node.pod("unlucky", "foreign")
    answer = pod.add()
    assert answer.code == 999
    assert answer.msg == (
        "pod default/unlucky: macvlan failed to add net1 of default/foreign: "
        "the master interface nowhere0 is missing on this node: create it, or set master to another name"
    )
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


def test_networks_after_a_failed_one_are_undone(node: Node) -> None:
    node.nad("foreign", node.macvlan(master="nowhere0"))
    node.nad("sound", node.macvlan())
    pod = node.pod("unlucky", "sound,foreign,sound")
    answer = pod.add()
    assert answer.code == 999
    assert "macvlan failed to add net2 of default/foreign: the master interface nowhere0 is missing" in answer.msg
    assert not pod.links()
    assert not node.reserved()
    types = node.event_types(pod)
    assert (types[0], types[1], types[-1]) == ("AttachRequested", "AttachPlanned", "AttachFailed")
    assert (types.count("InterfaceAttached"), types.count("InterfaceAttachFailed")) == (3, 1)
    assert types.count("InterfaceDetached") == 4
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


@pytest.mark.parametrize(
    ("second", "runtime_config", "words"),
    [
        ({"type": "tuning", "sysctl": {"net.ipv6.conf.eth0.autoconf": 0}}, {}, "cannot unmarshal number"),
        (
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]},
            "Invalid host port number: 0",
        ),
    ],
)
def test_what_a_refusing_plugin_did_not_make_is_not_left(
    node: Node, second: dict[str, Any], runtime_config: dict[str, Any], words: str
) -> None:
    first = {key: value for key, value in node.bridge().items() if key not in ("cniVersion", "name")}
    chain = {"cniVersion": "1.0.0", "name": "default", "plugins": [first, second]}
    pod = node.pod("unlucky", config=node.conf(chain, runtimeConfig=runtime_config))
    answer = pod.add()
    assert f"pod default/unlucky: {second['type']} failed to add eth0 of default: " in answer.msg
    assert words in answer.msg
    assert not pod.links()
    assert not node.reserved()
    outcome = node.events_of(pod)[-1].data
    assert isinstance(outcome, AttachFailed)
    assert outcome.left == ()
    assert node.event_types(pod)[2:] == ("InterfaceAttachFailed", "InterfaceDetached", "AttachFailed")
    refusals = [line for line in node.log.read_text().splitlines() if "plugin_refused_del" in line and words in line]
    assert len(refusals) == 1
    assert pod.delete() == (0, "", "")
    assert node.event_types(pod)[5:] == (), "there is nothing left to detach"
    node.assert_detached(pod)


def test_executed_plugin_reports_a_missing_uplink(executing_node: Node) -> None:
    """A missing plugin fails DEL too. The pod is removed anyway, and the worker retries the DEL."""
    node = executing_node
    node.nad("foreign", node.macvlan(master="nowhere0"))
    pod = node.pod("unlucky", "foreign")
    answer = pod.add()
    assert answer.code == 999
    assert answer.msg == "pod default/unlucky: macvlan failed to add net1 of default/foreign: Link not found"
    assert pod.delete() == (0, "", "")
    # containerd takes the words "not found" for a success, which this is not
    refused = "pod default/unlucky: macvlan failed to delete net1 of default/foreign: Link missing"
    assert node.failures(pod)[-1].message == refused
    ip("link", "add", "nowhere0", "type", "ifb")
    node.settle()
    ip("link", "del", "nowhere0")
    node.assert_detached(pod)


def test_existing_interface_is_refused_and_stays(node: Node) -> None:
    pod = node.samplepod()
    ip("-n", pod.namespace, "link", "add", "net1", "type", "ifb")
    answer = pod.add()
    assert answer.code == 7
    assert "pod default/samplepod" in answer.msg
    assert "net1" in answer.msg
    assert node.failures(pod)[-1].error_class is ErrorClass.INTERFACE_EXISTS
    assert set(pod.links()) == {"net1"}
    assert pod.delete() == (0, "", "")
    assert set(pod.links()) == {"net1"}
    ip("-n", pod.namespace, "link", "del", "net1")


def test_repeated_add_gets_the_recorded_result(node: Node) -> None:
    pod = node.samplepod()
    first = pod.add()
    assert pod.add() == first
    assert node.event_types(pod)[-2:] == ("AttachRequested", "AttachCompleted")
    node.assert_attached(pod)


def test_second_add_that_differs_is_refused(node: Node) -> None:
    pod, other = node.samplepod(), node.pod("other")
    assert pod.add().exit_code == 0
    for answer in (
        pod.add(CNI_NETNS=other.netns),
        node.runtime.call("ADD", pod.env, node.conf(version="0.4.0")).answer(),
    ):
        assert answer.code == 4
        assert "can't be attached again as eth0" in answer.msg
        assert "send DEL first" in answer.msg
        node.assert_attached(pod)
    assert not other.links()


def test_del_without_add_and_second_del_succeed(node: Node) -> None:
    pod = node.samplepod()
    assert pod.delete() == (0, "", "")
    assert pod.add().exit_code == 0
    assert pod.delete() == (0, "", "")
    recorded = node.event_types(pod)
    assert (recorded[0], recorded[-1]) == ("AttachRequested", "DetachCompleted")
    for _ in range(3):
        assert pod.delete() == (0, "", "")
    assert pod.delete(CNI_NETNS="") == (0, "", "")
    assert node.event_types(pod) == recorded, "nothing was open: there is nothing new to record"


@pytest.mark.parametrize("netns", ["the path", "nothing"])
@pytest.mark.parametrize("left", ["nothing", "a file"])
def test_del_frees_addresses_when_the_namespace_is_gone(node: Node, netns: str, left: str) -> None:
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    assert len(node.reserved()) == 2
    pod.end()
    if left == "a file":  # what a namespace was mounted on can outlive it
        Path(pod.netns).touch()
    try:
        assert pod.delete(**({"CNI_NETNS": ""} if netns == "nothing" else {})) == (0, "", "")
    finally:
        Path(pod.netns).unlink(missing_ok=True)
    assert not node.reserved()


def test_del_needs_only_container_and_interface(node: Node) -> None:
    pod = node.samplepod()
    assert pod.add().exit_code == 0
    env = {key: pod.env[key] for key in ("CNI_CONTAINERID", "CNI_IFNAME")}
    assert node.runtime.call("DEL", env, b"").answer() == (0, "", "")
    node.assert_detached(pod)


def test_detach_uses_recorded_bytes_when_the_nad_is_gone_or_changed(node: Node) -> None:
    changed, gone = node.samplepod("changed"), node.pod("gone", "vanishing")
    node.nad("vanishing", node.macvlan())
    assert changed.add().exit_code == 0
    assert gone.add().exit_code == 0
    node.nad("macvlan-conf", {"cniVersion": "1.0.0", "type": "nowhere"})
    node.no_nad("vanishing")
    for pod in (changed, gone):
        assert pod.delete() == (0, "", "")
        node.assert_detached(pod)


def test_check_reports_missing_parts(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan("1.0.0"))
    pod = node.pod("checked", "macvlan-conf")
    answer = pod.check()
    assert answer.code == 3
    assert pod.add().exit_code == 0
    assert pod.check().exit_code == 0
    ip("-n", pod.namespace, "addr", "flush", "dev", "eth0")
    answer = pod.check()
    assert answer.exit_code == 1
    assert "bridge failed to check eth0 of default" in answer.msg
    ip("-n", pod.namespace, "link", "del", "net1")
    answer = pod.check()
    assert answer.code == 100
    assert "interface net1 of network default/macvlan-conf is missing" in answer.msg
    assert "pod default/checked" in answer.msg
    assert pod.delete() == (0, "", "")


def test_gc_reports_which_plugin_failed(node: Node) -> None:
    moody = {"cniVersion": "1.1.0", "name": "moody", "type": "moody"}
    pod = node.pod("pod", "moody", node.conf(version="1.1.0"))
    node.plugin(
        "moody",
        f"cat > /dev/null; case $CNI_COMMAND in GC) echo '{object_of(42, 'not today')}'; exit 1;; "
        'ADD) echo \'{"cniVersion":"1.1.0"}\';; esac',
    )
    node.nad("moody", moody)
    assert pod.add().exit_code == 0
    valid = [{"containerID": pod.container_id, "ifname": "eth0"}]
    request = {**node.conf(version="1.1.0"), "cni.dev/valid-attachments": valid}
    answer = node.runtime.call("GC", {"CNI_PATH": ""}, request).answer()
    assert answer.code == 42
    assert "moody failed to collect garbage of default/moody: not today" in answer.msg
    assert node.failures()[-1].message == answer.msg
