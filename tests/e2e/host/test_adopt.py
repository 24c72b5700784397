"""Pods that Multus attached, on a node that continues with Plumbline."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from events.exit_codes import ExitCode
from events.process.child_process import die_with_parent
from events.schema import SandboxAdopted
from tests.support.host.multus_state import MultusNode, Network, Sandbox
from tests.support.node.kernel import ip
from tests.support.node.node import DEL_EVENTS, MakeNode, Node
from tests.support.node.runtime import PodSandbox
from tests.support.repository import REPOSITORY
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually

MAIN = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]


class Adopted:
    """A node with Multus, which Plumbline takes over."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.multus = MultusNode(node.config.parent)
        section = {"cniDir": str(self.multus.cni_dir), "cacheDirs": [str(self.multus.cache_dir)]}
        node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "adopt": section}))

    def pod(self, name: str) -> tuple[PodSandbox, Sandbox]:
        """Return a pod with two interfaces, attached as by Multus."""
        pod = self.node.pod(name)
        default = self.node.bridge()
        chain = {"cniVersion": default.pop("cniVersion"), "name": default.pop("name")}
        tuning = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}}
        macvlan = {**self.node.macvlan("1.0.0"), "name": "macvlan-conf"}
        networks = (
            Network(config={**chain, "plugins": [default, tuning]}),
            Network(name="default/macvlan-conf", config=macvlan),
        )
        sandbox = Sandbox(container_id=pod.container_id, pod=name, networks=networks, netns=pod.netns)
        return pod, self.multus.attach(sandbox)

    def command(self, *arguments: str) -> list[str]:
        return [*MAIN, "--config", str(self.node.config), *arguments]

    def run(self, *options: str, command: str = "adopt") -> subprocess.CompletedProcess[str]:
        done = plumbline(self.node.config, command, *options)
        print(done.stdout, done.stderr)
        return done


@pytest.fixture
def adopted(make_node: MakeNode) -> Adopted:
    return Adopted(make_node())


def assert_check_and_delete(node: Node, pods: Sequence[PodSandbox]) -> None:
    """Run CHECK and DEL of *pods* through the entry point; nothing is left."""
    for pod in pods:
        node.assert_attached(pod)
        assert pod.check() == (0, "", "")
    for pod in pods:
        assert pod.delete() == (0, "", "")
        assert node.event_types(pod) == ("SandboxAdopted", *DEL_EVENTS)
    node.assert_detached(*pods)
    assert not node.reserved()


def test_adopted_pods_pass_check_and_del(adopted: Adopted) -> None:
    pods = [adopted.pod(name)[0] for name in ("left", "right")]
    assert all(set(pod.links()) == {"eth0", "net1"} for pod in pods)
    assert len(adopted.node.reserved()) == 4
    done = adopted.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 sandboxes adopted, 0 not; 0 in the ledger already" in done.stdout
    adopted.node.start()
    assert_check_and_delete(adopted.node, pods)
    adopted.node.terminate()
    assert adopted.node.ended() == 0
    assert "0 sandboxes adopted, 0 not; 2 in the ledger already" in adopted.run().stdout


def test_check_finds_drift_of_an_adopted_pod(adopted: Adopted) -> None:
    pod, _ = adopted.pod("damaged")
    assert adopted.run().returncode == 0
    adopted.node.start()
    ip("-n", pod.namespace, "link", "del", "net1")
    answer = pod.check()
    assert "interface net1 of network default/macvlan-conf is missing" in answer.msg
    assert pod.delete() == (0, "", "")
    adopted.node.assert_detached(pod)


def test_removed_pod_frees_its_addresses_on_del(adopted: Adopted) -> None:
    pod, _ = adopted.pod("rebooted")
    pod.end()
    assert len(adopted.node.reserved()) == 2
    assert adopted.run().returncode == 0
    adopted.node.start()
    assert pod.delete(CNI_NETNS="") == (0, "", "")
    assert not adopted.node.reserved()


def test_spooled_del_is_done_after_the_adoption(adopted: Adopted) -> None:
    pod, _ = adopted.pod("spooled")
    call = pod.call("DEL", PLUMBLINE_DEADLINE="1")
    assert call.answer() == (0, "", "")
    assert adopted.run().returncode == 0
    adopted.node.start()
    eventually(lambda: adopted.node.event_types(pod)[-1] == "DetachCompleted", "the spooled DEL is done")
    adopted.node.assert_detached(pod)
    assert not adopted.node.reserved()


