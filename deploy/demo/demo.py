"""Play the life of three pods for real, and say at each step what happens and why.

Everything is real but the cluster: namespaces, interfaces, plugins, ledger. Pods and networks come from a folder of
manifests. What is made is removed at the end, also when the demo is interrupted; what an earlier one left is removed at
the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

HERE = Path(__file__).parent
PYTHON = Path(sys.executable)
PLUGINS = Path("/usr/lib/cni")
BRIDGE, PARENT, PARENT_PEER = "pldemo-br", "pldemo-parent", "pldemo-peer"
IPAM_FOLDER = Path("/run/plumbline-demo/ipam")
STATE_PREFIX = "plumbline-demo-"
PATIENCE = 20.0


class DemoFailedError(Exception):
    """Something did not turn out as the demo says."""


def say(title: str, text: str) -> None:
    """Print a heading, and what a newcomer needs to know."""
    lines = textwrap.wrap(" ".join(text.split()), 110)
    print(f"\n\033[1m── {title}\033[0m", *lines, sep="\n   ", flush=True)


def show(*argv: str, check: bool = True, **env: str) -> str:
    """Print a command and what it prints; return that."""
    print(f"\n   $ {' '.join(argv)}", flush=True)
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    print(*(f"   {line}" for line in (done.stdout + done.stderr).splitlines()), sep="\n", flush=True)
    if check and done.returncode:
        raise DemoFailedError(f"{' '.join(argv)} ended with exit code {done.returncode}")
    return done.stdout


def quiet(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the stage setting; its failure is no matter."""
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def expect(truth: object, otherwise: str) -> None:
    """Raise DemoFailedError unless *truth*."""
    if not truth:
        raise DemoFailedError(otherwise)


