"""``plumbline up`` beside a real API server: when the runtime has its answer, the pod says what it is attached to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.process.child_process import die_with_parent
from events.schema import StatusPublished, StatusPublishFailed
from tests.support.kube.server import ADMIN, PODS, WORKER, KubeServer
from tests.support.node.node import Node, prove_clean
from tests.support.node.runtime import PodSandbox
from tests.support.repository import REPOSITORY
from tests.support.waiting import eventually

NETWORKS = "k8s.v1.cni.cncf.io/networks"
STATUS = "k8s.v1.cni.cncf.io/network-status"
WAIT = 1.0
"""Seconds that the answer to an ADD waits at most."""

MAIN = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]


class Cluster:
    """A node in a cluster, with ``plumbline up`` on it."""

    def __init__(self, node: Node, kube: KubeServer) -> None:
        self.node = node
        self.kube = kube
        folder = node.config.parent
        settings = json.loads(node.config.read_text())
        del settings["manifests"]
        settings["worker"]["kubernetes"] = {"kubeconfig": str(kube.kubeconfig(folder / "worker.conf", token=WORKER))}
        settings["worker"]["statusWait"] = WAIT
        kubeconfig = str(kube.kubeconfig(folder / "reconciler.conf", token=ADMIN))
        settings["reconciler"] = {"kubernetes": {"kubeconfig": kubeconfig}}
        token = folder / "token"
        token.write_text(node.server.token)
        settings["ledger"] = {"url": node.server.url, "tokenFile": str(token)}
        node.config.write_text(json.dumps(settings))

    @contextlib.contextmanager
    def up(self) -> Iterator[int]:
        """Run ``plumbline up`` meanwhile; yield its process ID once an attach waits for its status."""
        command = [*MAIN, "--config", str(self.node.config), "up"]
        with self.node.log.open("ab") as said:
            up = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # pytest has no other thread
            )
        try:
            eventually(lambda: self.node.socket.exists() or up.poll() is not None, "the worker lets calls in")
            assert up.poll() is None
            eventually(self._publishes, "an attach is published before it is answered", 30.0)
            yield up.pid
        finally:
            up.terminate()
            try:
                assert up.wait(30) == 0
            finally:
                up.kill()
                up.wait()

    def _publishes(self) -> bool:
        """Try whether the worker knows of the reconciler."""
        name = f"probe-{os.urandom(4).hex()}"
        self.pod(name, "")
        sandbox = self.sandbox(name)
        assert sandbox.add().exit_code == 0
        known = self.status(name) is not None
        assert sandbox.delete().exit_code == 0
        return known

    def pod(self, name: str, networks: str = "macvlan-conf", namespace: str = "default") -> str:
        """Create a pod, and return its UID."""
        return self.kube.create_pod(namespace, name, self.node.name, {NETWORKS: networks} if networks else {})

    def sandbox(self, name: str, namespace: str = "default") -> PodSandbox:
        sandbox = PodSandbox(self.node.runtime, name, self.node.conf(), namespace)
        self.node.sandboxes.append(sandbox)
        return sandbox

    def status(self, name: str, namespace: str = "default") -> list[dict[str, Any]] | None:
        pod = self.kube.ask("GET", f"{PODS.format(namespace)}/{name}")
        text = pod["metadata"].get("annotations", {}).get(STATUS)
        return None if text is None else json.loads(text)

    def said(self, sandbox: PodSandbox) -> list[str]:
        """Return what the reconciler has written of *sandbox*."""
        kinds = StatusPublished | StatusPublishFailed
        return [event.type for event in self.node.events_of(sandbox) if isinstance(event.data, kinds)]


@pytest.fixture(scope="module")
def module_cluster(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster behind ``cluster``: a node without processes, and an API server in its network."""
    with Node(tmp_path_factory.mktemp("n"), shim).entered() as node:
        kube = KubeServer()
        try:
            kube.start()
            kube.create_nad("default", "macvlan-conf", json.dumps(node.macvlan()))
            yield Cluster(node, kube)
        finally:
            kube.stop()