def test_running_worker_refuses_an_adoption_but_not_a_dry_run(adopted: Adopted) -> None:
    pod, sandbox = adopted.pod("busy")
    adopted.node.start()
    done = adopted.run()
    assert done.returncode == ExitCode.BUSY
    assert "another worker has locked" in done.stderr
    assert adopted.node.event_types(pod) == ()
    done = adopted.run("--dry-run")
    assert (done.returncode, "1 sandbox would be adopted" in done.stdout) == (0, True)
    assert adopted.node.event_types(pod) == ()
    adopted.node.terminate()
    assert adopted.node.ended() == 0
    assert adopted.run().returncode == 0
    adopted.node.start()
    assert sandbox.netns == pod.netns
    assert_check_and_delete(adopted.node, [pod])


def test_dry_run_reports_and_writes_nothing(adopted: Adopted) -> None:
    pod, sandbox = adopted.pod("shown")
    first, second = (result["ips"][0] for result in (network.result for network in sandbox.networks))
    words = (
        f"adopted from multus of default/shown: "
        f"eth0 on default (bridge+tuning, default): {first['address']} via {first['gateway']}; "
        f"net1 on default/macvlan-conf (macvlan): {second['address']} via {second['gateway']}"
    )
    done = adopted.run("--dry-run")
    assert f"{pod.container_id[:12]}  {words}" in done.stdout
    assert adopted.run("--dry-run").stdout == done.stdout
    machine: dict[str, Any] = json.loads(adopted.run("--dry-run", "--output", "json").stdout)
    assert (machine["dryRun"], machine["known"], machine["refused"]) == (True, 0, [])
    assert [each["sandbox"] for each in machine["adopted"]] == [pod.container_id]
    assert adopted.node.events() == []
    assert adopted.run().returncode == 0
    assert words in adopted.run(command="timeline").stdout
    adopted.node.start()


def test_refused_sandbox_has_a_reason_and_exit_code_1(adopted: Adopted) -> None:
    good, _ = adopted.pod("good")
    bad, sandbox = adopted.pod("bad")
    adopted.multus.scratch(sandbox).write_text('[{"Name"')
    whole = adopted.multus.entry(sandbox, 1).read_text()
    adopted.multus.entry(sandbox, 1).write_text(whole[:100])
    done = adopted.run()
    assert done.returncode == ExitCode.IN_PART
    assert f"sandbox {bad.container_id[:12]} of pod default/bad can't be adopted: " in done.stdout
    assert str(adopted.multus.scratch(sandbox)) in done.stdout
    assert "1 sandbox adopted, 1 not" in done.stdout
    assert adopted.node.event_types(bad) == ()
    adopted.multus.entry(sandbox, 1).write_text(whole)
    assert adopted.run().returncode == 0
    adopted.node.start()
    assert_check_and_delete(adopted.node, [good, bad])


def test_adoption_starts_a_ledger_if_none_runs(adopted: Adopted) -> None:
    pod, _ = adopted.pod("early")
    adopted.node.server.stop()
    done = adopted.run()
    assert (done.returncode, "1 sandbox adopted" in done.stdout) == (0, True)
    adopted.node.server.start()
    assert [type(event.data) for event in adopted.node.events_of(pod)] == [SandboxAdopted]
    adopted.node.start()
    assert_check_and_delete(adopted.node, [pod])


def test_up_adopts_pods_before_serving(adopted: Adopted) -> None:
    pod, _ = adopted.pod("upped")
    adopted.node.server.stop()
    with adopted.node.log.open("ab") as said:
        up = subprocess.Popen(
            adopted.command("up", "--adopt"),
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=said,
            stderr=said,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # pytest has no other thread
        )
    try:
        eventually(lambda: _serves(adopted.node.socket), "the worker lets calls in")
        assert pod.check() == (0, "", "")
        assert pod.delete() == (0, "", "")
    finally:
        up.terminate()
        assert up.wait(30) == 0
    adopted.node.server.start()
    assert adopted.node.event_types(pod) == ("SandboxAdopted", *DEL_EVENTS)


def _serves(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
