"""A node in a folder: nats-server, worker, plugins and manifests, with checks that nothing is left on it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import tests.support.node.runtime as e2e_runtime
from events.fold import Sandbox, SandboxPhase, State
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.process.child_process import die_with_parent
from events.schema import (
    AttachFailed,
    DetachFailed,
    Event,
    Failure,
    GcFailed,
    Stored,
    expand_effects,
)
from nodeworker.plugins.orphans import orphans
from tests.support.node.gate import Gate
from tests.support.node.kernel import ip, links, own_network
from tests.support.node.runtime import PodSandbox, Runtime
from tests.support.repository import REPOSITORY
from tests.support.run.fork_server import WORKER, ForkedProcess
from tests.support.waiting import eventually

BRIDGE = "plumb0"
PARENT = "uplink0"
"""The parent of macvlan interfaces."""

ADD_EVENTS = ("AttachRequested", "AttachPlanned", "InterfaceAttached", "InterfaceAttached", "AttachCompleted")
"""The events of an ADD with two interfaces; each interface has its own event."""
DEL_EVENTS = ("DetachRequested", "InterfaceDetached", "InterfaceDetached", "DetachCompleted")
ROLLBACK_EVENTS = (
    *ADD_EVENTS[:3],
    "InterfaceAttachFailed",
    "InterfaceDetached",
    "InterfaceDetached",
    "AttachFailed",
)
"""The events of an ADD whose second interface fails."""

_FAULTY_WORKER = Path(__file__).with_name("faulty_worker.py")
_KEPT_BY_HOST_LOCAL = re.compile(r"lock|last_reserved_ip\.\d+")
_MISTAKES = re.compile(r"Traceback|never retrieved|never awaited|level=(?:error|critical)")


def carried(types: tuple[str, ...]) -> tuple[str, ...]:
    """Return the *types* without the effects, as in the ledger of a native worker: outcomes carry effects."""
    return tuple(name for name in types if name not in {"InterfaceAttached", "InterfaceDetached"})


class Node:
    """A node. Enter it: inside, the node's own network is this process' network too.

    *worker* is the section of that name in the configuration file, *leaks* another. Without *leaks* the worker
    does not look for leaks, so that a test's ledger has only the test's own events.
    """

    def __init__(
        self,
        folder: Path,
        shim: Path,
        *,
        store: Path | None = None,
        leaks: Mapping[str, Any] | None = None,
        **worker: Any,
    ) -> None:
        self.name = f"e2e-{os.urandom(4).hex()}"
        self.bin = folder / "bin"
        self.manifests = folder / "manifests"
        self.addresses = folder / "addresses"
        self.spool = folder / "state" / "spool"
        self.socket = folder / "run" / "worker.sock"
        self.log = folder / "worker.log"
        self.config = folder / "plumbline.json"
        self.server = EmbeddedServer(store or folder / "state" / "ledger", folder / "run")
        self.runtime = Runtime(shim, self.socket, self.spool)
        self.sandboxes: list[PodSandbox] = []
        self.expected_mistakes = 0
        """How many lines of the worker's log report an expected error."""
        self._worker: ForkedProcess | subprocess.Popen[bytes] | None = None
        for made in (self.bin, self.manifests, self.addresses):
            made.mkdir(parents=True)
        self.log.touch()
        self.config.write_text(
            json.dumps(
                {
                    "node": self.name,
                    "stateDir": str(folder / "state"),
                    "runDir": str(folder / "run"),
                    "manifests": str(self.manifests),
                    "leaks": {"policy": "off"} if leaks is None else dict(leaks),
                    "worker": {"network": {"binDir": str(self.bin)}, **worker},
                }
            )
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[Node]:
        """Run the parts of the node for the duration of the context, and leave nothing of them."""
        with own_network():
            ip("link", "add", PARENT, "type", "veth", "peer", "name", "uplink1")
            # With an address: the plugin fails once on a bridge that lost its first port before it had an address.
            ip("link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge")
            for name in (PARENT, "uplink1", BRIDGE):
                ip("link", "set", name, "up")
            try:
                self.server.start()
                yield self
            finally:
                self.kill()
                self.server.stop()
                self.runtime.end()
                for pid in orphans(self.name):
                    os.kill(pid, signal.SIGKILL)
                self.forget()

    def forget(self) -> None:
        """Remove the sandboxes' namespaces."""
        for sandbox in self.sandboxes:
            sandbox.end()
        self.sandboxes.clear()

    # --- networks, pods and plugins ---

    def bridge(self, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
        """Return a default network: a bridge as gateway with addresses from host-local."""
        return {
            "cniVersion": version,
            "name": "default",
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipam": self.host_local("10.87.0.0/16"),
            **keys,
        }

    def macvlan(self, version: str = "0.3.1", **keys: Any) -> dict[str, Any]:
        """Return the configuration of the sample NetworkAttachmentDefinition."""
        return {
            "cniVersion": version,
            "type": "macvlan",
            "master": PARENT,
            "mode": "bridge",
            "ipam": self.host_local("192.168.0.0/16"),
            **keys,
        }

    def host_local(self, subnet: str, plugin: str = "host-local") -> dict[str, Any]:
        return {"type": plugin, "dataDir": str(self.addresses), "ranges": [[{"subnet": subnet}]]}

    def conf(self, *delegates: Mapping[str, Any], version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
        """Return the configuration that the runtime gives to the entry point."""
        networks = delegates or (self.bridge(),)
        return {"cniVersion": version, "name": "plumbline", "type": "plumbline", "delegates": networks, **keys}

    def nad(self, name: str, config: Mapping[str, Any] | str, resource: str = "") -> None:
        """Define or replace a network, whose devices are of *resource*."""
        text = config if isinstance(config, str) else json.dumps(config)
        annotations = {"k8s.v1.cni.cncf.io/resourceName": resource} if resource else {}
        body = {"spec": {"config": text}}
        self._manifest("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", name, annotations, body)

    def no_nad(self, name: str) -> None:
        """Remove a network's definition."""
        (self.manifests / f"networkattachmentdefinition-{name}.json").unlink()

    def pod(self, name: str, networks: Any = "", config: str | Mapping[str, Any] = "") -> PodSandbox:
        """Return a sandbox for a pod that selects *networks*; *config* is the runtime's configuration."""
        self.define(name, networks)
        sandbox = PodSandbox(self.runtime, name, config or self.conf())
        self.sandboxes.append(sandbox)
        return sandbox

    def define(self, name: str, networks: Any = "") -> None:
        """Define the pod *name*, which selects *networks*."""
        text = networks if isinstance(networks, str) else json.dumps(networks)
        self._manifest("v1", "Pod", name, {"k8s.v1.cni.cncf.io/networks": text} if text else {}, {})

    def samplepod(self, name: str = "samplepod") -> PodSandbox:
        """Return a sandbox for a pod with two interfaces."""
        self.nad("macvlan-conf", self.macvlan())
        return self.pod(name, "macvlan-conf")

    def plugin(self, name: str, script: str) -> None:
        """Install a plugin that is a shell script."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def gate(self, plugin: str, command: str = "ADD") -> Gate:
        """Install a plugin that waits in *command* and otherwise is *plugin*."""
        return Gate(self.bin, plugin, command)

    def _manifest(
        self, api: str, kind: str, name: str, annotations: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        manifest = {"apiVersion": api, "kind": kind, "metadata": {"name": name, "annotations": annotations}, **body}
        path = self.manifests / f"{kind.lower()}-{name}.json"
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(manifest))
        draft.rename(path)

    # --- the worker ---

    def start(self, fault: str = "", *, wait: bool = True, executed: bool = False) -> None:
        """Start the worker, and *wait* until it lets calls in. *fault* is one of its ledger: see ``faulty_worker``.

        The worker is forked from a process that has imported it, or *executed* as on a node.
        """
        assert self._worker is None
        program = [str(_FAULTY_WORKER), "--fault", fault] if fault else ["-m", "nodeworker"]
        program += ["--config", str(self.config)]
        with self.log.open("ab") as said:
            if executed:
                self._worker = subprocess.Popen(
                    [sys.executable, "-W", "error", *program],
                    cwd=REPOSITORY,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    preexec_fn=die_with_parent(),  # noqa: PLW1509  # pytest has no other thread
                )
            else:
                self._worker = WORKER.start(*program, stdout=said, stderr=said)
        if wait:
            eventually(self._lets_in, "the worker lets calls in")

    def _lets_in(self) -> bool:
        assert self._worker is not None
        assert self._worker.poll() is None, f"the worker ended: {self.log.read_text()}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def children(self) -> list[int]:
        """Return the process IDs of the worker's children."""
        assert self._worker is not None
        pid = self._worker.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def open_files(self) -> set[str]:
        """Return the paths of the files and folders that the worker has open."""
        assert self._worker is not None
        opened: set[str] = set()
        for each in Path(f"/proc/{self._worker.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed since
                opened.add(os.readlink(each))
        return opened

    def terminate(self) -> None:
        """Ask the worker to stop."""
        assert self._worker is not None
        self._worker.terminate()

    def pause(self) -> None:
        """Stop the worker where it is; its connections stay. ``kill`` ends it."""
        assert self._worker is not None
        os.kill(self._worker.pid, signal.SIGSTOP)

    def ended(self, seconds: float = 20.0) -> int:
        """Wait for the end of the worker; return its exit code. Of a killed one native processes may end later."""
        assert self._worker is not None
        worker, self._worker = self._worker, None
        try:
            return worker.wait(seconds)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            raise

    def kill(self) -> None:
        """Kill the worker, if it runs."""
        if self._worker is not None:
            self._worker.kill()
            self.ended()

    def restart(self) -> None:
        """Replace the running worker by a new one."""
        self.terminate()
        assert self.ended() == 0, self.log.read_text()
        self.start()

    # --- the ledger ---

    def events(self) -> list[Stored]:
        """Return all events of the ledger."""
        return asyncio.run(self._events())

    async def _events(self) -> list[Stored]:
        async with asyncio.timeout(10):
            ledger = await JetStreamLedger.connect(self.server.address, name="e2e")
        try:
            return [stored async for stored in ledger.read()]
        finally:
            await ledger.close()

    def state(self) -> State:
        """Return the fold of the ledger."""
        state = State()
        for stored in self.events():
            state.apply(stored)
        return state

    def events_of(self, sandbox: e2e_runtime.Sandbox | None) -> list[Event]:
        """Return the events of *sandbox*, or those without one, in order; carried effects come first."""
        return [each for event in self._recorded(sandbox) for each in expand_effects(event)]

    def event_types(self, sandbox: PodSandbox) -> tuple[str, ...]:
        """Return the types of ``events_of``."""
        return tuple(event.type for event in self.events_of(sandbox))

    def recorded(self, sandbox: PodSandbox) -> tuple[str, ...]:
        """Return the types of the events of *sandbox* in the ledger."""
        return tuple(event.type for event in self._recorded(sandbox))

    def _recorded(self, sandbox: e2e_runtime.Sandbox | None) -> list[Event]:
        container_id = sandbox.container_id if sandbox else ""
        return [stored.event for stored in self.events() if stored.event.sandbox == container_id]

    def failures(self, sandbox: PodSandbox | None = None) -> list[Failure]:
        """Return the failures of *sandbox*, or those without a valid sandbox, in order."""
        datas = [event.data for event in self.events_of(sandbox)]
        return [data.failure for data in datas if isinstance(data, AttachFailed | DetachFailed | GcFailed)]

    # --- checks ---

    def assert_attached(self, sandbox: e2e_runtime.Sandbox) -> None:
        """Assert that the namespace has exactly the interfaces of the results in the ledger."""
        recorded = self.state().sandboxes[sandbox.key]
        assert recorded.phase is SandboxPhase.ATTACHED
        seen = sandbox.links()
        assert set(seen) == {attachment.plan.ifname for attachment in recorded.attachments}
        for attachment in recorded.attachments:
            link, result = seen[attachment.plan.ifname], json.loads(attachment.result)
            assert addresses_of(result) == link.addresses
            macs = {i["mac"] for i in result.get("interfaces", ()) if i.get("sandbox")}
            assert macs in ({link.mac}, set())  # results of version 0.2.0 and older have none

    def assert_detached(self, *sandboxes: e2e_runtime.Sandbox) -> None:
        """Assert that only the namespaces of *sandboxes* are left, and the ledger has none of them attached."""
        for sandbox in sandboxes:
            assert not sandbox.has_namespace or not sandbox.links()
        held = self.state().sandboxes
        assert not [sandbox.pod for sandbox in sandboxes if sandbox.key in held]
        owners = "".join(path.read_text() for path in self.reserved())
        assert not [sandbox.pod for sandbox in sandboxes if sandbox.container_id in owners]

    def reserved(self) -> list[Path]:
        """Return host-local's files of addresses in use."""
        files = (path for path in self.addresses.glob("*/*"))
        return [path for path in files if not _KEPT_BY_HOST_LOCAL.fullmatch(path.name)]

    def settle(self) -> None:
        """Detach every attached sandbox, and wait until no request is open."""
        for sandbox in self.sandboxes:
            if sandbox.key in self.state().sandboxes:
                answer = sandbox.delete()
                assert not answer.exit_code, answer
        eventually(lambda: not self._unfinished(), f"all is closed; open: {self._unfinished()}")

    def _unfinished(self) -> list[str | Sandbox]:
        spooled = [path.name for path in self.spool.glob("*")]  # before the ledger: a request moves from here to there
        state = self.state()
        return [*spooled, *(pending.event.type for pending in state.pending.values()), *state.sandboxes.values()]

    def assert_nothing_left(self) -> None:
        """Assert that the node is as before its first pod, except for the bridge."""
        state = self.state()
        assert not state.pending
        assert not state.sandboxes
        assert not state.anomalies
        # The kernel removes the links of a namespace a little after the namespace.
        eventually(lambda: set(links()) == {PARENT, "uplink1", BRIDGE}, "no link is left")
        self.assert_detached(*self.sandboxes)
        assert not self.reserved()
        assert not orphans(self.name)
        for sandbox in self.sandboxes:
            sandbox.end()
            assert sandbox.namespace not in Path("/proc/self/mountinfo").read_text()
        mistakes = [line for line in self.log.read_text().splitlines() if _MISTAKES.search(line)]
        assert len(mistakes) == self.expected_mistakes, mistakes


MakeNode: TypeAlias = Callable[..., Node]
"""Makes a node without worker, with settings as ``Node`` takes them."""


def gated_pod(node: Node, command: str = "ADD", name: str = "gated") -> tuple[PodSandbox, Gate]:
    """Return a pod with two interfaces, and the gate before the address of the second."""
    gate = node.gate("host-local", command)
    node.nad("gated", node.macvlan(ipam=node.host_local("192.168.0.0/16", gate.type)))
    return node.pod(name, "gated"), gate


def addresses_of(result: Mapping[str, Any]) -> set[str]:
    """Return the addresses of a result of any version in the kernel's notation."""
    if families := [result[key] for key in ("ip4", "ip6") if key in result]:
        return {str(ipaddress.ip_interface(family["ip"])) for family in families}
    return {str(ipaddress.ip_interface(each["address"])) for each in result.get("ips", ())}


def prove_clean(node: Node) -> None:
    """Detach every sandbox and assert that nothing is left."""
    print(node.log.read_text())  # shown when a test fails
    try:
        node.settle()
        node.assert_nothing_left()
    finally:
        node.forget()
