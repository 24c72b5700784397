"""``plumbline verify`` against the real kernel: it succeeds until a change from outside, and then names the pod."""

from __future__ import annotations

import json
from typing import Any

from tests.support.node.kernel import ip
from tests.support.node.node import MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually


def verify(node: Node) -> tuple[int, dict[str, Any]]:
    done = plumbline(node.config, "verify", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def kinds(report: dict[str, Any]) -> set[str]:
    return {each["kind"] for each in report.get("differences", ())}


def test_verify_and_timeline_repeat_the_warnings_of_an_attach(make_node: MakeNode) -> None:
    node = make_node()
    node.start()
    routed = {**node.host_local("192.168.0.0/16"), "routes": [{"dst": "0.0.0.0/0"}]}
    node.nad("loud", node.macvlan(ipam=routed))
    pod = node.pod("samplepod", "loud", config=node.conf(node.bridge(isDefaultGateway=True)))
    with reconciler(node):
        assert pod.add().exit_code == 0
        eventually(lambda: verify(node)[0] == 0, "database, ledger, node and status agree", 60)
        (warning,) = verify(node)[1]["warnings"]
        assert warning.startswith("pod default/samplepod: network default/loud (net1) brought a default route of IPv4")
        assert f"; warning: {warning}" in " ".join(plumbline(node.config, "timeline", "samplepod").stdout.split())
        assert pod.delete().exit_code == 0
        assert verify(node)[1]["warnings"] == []


def test_verify_names_only_the_pods_that_changed(make_node: MakeNode) -> None:
    node = make_node()
    settings = json.loads(node.config.read_text())
    node.config.write_text(json.dumps({**settings, "drift": {"policy": "observe"}, "leaks": {"policy": "observe"}}))
    node.start()
    node.nad("macvlan-conf", node.macvlan())
    with reconciler(node):
        pod = node.pod("samplepod", "macvlan-conf", config=node.conf(node.bridge(mtu=1450)))
        assert pod.add().exit_code == 0
        status = node.manifests / "status" / "default" / "samplepod.json"
        eventually(status.exists, "the status is published")
        eventually(lambda: kinds(verify(node)[1]) == set(), "database, ledger, node and status agree", 60)
        _, report = verify(node)
        assert (report["nodes"], report["sandboxes"]) == (1, 1)
        ip("-n", pod.namespace, "link", "set", "eth0", "mtu", "1400")
        text = status.read_text()
        status.write_text("{}")
        eventually(lambda: kinds(verify(node)[1]) == {"drift", "status"}, "what was changed is found", 60)
        exit_code, report = verify(node)
        assert exit_code == 1
        drift = next(each for each in report["differences"] if each["kind"] == "drift")
        assert drift["pod"] == "default/samplepod"
        assert "interface eth0 of network default: mtu changed" in drift["message"]
        ip("-n", pod.namespace, "link", "set", "eth0", "mtu", "1450")
        status.write_text(text)
        eventually(lambda: kinds(verify(node)[1]) == set(), "all is as it was", 60)
        assert pod.delete().exit_code == 0
