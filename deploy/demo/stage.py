"""The demo's node: Plumbline, and a container runtime that executes its entry point.

Everything lies below the private ``/run`` and in the private network of ``isolation``, so there is nothing to clean up.
The one exception is the log of ``plumbline up``, which stays for the reader.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from output import expect, print_command, print_indented, run, run_silently, wait_for
from pyroute2 import IPRoute

from events.process import logs
from events.process.child_process import die_with_parent
from nodeworker import shim

_HERE = Path(__file__).parent
_COMMAND = Path(sys.executable).with_name("plumbline")
_FOLDER = Path("/run/plumbline-demo")
_BRIDGE, _PARENT, _PARENT_PEER = "pldemo-br", "pldemo-parent", "pldemo-peer"
_PEERCRED = struct.Struct("iII")


def _make_log() -> Path:
    """Create an empty log file outside the demo's private folders."""
    descriptor, path = tempfile.mkstemp(prefix="plumbline-demo-", suffix=".log")
    os.close(descriptor)
    return Path(path)


class Stage:
    """The node, as a context manager: no process of it runs afterwards."""

    manifests = _FOLDER / "manifests"
    plugins = _FOLDER / "plugins"
    """The demo's own plugin; the folder of CNI_PATH stays empty."""

    def __init__(self) -> None:
        self._no_plugins = _FOLDER / "no-plugins"
        self._ipam = _FOLDER / "ipam"
        self._config = _FOLDER / "plumbline.json"
        self._socket = _FOLDER / "run" / "worker.sock"
        self._entry_point = _FOLDER / "bin" / "plumbline"
        self._up: subprocess.Popen[bytes] | None = None
        self.log = _make_log()

    def __enter__(self) -> Self:
        """Create the folders, and the interface that macvlan needs as its parent."""
        for folder in (self._no_plugins, self._entry_point.parent):
            folder.mkdir(parents=True)
        shutil.copytree(_HERE / "manifests", self.manifests)
        shutil.copytree(_HERE / "plugins", self.plugins)
        shutil.copy2(shim.binary(), self._entry_point)
        settings = {
            "node": "demo-node",
            "stateDir": str(_FOLDER / "state"),
            "runDir": str(self._socket.parent),
            "manifests": str(self.manifests),
            "leaks": {"policy": "off"},  # only a container runtime can say that a pod is gone, and there is none here
        }
        self._config.write_text(json.dumps(settings, indent=2))
        with IPRoute() as node:
            node.link("add", ifname=_PARENT, kind="veth", peer=_PARENT_PEER)
            for link in ("lo", _PARENT, _PARENT_PEER):
                node.link("set", ifname=link, state="up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start ``plumbline up`` and return when the worker accepts requests."""
        argv = [str(_COMMAND), "--config", str(self._config), "up"]
        print_command(f"plumbline --config {self._config} up 2> {self.log} &")
        with self.log.open("ab") as log:
            self._up = subprocess.Popen(
                argv,
                stderr=log,
                env={**os.environ, logs.FORMAT_VARIABLE: logs.CONSOLE},
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # one thread
            )
        wait_for(self._socket)

    def stop(self) -> int:
        """Send SIGTERM to ``plumbline up``, if it runs; return its exit code."""
        if self._up is None:
            return 0
        self._up.terminate()
        exit_code = self._up.wait(30)
        self._up = None
        return exit_code

    def kill_worker(self) -> None:
        """Send SIGKILL to the process that listens on the worker's socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            pid, _, _ = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        print_command(f"kill -9 {pid}")
        os.kill(pid, signal.SIGKILL)

    def make_namespace(self, pod: str) -> None:
        """Make the pod's network namespace."""
        run_silently("ip", "netns", "add", f"pldemo-{pod}")
        run_silently("ip", "-n", f"pldemo-{pod}", "link", "set", "lo", "up")

    def attach(self, pod: str) -> None:
        """Make the pod's namespace and attach it."""
        self.make_namespace(pod)
        self.answer(self.execute("ADD", pod))

    def detach(self, pod: str) -> None:
        """Detach the pod and remove its namespace."""
        self.answer(self.execute("DEL", pod))
        run_silently("ip", "netns", "del", f"pldemo-{pod}")

    def execute(self, command: str, pod: str) -> subprocess.Popen[str]:
        """Execute the entry point as containerd does: parameters in the environment, configuration on stdin."""
        container = f"pldemo-{pod}-0123456789ab"
        env = {
            "PLUMBLINE_SOCKET": str(self._socket),
            "PLUMBLINE_SPOOL": str(_FOLDER / "state" / "spool"),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/var/run/netns/pldemo-{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._no_plugins),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={container}",
        }
        print_command(f"CNI_COMMAND={command} CNI_CONTAINERID={container} … plumbline < network.json")
        process = subprocess.Popen(
            [self._entry_point],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # one thread
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._network()))
        process.stdin.close()
        process.stdin = None
        return process

    def answer(self, process: subprocess.Popen[str]) -> None:
        """Print the answer of the entry point. Raises DemoFailedError when it reports an error."""
        stdout, _ = process.communicate(timeout=60)
        print_indented(json.dumps(json.loads(stdout)) if stdout else "(nothing, as the CNI specification says)")
        expect(process.returncode == 0, f"the entry point ended with exit code {process.returncode}")

    def _network(self) -> dict[str, Any]:
        """Return the configuration that an administrator writes to /etc/cni/net.d."""
        default = {
            "cniVersion": "1.0.0",
            "name": "demo-default",
            "type": "bridge",
            "bridge": _BRIDGE,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._ipam),
                "ranges": [[{"subnet": "10.88.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}],
            },
        }
        return {
            "cniVersion": "1.0.0",
            "name": "demo-network",
            "type": "plumbline",
            "binDir": str(self.plugins),
            "delegates": [default],
        }

    def within(self, pod: str, *argv: str) -> None:
        """Run a command in the pod's namespace and print it with its output."""
        run("ip", "netns", "exec", f"pldemo-{pod}", *argv)

    def address(self, pod: str, interface: str) -> str:
        """Return the IPv4 address of an interface in a pod."""
        links = json.loads(run_silently("ip", "-n", f"pldemo-{pod}", "-j", "-4", "addr", "show", interface))
        return str(links[0]["addr_info"][0]["local"])

    def link(self, pod: str, interface: str) -> tuple[str, str]:
        """Return MAC address and IPv4 address of an interface in a pod, empty where there is none."""
        for link in json.loads(run_silently("ip", "-n", f"pldemo-{pod}", "-j", "addr", "show")):
            addresses = [str(info["local"]) for info in link.get("addr_info", []) if info["family"] == "inet"]
            if link.get("ifname") == interface and addresses:
                return str(link["address"]), addresses[0]
        return "", ""

    def wait_for_link(self, pod: str, interface: str, expected: tuple[str, str]) -> None:
        """Return when the interface has its *expected* MAC and IPv4 address. Raises DemoFailedError after 10 s."""
        until = time.monotonic() + 10
        while self.link(pod, interface) != expected:
            expect(time.monotonic() < until, f"{interface} of {pod} did not come back as {expected}")
            time.sleep(0.05)

    def verify(self) -> None:
        """Compare database, ledger and node. Raises DemoFailedError where they differ."""
        self._run("verify")

    def status(self, pod: str) -> str:
        """Return the pod's network-status annotation once the reconciler has published it."""
        path = self.manifests / "status" / "default" / f"{pod}.json"
        wait_for(path)
        return json.loads(path.read_text())["annotations"]["k8s.v1.cni.cncf.io/network-status"]

    def timeline(self, pod: str) -> None:
        """Print what the ledger knows of a pod."""
        self._run("timeline", pod)

    def _run(self, *arguments: str) -> None:
        run(str(_COMMAND), "--config", str(self._config), *arguments, shown=" ".join(("plumbline", *arguments)))

    def prove_nothing_left(self) -> None:
        """Print what the pods left on the node. Raises DemoFailedError if they left anything."""
        addresses = [
            path for path in self._ipam.glob("*/*") if path.name != "lock" and not path.name.startswith("last_")
        ]
        print(f"\n   addresses taken in {self._ipam}: {len(addresses)}")
        ports = [
            link["ifname"] for link in json.loads(run_silently("ip", "-j", "link", "show", "master", _BRIDGE) or "[]")
        ]
        print(f"   ports of {_BRIDGE}: {len(ports)}")
        namespaces = os.listdir("/var/run/netns")
        print(f"   namespaces: {len(namespaces)}", flush=True)
        expect(not addresses, f"addresses are still taken: {addresses}")
        expect(not ports, f"the bridge still has ports: {ports}")
        expect(not namespaces, f"namespaces are left: {namespaces}")
