"""What a runtime reads on a node while ``plumbline install`` and ``plumbline uninstall`` change it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from events.process.child_process import die_with_parent
from tests.support.node.node import MakeNode, Node
from tests.support.node.runtime import PLUGINS, PodSandbox, Runtime
from tests.support.repository import REPOSITORY
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually

REPLACE = """
import itertools, sys
from nodeworker.host.install.__main__ import main
folders, builds = sys.argv[1:5], sys.argv[5:]
for build in itertools.cycle(builds):
    assert main(["install", "--binary-only", "--entry-point", build, *folders]) == 0
"""
ROUNDS = 5
PODS = 4


class Installation:
    """The runtime's folders, and a runtime that uses them."""

    def __init__(self, node: Node, shim: Path) -> None:
        self._node = node
        self.shim = shim
        self.bin, self.conf = (node.config.with_name(name) for name in ("cni-bin", "net.d"))
        self.bin.mkdir()
        self.conf.mkdir()
        for plugin in ("bridge", "host-local", "macvlan"):
            (self.bin / plugin).symlink_to(PLUGINS / plugin)
        self.binary = self.bin / "plumbline"
        self.folders = ["--cni-bin-dir", str(self.bin), "--cni-conf-dir", str(self.conf)]
        node.runtime = Runtime(self.binary, node.socket, node.spool)

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return plumbline(self._node.config, command, *self.folders, *options)

    def write(self, name: str, config: dict[str, Any]) -> None:
        (self.conf / name).write_text(json.dumps(config))

    def names(self) -> set[str]:
        return {path.name for path in self.conf.iterdir()}

    def effective(self) -> dict[str, Any]:
        """Return the input of the first plugin of the first configuration, as a runtime passes it."""
        first = min(path for path in self.conf.iterdir() if path.suffix in {".conf", ".conflist", ".json"})
        config = json.loads(first.read_text())
        head = {key: config[key] for key in ("name", "cniVersion")}
        return {**config["plugins"][0], **head} if "plugins" in config else config

    def pod(self, name: str, networks: str = "") -> PodSandbox:
        return self._node.pod(name, networks, self.effective())

    def build(self) -> tuple[int, int]:
        """Return what tells the installed binary apart from those before and after it."""
        status = self.binary.stat()
        return status.st_ino, status.st_ctime_ns

    @contextlib.contextmanager
    def replaced(self, *builds: Path) -> Iterator[None]:
        """Replace the binary by the next of *builds*, again and again, during the block."""
        argv = [sys.executable, "-c", REPLACE, *self.folders, *map(str, builds)]
        replacing = subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # pytest has no other thread
        )
        try:
            yield
            assert replacing.poll() is None
        finally:
            replacing.kill()
            replacing.wait()


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    node = make_node()
    node.nad("macvlan-conf", node.macvlan())
    node.start()
    return node


@pytest.fixture
def installation(node: Node, shim: Path) -> Installation:
    return Installation(node, shim)


