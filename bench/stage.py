"""A node to measure on: ledger and worker as ``plumbline up`` runs them, pods, and the delegates executed bare."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from events.nats.server import EmbeddedServer
from nodeworker import shim

PLUGINS = "/usr/lib/cni"
BRIDGE, PARENT, PEER = "plbench-br", "plbench-parent", "plbench-peer"
NODE, POD = "bench-node", "bench"
NETWORKS = 8
"""Number of macvlan networks. A pod gets the default network and the first so many of them."""
_START_TIMEOUT = 20.0


class Stage:
    """One worker with its ledger. Use it as a context manager. *worker* are the interpreter's arguments."""

    def __init__(self, worker: Sequence[str] = ("-m", "nodeworker")) -> None:
        self._arguments = worker
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
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
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
        self.worker = subprocess.Popen([sys.executable, *self._arguments, "--config", str(self.settings)])
        until = time.monotonic() + _START_TIMEOUT
        while not self.socket.exists():
            if time.monotonic() > until:
                raise TimeoutError("the worker did not open its socket")
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        for pod in self._pods:
            subprocess.run(["ip", "netns", "del", pod], check=False, capture_output=True)
        self.stop_worker()
        self.server.stop()
        with IPRoute() as node:
            for link in (BRIDGE, PARENT):
                with contextlib.suppress(NetlinkError):
                    node.link("del", ifname=link)
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop_worker(self) -> None:
        """Stop the worker with SIGTERM, if it runs."""
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(30)

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

    def plumbline(self, command: str, pod: str, networks: int = 1) -> float:
        """Call the entry point as a runtime does, for a pod with that number of *networks*; return the seconds."""
        environment = _environment(command, pod, "eth0", networks) | self._extra()
        return self._call(shim.binary(), self.config, environment)

    def bare(self, command: str, pod: str, networks: int = 1) -> float:
        """Execute the same delegates one after another, without Plumbline; return the seconds."""
        steps = [(conf, "eth0" if i == 0 else f"net{i}") for i, conf in enumerate(self.delegates[: networks + 1])]
        return sum(
            self._call(Path(PLUGINS) / conf["type"], json.dumps(conf), _environment(command, pod, ifname, networks))
            for conf, ifname in (steps if command == "ADD" else reversed(steps))
        )

    def _call(self, binary: Path, config: str, environment: Mapping[str, str]) -> float:
        """Execute *binary* with little overhead; return the seconds until it has ended."""
        stdin, stdout = (self.folder / f"{name}-{threading.get_ident()}" for name in ("stdin", "stdout"))
        stdin.write_text(config)
        files = [
            (os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(stdout), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        start = time.perf_counter()
        pid = os.posix_spawn(binary, [binary], environment, file_actions=files)
        _, status = os.waitpid(pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"{binary.name} {environment['CNI_COMMAND']}: {stdout.read_text()}")
        return seconds

    def _extra(self) -> dict[str, str]:
        return {"PLUMBLINE_SOCKET": str(self.socket), "PLUMBLINE_SPOOL": str(self.folder / "state" / "spool")}

    def _make_parent(self) -> None:
        with IPRoute() as node:
            node.link("add", ifname=PARENT, kind="veth", peer=PEER)
            for link in (PARENT, PEER):
                node.link("set", ifname=link, state="up")

    def cluster_settings(self) -> dict[str, Any]:
        """Make the pod and its network known; return the settings that say where they are."""
        manifests = self.folder / "manifests"
        manifests.mkdir()
        (manifests / "all.json").write_text(json.dumps({"kind": "List", "items": self._objects()}))
        return {"manifests": str(manifests)}

    def _objects(self) -> list[dict[str, Any]]:
        nads = [
            {
                "apiVersion": "k8s.cni.cncf.io/v1",
                "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": conf["name"]},
                "spec": {"config": json.dumps(conf)},
            }
            for conf in self.delegates[1:]
        ]
        selected = [conf["name"] for conf in self.delegates[1:]]
        pods = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": _pod_name(count),
                    "annotations": {"k8s.v1.cni.cncf.io/networks": ",".join(selected[:count])},
                },
            }
            for count in range(1, NETWORKS + 1)
        ]
        return [*nads, *pods]


def _pod_name(networks: int) -> str:
    return POD if networks == 1 else f"{POD}-{networks}"


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
        *(
            {
                "cniVersion": "0.3.1",
                "name": "macvlan-conf" if number == 0 else f"macvlan-conf-{number}",
                "type": "macvlan",
                "master": PARENT,
                "mode": "bridge",
                "ipam": host_local(f"10.{90 + number}.0.0/16"),
            }
            for number in range(NETWORKS)
        ),
    ]


def _environment(command: str, pod: str, ifname: str, networks: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"{pod}-cid",
        "CNI_NETNS": f"/var/run/netns/{pod}",
        "CNI_IFNAME": ifname,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={_pod_name(networks)};"
        f"K8S_POD_INFRA_CONTAINER_ID={pod}-cid",
        "CNI_PATH": PLUGINS,
    }


@contextlib.contextmanager
def pods(stage: Stage, count: int) -> Iterator[list[str]]:
    """Yield *count* namespaces, and remove them."""
    names = stage.make_pods(count)
    try:
        yield names
    finally:
        stage.remove_pods(names)
