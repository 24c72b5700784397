"""What Multus' own tests require, run through the entry point; ``multus-behaviour.md`` names each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from events.fold import State
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK
from reconciler.status.kubernetes.pod_events import pod_events
from tests.support.node.cluster import NETWORK, Cluster
from tests.support.node.node import MakeNode, Node
from tests.support.node.runtime import Answer, PodSandbox

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


class Called(NamedTuple):
    """One execution of a ``recording`` plugin."""

    command: str
    plugin: str
    ifname: str
    config: dict[str, Any]


class Recording:
    """Plugins on *node* that keep what they are called with, and make nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._calls = node.bin / "calls"
        self._calls.write_bytes(b"")

    def plugin(self, name: str, result: dict[str, Any], *, refuses: str = "") -> None:
        """Install the plugin *name*: its ADD prints *result*, or fails with the message *refuses*."""
        add = (
            f"echo '{json.dumps({'code': 42, 'msg': refuses})}'; exit 1" if refuses else f"echo '{json.dumps(result)}'"
        )
        self._node.plugin(
            name,
            f"config=$(tr -d '\\n')\n"
            f'printf \'["%s", "{name}", "%s", %s]\\n\' "$CNI_COMMAND" "$CNI_IFNAME" "$config" >> {self._calls}\n'
            f'[ "$CNI_COMMAND" != ADD ] || {{ {add}; }}',
        )

    def calls(self) -> list[Called]:
        """Return the calls since the last time, in order."""
        lines = self._calls.read_text().splitlines()
        self._calls.write_bytes(b"")
        return [Called(*json.loads(line)) for line in lines]

    def order(self) -> list[tuple[str, str, str]]:
        """Return command, plugin and interface of the calls since the last time."""
        return [each[:3] for each in self.calls()]


@pytest.fixture
def node(shared_node: Node) -> Node:
    return shared_node


@pytest.fixture
def recording(node: Node) -> Recording:
    return Recording(node)


def result(version: str, address: str) -> dict[str, Any]:
    """Return a result of one address, in the shape that *version* has."""
    if version in {"0.1.0", "0.2.0"}:
        return {"cniVersion": version, "ip4": {"ip": address}}
    family = {"version": "4"} if version < "1" else {}
    return {"cniVersion": version, "ips": [{**family, "address": address}]}


