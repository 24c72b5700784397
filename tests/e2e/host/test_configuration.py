"""A node that ran Multus: only the type in its configuration changes, all other keys keep their meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from events.schema import AttachPlanned, ErrorClass
from tests.support.node.node import MakeNode, Node
from tests.support.node.runtime import Answer, PodSandbox
from tests.support.waiting import eventually

RECORDING = r"""
config=$(tr -d '\n')
printf '%s %s\n' "$CNI_COMMAND" "$config" >> FILE
[ "$CNI_COMMAND" = ADD ] && printf '%s' "$config" | sed 's/.*"prevResult":\(.*\)}$/\1/' || true"""
"""A chained plugin that stores its input and prints the previous result."""

MULTUS: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "multus-cni-network",
    "type": "plumbline",
    "capabilities": {"portMappings": True, "bandwidth": True},
    "cniDir": "/var/lib/cni/multus",
    "confDir": "/etc/cni/multus/net.d",
    "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig",
    "logLevel": "verbose",
    "logToStderr": True,
    "logOptions": {"maxAge": 5, "maxSize": 100, "maxBackups": 5, "compress": True},
    "namespaceIsolation": False,
    "globalNamespaces": "",
    "multusNamespace": "kube-system",
    "systemNamespaces": ["kube-system"],
    "retryDeleteOnError": True,
    "daemonSocketDir": "/run/multus/socket",
    "readinessIndicatorFile": "",
    "auxiliaryCNIChainName": None,
}


@pytest.fixture
def node(shared_node: Node) -> Node:
    return shared_node


@pytest.fixture
def net_d(tmp_path: Path) -> Path:
    """The folder that the default network's configuration is in."""
    folder = tmp_path / "net.d"
    folder.mkdir()
    return folder


def listed(folder: Path, name: str, *plugins: dict[str, Any], version: str = "1.0.0") -> Path:
    path = folder / f"10-{name}.conflist"
    path.write_text(json.dumps({"cniVersion": version, "name": name, "plugins": plugins}))
    return path


def multus(cluster_network: Path | str, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    return {**MULTUS, "cniVersion": version, "clusterNetwork": str(cluster_network), **keys}


def ask(node: Node, command: str, config: dict[str, Any], **env: str) -> Answer:
    return node.runtime.call(command, {"CNI_PATH": "/usr/lib/cni", **env}, config).answer()


def log_since(node: Node, mark: int, event: str) -> list[str]:
    return [line for line in node.log.read_text()[mark:].splitlines() if f"event={event}" in line]


def length(node: Node) -> int:
    return len(node.log.read_text())


# --- the file of a node -----------------------------------------------------------------------------------------------


def test_multus_configuration_is_accepted_unchanged(node: Node, net_d: Path) -> None:
    node.nad("macvlan-conf", node.macvlan())
    mark = length(node)
    pod = node.pod("drop-in", "macvlan-conf", multus(listed(net_d, "default", node.bridge())))
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    assert set(pod.links()) == {"eth0", "net1"}
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)
    assert not log_since(node, mark, "unknown_configuration_key")


def test_chain_continues_in_its_folder_and_del_does_not_read_it(node: Node, net_d: Path) -> None:
    calls = net_d / "calls"
    node.plugin("recording", RECORDING.replace("FILE", str(calls)))
    folder = net_d / "default"
    folder.mkdir()
    (folder / "50-recording.conf").write_text(
        '{"type": "recording", "vendor": {"id": 18446744073709551616, "w": 1.50}}'
    )
    pod = node.pod("chained", config=multus(listed(net_d, "default", node.bridge())))
    assert pod.add().exit_code == 0
    (folder / "50-recording.conf").unlink()
    assert pod.delete() == (0, "", "")
    added, deleted = calls.read_text().splitlines()
    assert added.startswith("ADD ")
    assert deleted.startswith("DEL ")
    for call in (added, deleted):
        config = json.loads(call[4:])
        assert config["vendor"] == {"id": 18446744073709551616, "w": 1.5}
        assert config["prevResult"]["interfaces"]


def test_auxiliary_chain_is_attached_last(node: Node, net_d: Path) -> None:
    calls = net_d / "calls"
    node.plugin("recording", RECORDING.replace("FILE", str(calls)))
    node.plugin("passthru", """[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0"}'""")
    node.nad("macvlan-conf", node.macvlan())
    (net_d / "vendor").mkdir()
    (net_d / "vendor" / "10.conf").write_text('{"type": "recording"}')
    config = multus(listed(net_d, "default", node.bridge()), auxiliaryCNIChainName="vendor")
    pod = node.pod("vendored", "macvlan-conf", config)
    assert pod.add().exit_code == 0
    planned = next(event.data for event in node.events_of(pod) if isinstance(event.data, AttachPlanned))
    assert [(each.network, each.ifname) for each in planned.attachments] == [
        ("default", "eth0"),
        ("default/macvlan-conf", "net1"),
        ("vendor", "net2"),
    ]
    assert not json.loads(calls.read_text().removeprefix("ADD "))["prevResult"].get("interfaces")
    assert pod.delete() == (0, "", "")
    assert calls.read_text().splitlines()[1].startswith("DEL ")


