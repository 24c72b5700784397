"""A node to measure on: ledger and worker as ``plumbline up`` runs them, pods, and the delegates executed bare."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from events.server import EmbeddedServer
from nodeworker import shim

PLUGINS = "/usr/lib/cni"
BRIDGE, PARENT, PEER = "plbench-br", "plbench-parent", "plbench-peer"
NODE, POD = "bench-node", "bench"
_PATIENCE = 20.0


class Stage:
    """One worker with its ledger. Use as a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="plumbline-bench-"))
        self.server = EmbeddedServer(self.folder / "state" / "ledger", self.folder / "run")
        self.worker: subprocess.Popen[bytes] | None = None
        self.settings = self.folder / "plumbline.json"
        self.socket = self.folder / "run" / "worker.sock"
        self.delegates = _delegates(self.folder / "ipam")
        self.config = json.dumps(
            {"cniVersion": "1.0.0", "name": "bench", "type": "plumbline", "delegates": self.delegates[:1]}
        )
        self._pods: list[str] = []

    def __enter__(self) -> Stage:
        self._make_parent()
        settings = {
            "node": NODE,
            "stateDir": str(self.folder / "state"),
            "runDir": str(self.folder / "run"),
            "logLevel": "warning",
            **self.cluster_settings(),
        }
        self.settings.write_text(json.dumps(settings))
        self.server.start()
        self.worker = subprocess.Popen([sys.executable, "-m", "nodeworker", "--config", str(self.settings)])
        until = time.monotonic() + _PATIENCE
        while not self.socket.exists():
            if time.monotonic() > until:
                raise TimeoutError("the worker did not open its socket")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods:
            subprocess.run(["ip", "netns", "del", pod], check=False, capture_output=True)
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(30)
        self.server.stop()
        for link in (BRIDGE, PARENT):
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_pods(self, count: int) -> list[str]:
        """Return the names of *count* new namespaces."""
        pods = [f"plbench-{uuid.uuid4().hex[:8]}" for _ in range(count)]
        for pod in pods:
            subprocess.run(["ip", "netns", "add", pod], check=True)
        self._pods += pods
        return pods

    def remove_pods(self, pods: list[str]) -> None:
        """Remove namespaces."""
        for pod in pods:
            subprocess.run(["ip", "netns", "del", pod], check=True)
        self._pods = [pod for pod in self._pods if pod not in pods]

    def plumbline(self, command: str, pod: str) -> float:
        """Call the entry point as a runtime does; return the seconds."""
        return _call(shim.binary(), self.config, _environment(command, pod, "eth0"), self._extra())

    def bare(self, command: str, pod: str) -> float:
        """Execute the same delegates one after another, with nothing in between; return the seconds."""
        steps = [(conf, "eth0" if i == 0 else f"net{i}") for i, conf in enumerate(self.delegates)]
        return sum(
            _call(Path(PLUGINS) / conf["type"], json.dumps(conf), _environment(command, pod, ifname), {})
            for conf, ifname in (steps if command == "ADD" else reversed(steps))
        )

    def _extra(self) -> dict[str, str]:
        return {"PLUMBLINE_SOCKET": str(self.socket), "PLUMBLINE_SPOOL": str(self.folder / "state" / "spool")}

    def _make_parent(self) -> None:
        for argv in (
            ["ip", "link", "add", PARENT, "type", "veth", "peer", "name", PEER],
            ["ip", "link", "set", PARENT, "up"],
            ["ip", "link", "set", PEER, "up"],
        ):
            subprocess.run(argv, check=True)

    def cluster_settings(self) -> dict[str, Any]:
        """Make the pod and its network known; return the settings that say where they are."""
        manifests = self.folder / "manifests"
        manifests.mkdir()
        (manifests / "all.json").write_text(json.dumps({"kind": "List", "items": self._objects()}))
        return {"manifests": str(manifests)}

    def _objects(self) -> list[dict[str, Any]]:
        nad = {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "macvlan-conf"},
            "spec": {"config": json.dumps(self.delegates[1])},
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": POD, "annotations": {"k8s.v1.cni.cncf.io/networks": "macvlan-conf"}},
        }
        return [nad, pod]


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def _delegates(ipam: Path) -> list[dict[str, Any]]:
    def host_local(subnet: str) -> dict[str, Any]:
        return {"type": "host-local", "dataDir": str(ipam), "ranges": [[{"subnet": subnet}]]}

    return [
        {
            "cniVersion": "1.0.0",
            "name": "bench-default",
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipam": host_local("10.89.0.0/16"),
        },
        {
            "cniVersion": "0.3.1",
            "name": "macvlan-conf",
            "type": "macvlan",
            "master": PARENT,
            "mode": "bridge",
            "ipam": host_local("10.90.0.0/16"),
        },
    ]


def _environment(command: str, pod: str, ifname: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"{pod}-cid",
        "CNI_NETNS": f"/var/run/netns/{pod}",
        "CNI_IFNAME": ifname,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD};"
        f"K8S_POD_INFRA_CONTAINER_ID={pod}-cid",
        "CNI_PATH": PLUGINS,
    }


def _call(binary: Path, config: str, cni: Mapping[str, str], extra: Mapping[str, str]) -> float:
    env = {"PATH": os.environ["PATH"], **cni, **extra}
    start = time.perf_counter()
    done = subprocess.run([binary], input=config.encode(), capture_output=True, env=env, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{binary.name} {cni['CNI_COMMAND']}: {done.stdout.decode()} {done.stderr.decode()}")
    return seconds


@contextlib.contextmanager
def pods(stage: Stage, count: int) -> Iterator[list[str]]:
    """Yield *count* namespaces, and remove them."""
    names = stage.make_pods(count)
    try:
        yield names
    finally:
        stage.remove_pods(names)