def wait_for(path: Path) -> None:
    """Return when *path* is there."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        expect(time.monotonic() < until, f"{path} did not appear within {PATIENCE:.0f} s")
        time.sleep(0.02)


class Demo:
    """The stage: a state folder, a configuration, and ``plumbline up``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = folder / "manifests"
        self.plugins = folder / "plugins"
        self.config = folder / "plumbline.json"
        self.socket = folder / "run" / "worker.sock"
        self.entry_point = folder / "bin" / "plumbline"
        self._up: subprocess.Popen[bytes] | None = None

    def set_up(self) -> None:
        """Lay out the folder, and make the interface that macvlan needs as its parent."""
        shutil.copytree(HERE / "manifests", self.manifests)
        shutil.copytree(HERE / "plugins", self.plugins)
        self.entry_point.parent.mkdir()
        from nodeworker import shim  # noqa: PLC0415  # the demo has more to say when the package is not installed

        shutil.copy2(shim.binary(), self.entry_point)
        settings = {
            "node": "demo-node",
            "stateDir": str(self.folder / "state"),
            "runDir": str(self.folder / "run"),
            "manifests": str(self.manifests),
        }
        self.config.write_text(json.dumps(settings, indent=2))
        for name in self.manifests.glob("networks.yaml"):
            text = name.read_text().replace(
                '"type": "host-local",', f'"type": "host-local", "dataDir": "{IPAM_FOLDER}",'
            )
            name.write_text(text)
        quiet("ip", "link", "add", PARENT, "type", "veth", "peer", "name", PARENT_PEER)
        quiet("ip", "link", "set", PARENT, "up")
        quiet("ip", "link", "set", PARENT_PEER, "up")

    def start(self) -> None:
        """Run ``plumbline up`` and return when pods can be attached."""
        argv = [str(PYTHON.with_name("plumbline")), "--config", str(self.config), "up"]
        print(f"\n   $ {' '.join(argv)} &", flush=True)
        self._up = subprocess.Popen(argv)
        wait_for(self.socket)

    def stop(self) -> int:
        """Send SIGTERM to ``plumbline up``; return its exit code."""
        if self._up is None:
            return 0
        self._up.terminate()
        exit_code = self._up.wait(30)
        self._up = None
        return exit_code

    def worker_pid(self) -> int:
        """Return the process ID of the running worker."""
        assert self._up is not None
        found = quiet("pgrep", "-P", str(self._up.pid), "-f", "nodeworker").stdout.split()
        return int(found[0])

    def cni(self, command: str, pod: str) -> subprocess.Popen[str]:
        """Execute the entry point as containerd does: parameters in the environment, configuration on stdin."""
        network = {
            "cniVersion": "1.0.0",
            "name": "demo-network",
            "type": "plumbline",
            "binDir": str(self.plugins),
            "delegates": [
                {
                    "cniVersion": "1.0.0",
                    "name": "demo-default",
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(IPAM_FOLDER),
                        "ranges": [[{"subnet": "10.88.0.0/24"}]],
                        "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}],
                    },
                }
            ],
        }
        container = f"pldemo-{pod}-0123456789ab"
        env = {
            "PLUMBLINE_SOCKET": str(self.socket),
            "PLUMBLINE_SPOOL": str(self.folder / "state" / "spool"),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/var/run/netns/pldemo-{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={container}",
        }
        print(
            f"\n   $ CNI_COMMAND={command} CNI_CONTAINERID={container} … {self.entry_point} < network.json", flush=True
        )
        process = subprocess.Popen(
            [self.entry_point], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(network))
        process.stdin.close()
        process.stdin = None
        return process

    def attach(self, pod: str) -> None:
        """Make the pod's namespace and attach it."""
        quiet("ip", "netns", "add", f"pldemo-{pod}")
        quiet("ip", "-n", f"pldemo-{pod}", "link", "set", "lo", "up")
        self.answer(self.cni("ADD", pod))

    def detach(self, pod: str) -> None:
        """Detach the pod and remove its namespace."""
        self.answer(self.cni("DEL", pod))
        quiet("ip", "netns", "del", f"pldemo-{pod}")

    def answer(self, process: subprocess.Popen[str]) -> None:
        """Print what the entry point answers, in short."""
        stdout, _ = process.communicate(timeout=60)
        print(*(f"   {line}" for line in stdout.splitlines()), sep="\n", flush=True)
        expect(process.returncode == 0, f"the entry point ended with exit code {process.returncode}")

    def status(self, pod: str) -> str:
        """Return the pod's network-status annotation once the reconciler has published it."""
        path = self.manifests / "status" / "default" / f"{pod}.json"
        wait_for(path)
        return json.loads(path.read_text())["annotations"]["k8s.v1.cni.cncf.io/network-status"]

    def timeline(self, pod: str) -> str:
        """Print the story of a pod."""
        return show(str(PYTHON.with_name("plumbline")), "--config", str(self.config), "timeline", pod)


def address(pod: str, interface: str) -> str:
    """Return the IPv4 address of an interface in a pod."""
    links = json.loads(quiet("ip", "-n", f"pldemo-{pod}", "-j", "-4", "addr", "show", interface).stdout)
    return str(links[0]["addr_info"][0]["local"])


def play(demo: Demo) -> None:
    """The demo, step by step."""
    say(
        "1. plumbline up",
        """
        Three processes on one machine: the node ledger (a nats-server on loopback), the worker that makes
        interfaces, and the reconciler that tells people what is there. In a cluster each has its own container.
        """,
    )
    demo.start()

    say(
        "2. A pod with one additional network",
        """
        samplepod carries the annotation k8s.v1.cni.cncf.io/networks: macvlan-conf. The runtime executes the
        entry point with CNI_COMMAND=ADD; it hands the request to the worker and prints the worker's answer: the
        default network's result, because that is what the kubelet shows as the pod's IP.
        """,
    )
    demo.attach("samplepod")
    show("ip", "netns", "exec", "pldemo-samplepod", "ip", "-brief", "address")
    expect(address("samplepod", "net1").startswith("192.168.1."), "net1 has no address of macvlan-conf")

    say(
        "3. A pod with the same network twice",
        """
        Each mention is an attachment of its own, with an interface of its own: net1 and net2.
        """,
    )
    demo.attach("twice")
    show("ip", "netns", "exec", "pldemo-twice", "ip", "-brief", "address")

    say(
        "4. The pods reach each other over net1",
        """
        Past the default network: both ends are macvlan interfaces.
        """,
    )
    target = address("twice", "net1")
    show("ip", "netns", "exec", "pldemo-samplepod", "ping", "-c", "1", "-W", "2", "-I", "net1", target)

    say(
        "5. What Kubernetes is told",
        """
        The reconciler reads the ledger and publishes the pod's k8s.v1.cni.cncf.io/network-status annotation;
        here, into the status folder beside the manifests.
        """,
    )
    print(*(f"   {line}" for line in demo.status("samplepod").splitlines()), sep="\n")

    say(
        "6. The story of a pod",
        """
        Every event was in the ledger before its effect was on the node.
        """,
    )
    demo.timeline("samplepod")

    say(
        "7. kill -9 of the worker in the middle of an attach",
        """
        The pod 'unlucky' has a network with a slow plugin. While that runs, the worker is killed. The entry
        point holds on: it comes back to the next worker with the same request. That one reads from the ledger
        what was begun, lets the orphaned plugin end, undoes the half-made interface and makes it again.
        """,
    )
    quiet("ip", "netns", "add", "pldemo-unlucky")
    request = demo.cni("ADD", "unlucky")
    wait_for(demo.plugins / "slow-is-running")
    show("kill", "-9", str(demo.worker_pid()))
    demo.answer(request)
    show("ip", "netns", "exec", "pldemo-unlucky", "ip", "-brief", "address")
    demo.timeline("unlucky")

    say(
        "8. Detach",
        """
        DEL undoes what was recorded, in reverse order, with the configuration that ADD used: nobody needs the
        manifests any more, so they are deleted first.
        """,
    )
    for manifest in demo.manifests.glob("*.yaml"):
        manifest.unlink()
    for pod in ("samplepod", "twice", "unlucky"):
        demo.detach(pod)

    say(
        "9. Nothing is left",
        """
        No address is taken, no interface, no namespace; the ledger still knows what was.
        """,
    )
    prove_nothing_left()
    show(str(PYTHON.with_name("plumbline")), "--config", str(demo.config), "timeline", "samplepod")

    say(
        "10. SIGTERM",
        """
        Everything stops in order.
        """,
    )
    exit_code = demo.stop()
    expect(exit_code == 0, f"plumbline up ended with exit code {exit_code}")
    print("   exit code 0")


def prove_nothing_left() -> None:
    """Show what the node holds of the demo's pods; raise DemoFailedError if that is anything."""
    held = [path for path in IPAM_FOLDER.glob("*/*") if path.name != "lock" and not path.name.startswith("last_")]
    print(f"\n   addresses taken in {IPAM_FOLDER}: {len(held)}")
    ports = json.loads(quiet("ip", "-j", "link", "show", "master", BRIDGE).stdout or "[]")
    print(f"   ports of {BRIDGE}: {len(ports)}")
    namespaces = [name for name in os.listdir("/var/run/netns") if name.startswith("pldemo-")]
    print(f"   namespaces: {len(namespaces)}", flush=True)
    expect(not held, f"addresses are still taken: {held}")
    expect(not ports, f"the bridge still has ports: {ports}")
    expect(not namespaces, f"namespaces are left: {namespaces}")


def clean() -> None:
    """Remove whatever a demo may have made on the node."""
    if os.path.isdir("/var/run/netns"):
        for name in os.listdir("/var/run/netns"):
            if name.startswith("pldemo-"):
                quiet("ip", "netns", "del", name)
    quiet("ip", "link", "del", BRIDGE)
    quiet("ip", "link", "del", PARENT)
    shutil.rmtree(IPAM_FOLDER.parent, ignore_errors=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{STATE_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stage() -> Iterator[Demo]:
    """Yield a demo that is ready to start; remove all of it afterwards."""
    clean()
    demo = Demo(Path(tempfile.mkdtemp(prefix=STATE_PREFIX)))
    try:
        demo.set_up()
        yield demo
    finally:
        demo.stop()
        clean()


def interrupted(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that the stage is cleared."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Run the demo; return its exit code."""
    signal.signal(signal.SIGTERM, interrupted)
    if os.geteuid() != 0:
        print("the demo makes network namespaces and interfaces: run it as root", file=sys.stderr)
        return 2
    try:
        with stage() as demo:
            play(demo)
    except KeyboardInterrupt:
        print("\ninterrupted; everything was removed", file=sys.stderr)
        return 130
    except DemoFailedError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    print("\n\033[1mThat was all of it, and it is all gone again.\033[0m")
    return 0


if __name__ == "__main__":
    sys.exit(main())