def test_list_among_the_delegates_has_the_plugins_that_its_folder_has_at_the_add(node: Node, net_d: Path) -> None:
    node.plugin("recording", RECORDING.replace("FILE", str(net_d / "calls")))
    bridge = {"cniVersion": "1.0.0", "name": "default", "plugins": [node.bridge()]}
    config = node.conf(bridge, chainDir=str(net_d), auxiliaryCNIChainName="vendor")
    before, after, last = (node.pod(name, config=config) for name in ("before", "after", "last"))
    assert before.add().exit_code == 0
    for folder in (net_d / "default", net_d / "vendor"):
        folder.mkdir()
        (folder / "50-recording.conf").write_text('{"type": "recording"}')
    assert after.add().exit_code == 0
    (net_d / "default" / "50-recording.conf").unlink()
    (net_d / "vendor" / "50-recording.conf").write_text("{")
    assert "50-recording.conf" in last.add().msg
    (net_d / "vendor" / "50-recording.conf").unlink()
    assert last.add().exit_code == 0
    assert [types_of(node, each) for each in (before, after, last)] == [
        ["bridge"],
        ["bridge", "recording", "passthru", "recording"],
        ["bridge"],
    ]
    for each in (before, after, last):
        assert each.delete() == (0, "", "")


def types_of(node: Node, pod: PodSandbox) -> list[str]:
    """Return the types of all plugins of the last plan of *pod*."""
    *_, planned = (event.data for event in node.events_of(pod) if isinstance(event.data, AttachPlanned))
    return [json.loads(plugin)["type"] for each in planned.attachments for plugin in each.plugins]


def test_unknown_key_is_warned_about_once(make_node: MakeNode) -> None:
    node = make_node(network={"clusterNetwork": "", "clusterNetworks": ["x"]})
    node.start()
    for name in ("one", "two"):
        pod = node.pod(name, config=node.conf(binDir=str(node.bin), bogus=1))
        assert pod.add().exit_code == 0
    warned = log_since(node, 0, "unknown_configuration_key")
    assert [line.split("key=")[1] for line in warned] == [
        "clusterNetworks where=worker.network",
        'bogus where="the runtime\'s configuration"',
    ]