@pytest.fixture
def cluster(module_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster of the module; afterwards nothing is attached, and no process of the node runs."""
    cluster = module_cluster
    cluster.node.log.write_bytes(b"")
    try:
        yield cluster
        cluster.node.start()  # for what a test has left attached
        prove_clean(cluster.node)
    finally:
        cluster.node.kill()
        cluster.kube.delete_pod("default", "samplepod")


def reconciler_of(up: int) -> int:
    """Return the process ID of the reconciler that the process *up* runs."""
    children = Path(f"/proc/{up}/task/{up}/children").read_text().split()
    (found,) = [pid for pid in children if b"\0reconciler\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(found)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let the process *pid* hang meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_status_is_published_before_the_answer(cluster: Cluster) -> None:
    uid = cluster.pod("samplepod")
    with cluster.up():
        sandbox = cluster.sandbox("samplepod")
        answer = sandbox.add()
        found = cluster.status("samplepod")
        assert answer.exit_code == 0
        assert found is not None
        links = sandbox.links()
        assert [element["name"] for element in found] == ["default", "default/macvlan-conf"]
        assert [element.get("default", False) for element in found] == [True, False]
        for element in found:
            link = links[element["interface"]]
            assert element["mac"] == link.mac
            assert {address.partition("/")[0] for address in link.addresses} == set(element["ips"])
        (event,) = [e.data for e in cluster.node.events_of(sandbox) if isinstance(e.data, StatusPublished)]
        assert event.pod.uid == uid
        assert cluster.kube.etcd.writes("pods", "default", "samplepod") == 2

        cluster.pod("coredns", "", "kube-system")
        system = cluster.sandbox("coredns", "kube-system")
        assert system.add().exit_code == 0
        assert cluster.status("coredns", "kube-system") is None

        assert sandbox.delete().exit_code == 0
        assert cluster.status("samplepod") == found  # it goes with the pod
        shown = subprocess.run(
            [*MAIN, "--config", cluster.node.config, "timeline", "samplepod"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "network-status of default/samplepod published" in shown


def test_hung_reconciler_delays_an_attach_by_status_wait(cluster: Cluster) -> None:
    cluster.pod("samplepod")
    with cluster.up() as up:
        sandbox = cluster.sandbox("samplepod")
        with stopped(reconciler_of(up)):
            begun = time.monotonic()
            assert sandbox.add().exit_code == 0
            assert WAIT <= time.monotonic() - begun < 10 * WAIT
            assert cluster.status("samplepod") is None
        eventually(lambda: cluster.status("samplepod"), "the status is published")
        eventually(lambda: cluster.said(sandbox), "and it is said")
        assert cluster.said(sandbox) == ["StatusPublished"]
        assert cluster.kube.etcd.writes("pods", "default", "samplepod") == 2


def test_stopped_api_server_delays_nothing_and_gets_status_later(cluster: Cluster) -> None:
    cluster.pod("samplepod")
    with cluster.up():
        cluster.kube.kill_api()
        sandbox = cluster.sandbox("samplepod")
        begun = time.monotonic()
        assert sandbox.add().exit_code == 0
        assert time.monotonic() - begun < WAIT
        cluster.kube.start_api()
        cluster.kube.await_api()
        eventually(lambda: cluster.status("samplepod"), "the status is published", 60.0)
        eventually(lambda: "StatusPublished" in cluster.said(sandbox), "and it is said")
        assert cluster.said(sandbox) == ["StatusPublishFailed", "StatusPublished"]
        assert cluster.kube.etcd.writes("pods", "default", "samplepod") == 2


def test_without_reconciler_no_attach_waits_and_a_later_one_publishes(cluster: Cluster) -> None:
    cluster.pod("samplepod")
    cluster.node.start()
    sandbox = cluster.sandbox("samplepod")
    begun = time.monotonic()
    assert sandbox.add().exit_code == 0
    assert time.monotonic() - begun < WAIT
    cluster.node.terminate()
    assert cluster.node.ended() == 0
    with cluster.up():
        eventually(lambda: cluster.status("samplepod"), "the status is published")
        assert cluster.kube.etcd.writes("pods", "default", "samplepod") == 2
