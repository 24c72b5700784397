"""The container runtime: it makes namespaces and executes the entry point, with an environment and standard input."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from events.fold import SandboxKey
from events.schema import ContainerId, IfName
from tests.support.node.kernel import Link, ip, links

PLUGINS = Path("/usr/lib/cni")
"""The folder of Debian's package containernetworking-plugins."""

_PATIENCE = 40.0


class Answer(NamedTuple):
    """The outcome of one execution of the entry point."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout)

    @property
    def code(self) -> int:
        """The CNI error code; 0 for success."""
        return self.json["code"] if self.exit_code else 0

    @property
    def msg(self) -> str:
        return self.json["msg"] if self.exit_code else ""

    def address(self) -> str:
        """The first address of a result, in any version of it, with its prefix length."""
        result = self.json
        return result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]


class Call:
    """The entry point, started as a runtime starts it."""

    def __init__(self, shim: Path, env: Mapping[str, str], stdin: bytes) -> None:
        self.process = subprocess.Popen(
            [str(shim)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env)
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(stdin)
            self.process.stdin.close()
        except BrokenPipeError:  # it may refuse a request without reading it
            pass
        self.process.stdin = None

    def running(self) -> bool:
        return self.process.poll() is None

    def answer(self) -> Answer:
        """Wait for the end; return the runtime's answer."""
        try:
            stdout, stderr = self.process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Answer(self.process.returncode, stdout.decode(), stderr.decode())

    def kill(self) -> None:
        """Kill the entry point, as runtimes do after a timeout."""
        self.process.kill()
        self.process.communicate()


class Runtime:
    """Executes one entry point."""

    def __init__(self, shim: Path, socket: Path, spool: Path) -> None:
        self._shim = shim
        self._calls: list[Call] = []
        self._env = {
            "PATH": os.environ["PATH"],
            "PLUMBLINE_SOCKET": str(socket),
            "PLUMBLINE_SPOOL": str(spool),
            "PLUMBLINE_DEADLINE": "30",
        }

    def call(self, command: str, env: Mapping[str, str], config: str | bytes | Mapping[str, Any]) -> Call:
        """Start the entry point and return."""
        if isinstance(config, Mapping):
            config = json.dumps(config)
        stdin = config.encode() if isinstance(config, str) else config
        self._calls = [call for call in self._calls if call.running()]
        call = Call(self._shim, {**self._env, "CNI_COMMAND": command, **env}, stdin)
        self._calls.append(call)
        return call

    def end(self) -> None:
        """Kill the calls that still run."""
        for call in self._calls:
            if call.running():
                call.kill()


class Sandbox:
    """A pod's namespace at the path *netns*."""

    def __init__(self, pod: str, container_id: str, netns: str) -> None:
        self.pod = pod
        self.container_id = container_id
        self.netns = netns

    @property
    def key(self) -> SandboxKey:
        return SandboxKey(ContainerId(self.container_id), IfName("eth0"))

    @property
    def has_namespace(self) -> bool:
        return os.path.exists(self.netns)

    def links(self) -> dict[str, Link]:
        return links(self.netns)


class PodSandbox(Sandbox):
    """A pod's namespace, and the runtime's calls for it."""

    def __init__(self, runtime: Runtime, pod: str, config: str | Mapping[str, Any], namespace: str = "default") -> None:
        container_id = os.urandom(32).hex()
        self.namespace = f"plumbline-e2e-{container_id[:12]}"
        super().__init__(pod, container_id, f"/run/netns/{self.namespace}")
        self.config = config
        self.env = {
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id}",
        }
        self._runtime = runtime
        ip("netns", "add", self.namespace)

    def call(self, command: str, /, without: str = "", **changes: str) -> Call:
        """Start *command* with *changes* to the environment and without the variable *without*."""
        env = {key: value for key, value in {**self.env, **changes}.items() if key != without}
        return self._runtime.call(command, env, self.config)

    def add(self, **changes: str) -> Answer:
        return self.call("ADD", **changes).answer()

    def delete(self, **changes: str) -> Answer:
        return self.call("DEL", **changes).answer()

    def check(self) -> Answer:
        return self.call("CHECK").answer()

    def end(self) -> None:
        """Remove the namespace and its interfaces."""
        if self.has_namespace:
            ip("netns", "del", self.namespace)