def static(name: str, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    """Return the configuration of a network whose plugin is called like it."""
    return {"cniVersion": version, "name": name, "type": name, **keys}


# --- ADD and DEL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_delegates_are_added_in_order_and_deleted_in_reverse(node: Node, recording: Recording, version: str) -> None:
    recording.plugin("first", result(version, "10.9.0.2/24"))
    recording.plugin("second", result(version, "10.9.1.2/24"))
    pod = node.pod("ordered", config=node.conf(static("first", version), static("second", version), version=version))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert answer.json == result(version, "10.9.0.2/24")
    assert recording.order() == [("ADD", "first", "eth0"), ("ADD", "second", "net1")]
    assert pod.delete() == (0, "", "")
    assert recording.order() == [("DEL", "second", "net1"), ("DEL", "first", "eth0")]


def test_failed_delegate_and_earlier_ones_are_deleted(node: Node, recording: Recording) -> None:
    for name in ("first", "third"):
        recording.plugin(name, result("1.0.0", "10.9.0.2/24"))
    recording.plugin("second", {}, refuses="the pool is empty")
    pod = node.pod("unlucky", config=node.conf(*map(static, ("first", "second", "third"))))
    answer = pod.add()
    assert (answer.code, answer.msg) == (
        42,
        "pod default/unlucky: second failed to add net1 of second: the pool is empty",
    )
    assert recording.order() == [
        ("ADD", "first", "eth0"),
        ("ADD", "second", "net1"),
        ("DEL", "second", "net1"),
        ("DEL", "first", "eth0"),
    ]
    assert pod.delete() == (0, "", "")


def test_delegate_without_a_result_is_attached(node: Node, recording: Recording) -> None:
    recording.plugin("silent", {"cniVersion": "1.0.0"})
    node.nad("silent", {"cniVersion": "1.0.0", "type": "silent"})
    pod = node.pod("quiet", "silent")
    pod.env["CNI_ARGS"] += ";K8S_POD_UID=u1"
    assert pod.add().exit_code == 0
    address = next(iter(pod.links()["eth0"].addresses))
    assert attach_messages(node, pod) == [f"Add eth0 [{address}] from default"]
    assert recording.order() == [("ADD", "silent", "net1")]
    assert pod.delete() == (0, "", "")
    assert recording.order() == [("DEL", "silent", "net1")]


def attach_messages(node: Node, pod: PodSandbox) -> list[str]:
    """Return what Kubernetes Events would say of *pod*."""
    state = State(keep_closed=True)
    said: list[str] = []
    for stored in node.events():
        sandbox = state.apply(stored)
        if stored.event.sandbox == pod.container_id:
            said += [each.message for each in pod_events(stored.event, sandbox)]
    return said


def test_del_uses_the_record_when_pod_and_network_are_gone(node: Node, recording: Recording) -> None:
    recording.plugin("storage", {"cniVersion": "1.0.0"})
    config = {"cniVersion": "1.0.0", "type": "storage", "vendor": {"pool": 18446744073709551616}}
    node.nad("storage", config)
    pod = node.pod("gone", "storage")
    assert pod.add().exit_code == 0
    (node.manifests / "pod-gone.json").unlink()
    node.no_nad("storage")
    assert pod.delete() == (0, "", "")
    added, deleted = recording.calls()
    assert (added.command, deleted.command) == ("ADD", "DEL")
    assert added.config == {**config, "name": "storage"}
    assert deleted.config == {**added.config, "prevResult": {"cniVersion": "1.0.0"}}
    node.assert_detached(pod)


# --- questions --------------------------------------------------------------------------------------------------------


def ask(node: Node, command: str, config: dict[str, Any], **env: str) -> Answer:
    return node.runtime.call(command, {"CNI_PATH": "/usr/lib/cni", **env}, config).answer()


def test_check_asks_the_delegates_of_node_and_pod_alike(node: Node, recording: Recording) -> None:
    for name in ("first", "second", "storage"):
        recording.plugin(name, {"cniVersion": "1.0.0"})
    node.nad("storage", {"cniVersion": "1.0.0", "type": "storage"})
    pod = node.pod("checked", "storage", node.conf(static("first"), static("second")))
    assert pod.add().exit_code == 0
    recording.calls()
    assert pod.check() == (0, "", "")
    calls = recording.calls()
    assert [call[:3] for call in calls] == [
        ("CHECK", "first", "eth0"),
        ("CHECK", "second", "net1"),
        ("CHECK", "storage", "net2"),
    ]
    assert [call.config["prevResult"] for call in calls] == [{"cniVersion": "1.0.0"}] * 3


@pytest.mark.parametrize("args", [{}, {"CNI_ARGS": ""}])
def test_status_asks_the_default_networks_delegate_once_and_needs_no_pod(
    node: Node, recording: Recording, args: dict[str, str]
) -> None:
    recording.plugin("first", {})
    recording.plugin("second", {})
    config = node.conf(static("first", "1.1.0"), static("second", "1.1.0"), version="1.1.0")
    assert ask(node, "STATUS", config, **args) == (0, "", "")
    assert recording.order() == [("STATUS", "first", "")]


@pytest.mark.parametrize("args", [{}, {"CNI_ARGS": ""}])
def test_gc_reaches_every_network_in_use_and_needs_no_pod(
    node: Node, recording: Recording, args: dict[str, str]
) -> None:
    recording.plugin("first", {"cniVersion": "1.1.0"})
    recording.plugin("storage", {"cniVersion": "1.1.0"})
    node.nad("storage", {"cniVersion": "1.1.0", "type": "storage"})
    config = node.conf(static("first", "1.1.0"), version="1.1.0")
    pod = node.pod("live", "storage", config)
    assert pod.add().exit_code == 0
    recording.calls()
    valid = [{"containerID": pod.container_id, "ifname": "eth0"}]
    assert ask(node, "GC", {**config, "cni.dev/valid-attachments": valid}, **args) == (0, "", "")
    calls = recording.calls()
    assert [call[:3] for call in calls] == [("GC", "first", ""), ("GC", "storage", "")]
    assert [call.config["cni.dev/valid-attachments"] for call in calls] == [
        valid,
        [{"containerID": pod.container_id, "ifname": "net1"}],
    ]


def test_gc_keeps_valid_sandboxes_unknown_to_the_ledger(node: Node, recording: Recording) -> None:
    """It was attached before Plumbline came to the node; to free it would take a live pod's address."""
    recording.plugin("first", {"cniVersion": "1.1.0"})
    config = node.conf(static("first", "1.1.0"), version="1.1.0")
    pod = node.pod("ours", config=config)
    assert pod.add().exit_code == 0
    recording.calls()
    earlier = {"containerID": "attached-before", "ifname": "eth0"}
    valid = [earlier, {"containerID": pod.container_id, "ifname": "eth0"}]
    assert ask(node, "GC", {**config, "cni.dev/valid-attachments": valid}) == (0, "", "")
    (call,) = recording.calls()
    assert earlier in call.config["cni.dev/valid-attachments"]
    assert len(call.config["cni.dev/valid-attachments"]) == 2


# --- the cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(make_node: MakeNode) -> Iterator[Cluster]:
    """A cluster of one node whose worker does not run yet."""
    with Cluster.around(make_node()) as cluster:
        yield cluster


def test_kube_system_networks_are_defaults_a_pod_may_override(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    kube.create_nad("kube-system", "podnet", json.dumps(node.bridge()))
    kube.create_nad("kube-system", "fast", json.dumps(node.macvlan()))
    cluster.start()
    plain = cluster.pod("plain")
    uid = kube.create_pod("default", "replaced", node.name, {DEFAULT_NETWORK: "fast"})
    replaced = cluster.sandbox("replaced", uid)
    for sandbox, networks in (
        (plain, [("kube-system/podnet", "eth0"), (f"default/{NETWORK}", "net1")]),
        (replaced, [("kube-system/fast", "eth0")]),
    ):
        sandbox.config = {"cniVersion": "1.0.0", "name": "n", "type": "plumbline", "clusterNetwork": "podnet"}
        answer = sandbox.add()
        assert answer.exit_code == 0, answer
        node.assert_attached(sandbox)
        recorded = node.state().sandboxes[sandbox.key].attachments
        assert [(each.plan.network, each.plan.ifname) for each in recorded] == networks
        assert sandbox.delete() == (0, "", "")
        node.assert_detached(sandbox)


def test_static_pod_is_attached_despite_its_mirrors_other_uid(cluster: Cluster) -> None:
    node, kube = cluster.node, cluster.kube
    annotations = {"kubernetes.io/config.source": "file", "k8s.v1.cni.cncf.io/networks": NETWORK}
    kube.create_pod("default", "static-node", node.name, annotations)
    cluster.start()
    sandbox = cluster.sandbox("static-node", "0123456789abcdef0123456789abcdef")
    answer = sandbox.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(sandbox)
    assert set(sandbox.links()) == {"eth0", "net1"}
    assert sandbox.delete() == (0, "", "")


# --- the node's folder ------------------------------------------------------------------------------------------------


def test_nothing_is_written_to_the_state_folder_of_multus(node: Node, tmp_path: Path) -> None:
    pod = node.pod("recorded", config=node.conf(cniDir=str(tmp_path / "multus")))
    assert pod.add().exit_code == 0
    assert node.event_types(pod)[:2] == ("AttachRequested", "AttachPlanned")
    assert pod.delete() == (0, "", "")
    assert not (tmp_path / "multus").exists()


def test_unknown_log_level_counts_as_verbose(node: Node, tmp_path: Path) -> None:
    pod = node.pod("logged", config=node.conf(logFile=str(tmp_path / "log"), logLevel="chatty"))
    assert pod.add().exit_code == 0
    assert pod.check().exit_code == 0
    assert pod.delete() == (0, "", "")
    commands = [line.split("command=")[1].split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert commands == ["ADD", "DEL"]