def test_no_request_is_lost_while_binary_and_worker_are_replaced(
    node: Node, installation: Installation, tmp_path: Path
) -> None:
    other = tmp_path / "other-build"
    other.write_bytes(installation.shim.read_bytes() + b"\0")
    installation.write("10-default.conf", node.bridge())
    done = installation.run("install", "--entry-point", str(installation.shim))
    assert done.returncode == 0, done.stderr
    builds: set[tuple[int, int]] = set()
    with installation.replaced(other, installation.shim):
        for number in range(ROUNDS):
            pods = [installation.pod(f"pod-{number}-{index}", "macvlan-conf") for index in range(PODS)]
            for command in ("ADD", "DEL"):
                builds.update(eventually(lambda: {installation.build()} - builds, "the binary is replaced"))
                calls = [pod.call(command) for pod in pods[: PODS // 2]]
                node.terminate()
                calls += [pod.call(command) for pod in pods[PODS // 2 :]]
                assert node.ended() == 0
                node.start()
                answers = [call.answer() for call in calls]
                assert [(a.exit_code, a.stderr) for a in answers] == [(0, "")] * PODS, answers
                if command == "ADD":
                    for pod in pods:
                        node.assert_attached(pod)
            node.settle()
            node.assert_detached(*pods)
            node.forget()
    assert len(builds) > ROUNDS, "the binary was replaced all the time"
    assert installation.run("install").returncode == 0
    assert {path.name for path in installation.bin.iterdir()} == {"plumbline", "bridge", "host-local", "macvlan"}


def test_uninstall_names_remaining_pods(node: Node, installation: Installation) -> None:
    installation.write("10-default.conf", node.bridge())
    assert installation.run("install").returncode == 0
    plain, two = installation.pod("plain"), installation.pod("two-networks", "macvlan-conf")
    for pod in (plain, two):
        assert pod.add().exit_code == 0

    done = installation.run("uninstall")
    assert done.returncode == 1
    assert "default/two-networks" in done.stderr
    assert "default/plain" not in done.stderr
    assert installation.names() == {"00-plumbline.conflist", "10-default.conf"}

    assert two.delete().exit_code == 0
    done = installation.run("uninstall")
    assert done.returncode == 3
    assert "default/plain" in done.stderr
    assert installation.names() == {"10-default.conf"}
    assert installation.effective() == node.bridge()

    assert plain.delete().exit_code == 0, "the runtime may still use its cached configuration"
    node.assert_detached(plain, two)
    assert installation.run("uninstall").returncode == 0
    assert not installation.binary.exists()


def test_multus_is_replaced_and_restored(node: Node, installation: Installation) -> None:
    multus = {"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "kubeconfig": "/nowhere"}
    installation.write("00-multus.conf", {**multus, "delegates": [node.bridge("0.3.1")]})
    installation.write("10-default.conf", node.bridge("0.3.1"))
    assert installation.run("install").returncode == 1
    assert installation.effective()["type"] == "multus"

    assert installation.run("install", "--replace-multus").returncode == 0
    assert installation.effective() == {**multus, "type": "plumbline", "delegates": [node.bridge("0.3.1")]}
    pod = installation.pod("samplepod", "macvlan-conf")
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    assert pod.delete().exit_code == 0
    pod.end()

    assert installation.run("uninstall").returncode == 0
    assert installation.names() == {"00-multus.conf", "10-default.conf"}
    assert installation.effective()["type"] == "multus"


def test_default_network_without_plugin_is_not_installed(node: Node, installation: Installation) -> None:
    installation.write("10-default.conf", {**node.bridge(), "type": "calico"})
    done = installation.run("install", "--wait", "0")
    assert done.returncode == 1
    assert "calico" in done.stderr
    assert installation.names() == {"10-default.conf"}


def test_probes_distinguish_not_ready_from_absent(node: Node, installation: Installation) -> None:
    base = REPOSITORY / "deploy" / "kubernetes" / "base"
    manifest = yaml.safe_load((base / "daemonset.yaml").read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    (installation.bin / "loopback").symlink_to(PLUGINS / "loopback")
    assert installation.run("install", "--binary-only").returncode == 0

    def passes(probe: str) -> bool:
        command = container[probe]["exec"]["command"]
        here = [
            part.replace("/opt/cni/bin", str(installation.bin)).replace("/etc/plumbline", str(base)) for part in command
        ]
        environment = {"PATH": os.environ["PATH"], "PLUMBLINE_SOCKET": str(node.socket)}
        return subprocess.run(here, env=environment, capture_output=True, check=False).returncode == 0

    assert passes("readinessProbe")
    assert passes("livenessProbe")
    node.server.stop()
    eventually(lambda: not passes("readinessProbe"), "the worker has noticed that its ledger is gone")
    assert passes("livenessProbe")
    node.server.start()
    eventually(lambda: passes("readinessProbe"), "the worker has its ledger again")
    node.terminate()
    assert node.ended() == 0
    assert not passes("readinessProbe")
    assert not passes("livenessProbe")