def test_previous_result_of_another_version_is_refused(node: Node) -> None:
    pod = node.pod("chained", config=node.conf(prevResult={"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}}))
    answer = pod.add()
    assert answer.code == 7
    assert 'prevResult is in cniVersion "0.2.0"' in answer.msg


# --- readiness --------------------------------------------------------------------------------------------------------


def attach_requested(node: Node, pod: PodSandbox) -> bool:
    return "AttachRequested" in node.event_types(pod)


def test_add_waits_for_the_default_network(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    pod = node.pod("early", config=node.conf(readinessindicatorfile=str(ready)))
    call = pod.call("ADD")
    eventually(lambda: attach_requested(node, pod), "the request is in the ledger")
    assert call.running()
    assert "AttachPlanned" not in node.event_types(pod)
    ready.touch()
    assert call.answer().exit_code == 0
    node.assert_attached(pod)


def test_add_names_the_file_it_waited_for(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    pod = node.pod("early", config=node.conf(readinessindicatorfile=str(ready)))
    answer = pod.add(PLUMBLINE_DEADLINE="2")
    assert answer.code == 11
    assert f"readinessindicatorfile {ready}" in answer.msg
    assert "pod default/early" in answer.msg
    assert node.failures(pod)[-1].error_class is ErrorClass.NODE_NOT_READY
    node.assert_detached(pod)


def test_del_does_not_wait(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    pod = node.pod("late", config=node.conf(readinessindicatorfile=str(ready)))
    assert pod.add().exit_code == 0
    ready.unlink()
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


def test_status_and_gc_report_an_unready_default_network(node: Node, tmp_path: Path) -> None:
    config = node.conf(version="1.1.0", readinessindicatorfile=str(tmp_path / "ready"))
    answer = ask(node, "STATUS", config)
    assert answer.code == 50
    assert str(tmp_path / "ready") in answer.msg
    answer = ask(node, "GC", {**config, "cni.dev/valid-attachments": []}, PLUMBLINE_DEADLINE="2")
    assert answer.code == 11
    assert str(tmp_path / "ready") in answer.msg


# --- STATUS of the default network ------------------------------------------------------------------------------------


def test_status_includes_the_cluster_network(node: Node, net_d: Path) -> None:
    path = listed(net_d, "default", {"type": "moody"}, version="1.1.0")
    node.plugin("moody", 'echo \'{"cniVersion":"1.1.0","code":51,"msg":"the uplink is down"}\'; exit 1')
    answer = ask(node, "STATUS", multus(path, "1.1.0"))
    assert (answer.code, answer.msg) == (51, "moody is not ready to serve default: the uplink is down")
    node.plugin("moody", "exit 0")
    assert ask(node, "STATUS", multus(path, "1.1.0")) == (0, "", "")
    by_name = multus("default", "1.1.0", confDir=str(net_d))
    assert ask(node, "STATUS", by_name) == (0, "", "")


@pytest.mark.parametrize("network", ["nowhere", "/no/such/default.conflist"])
def test_status_without_a_default_network_is_not_available(node: Node, network: str) -> None:
    answer = ask(node, "STATUS", multus(network, "1.1.0"))
    assert answer.code == 50
    assert network in answer.msg


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_status_without_the_default_networks_plugin_is_not_available(node: Node, net_d: Path, version: str) -> None:
    path = listed(net_d, "default", {"type": "bridge"}, {"type": "not-installed"}, version=version)
    answer = ask(node, "STATUS", multus(path, "1.1.0"))
    assert answer.code == 50
    assert answer.msg.startswith(
        "the default network: not-installed is not ready to serve default: plugin not-installed is "
    )


def test_every_command_finds_the_same_plugin(node: Node, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    other = tmp_path / "bin"
    other.mkdir()
    answered = 'cat > /dev/null; [ $CNI_COMMAND = ADD ] && echo \'{"cniVersion":"1.1.0"}\' || true'
    node.plugin("twice", f"echo $CNI_COMMAND >> {calls}; {answered}")
    (other / "twice").write_text(f"#!/bin/sh\necho other >> {calls}; {answered}\n")
    (other / "twice").chmod(0o755)
    config = node.conf({"cniVersion": "1.1.0", "name": "default", "type": "twice"}, version="1.1.0")
    pod = node.pod("twice", config=config)
    path = {"CNI_PATH": str(other)}
    assert pod.add(**path).exit_code == 0
    assert ask(node, "STATUS", config, **path) == (0, "", "")
    valid = [{"containerID": pod.container_id, "ifname": "eth0"}]
    assert ask(node, "GC", {**config, "cni.dev/valid-attachments": valid}, **path) == (0, "", "")
    assert pod.delete(**path) == (0, "", "")
    assert calls.read_text().split() == ["ADD", "STATUS", "GC", "DEL"]


# --- the log of a site ------------------------------------------------------------------------------------------------


def logged_requests(path: Path) -> list[tuple[str, str]]:
    """Return event and command of each line."""
    lines = path.read_text().splitlines()
    return [(line.split("event=")[1].split()[0], line.split("command=")[1].split()[0]) for line in lines]


def test_requests_are_logged_to_the_file_of_their_configuration(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "log" / "multus.log"
    pod = node.pod("logged", config=node.conf(logFile=str(path), logLevel="verbose"))
    other = node.pod("elsewhere")
    assert pod.add().exit_code == 0
    assert other.add().exit_code == 0
    assert pod.delete().exit_code == 0
    assert logged_requests(path) == [("request_done", "ADD"), ("request_done", "DEL")]
    text = path.read_text()
    assert "pod=default/logged" in text
    assert f"sandbox={pod.container_id[:12]}" in text
    assert text.splitlines()[0] in node.log.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_log_level_selects_the_lines(node: Node, tmp_path: Path) -> None:
    paths = {level: tmp_path / level for level in ("panic", "error", "verbose")}
    for level, path in paths.items():
        pod = node.pod(level, "absent", node.conf(logFile=str(path), logLevel=level))
        assert pod.add().exit_code == 1
        assert pod.delete().exit_code == 0
    assert not paths["panic"].exists()
    assert logged_requests(paths["error"]) == [("request_failed", "ADD")]
    assert logged_requests(paths["verbose"]) == [("request_failed", "ADD"), ("request_done", "DEL")]
    assert "default/absent does not exist" in paths["error"].read_text()


def test_unwritable_log_file_fails_no_pod(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mark = length(node)
    pod = node.pod("logged", config=node.conf(logFile=str(tmp_path / "file" / "log")))
    assert pod.add().exit_code == 0
    assert pod.delete() == (0, "", "")
    assert len(log_since(node, mark, "log_file_unusable")) == 1
