"""containerd with all its files in a folder of the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpclib.exceptions import GRPCError

from nodeworker.plugins.orphans import process_ids
from tests.support.node.cri_client import Cri, CriCall
from tests.support.node.image import write_image
from tests.support.node.mounts import own_mounts
from tests.support.node.node import Node
from tests.support.node.runtime import PLUGINS, Sandbox
from tests.support.waiting import eventually

_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
}
"""Required programs, each with its Debian package."""

_IMAGE = "plumbline.test/pause:1"
"""The program that keeps a sandbox alive."""

_REPLACED = {"/run/containerd": "run", "/var/lib/cni": "cni"}
"""Folders of the node that containerd uses whatever its configuration says, and what it finds in their place.

Its shims have their sockets in one, and libcni keeps results in the other.
"""

_PATIENCE = 30.0
_CGROUPS = Path("/sys/fs/cgroup")

_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
netns_mounts_under_state_dir = true
# Host facilities that root in a container does not get.
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin}"
conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{folder}/runc"
"""


class CriSandbox(Sandbox):
    """A pod's sandbox, as containerd has made it; *pid* is that of the process that keeps it alive."""

    def __init__(self, pod: str, container_id: str, netns: str, pid: int) -> None:
        super().__init__(pod, container_id, netns)
        self.pid = pid


class Containerd:
    """containerd, whose folders for CNI are *bin* and *conf*. *folder* is for everything that it keeps.

    Its mount namespace is separate, and keeps the mounts of an earlier containerd for the next one. Of
    that, the worker sees pods' network namespaces, as on a node where it runs in a container.
    """

    def __init__(self, folder: Path, node: Node) -> None:
        self.bin, self.conf = folder / "bin", folder / "net.d"
        self.socket = folder / "cri.sock"
        self.log = folder / "containerd.log"
        self.results = folder / "cni" / "results"
        self.namespaces = folder / "state" / "io.containerd.grpc.v1.cri" / "netns"
        self._folder = folder
        self._config = folder / "config.toml"
        self._replaced = {Path(place): folder / own for place, own in _REPLACED.items()}
        self._cgroup = f"plumbline-{node.name}"
        self._node = node
        self._process: subprocess.Popen[bytes] | None = None
        self._cri = Cri(str(self.socket))

    @contextlib.contextmanager
    def present(self) -> Iterator[Containerd]:
        """Run containerd for the duration of the context, and leave nothing of it."""
        for made in (self.bin, self.conf, self.namespaces, *self._replaced.values(), *self._replaced):
            made.mkdir(parents=True, exist_ok=True)
        for plugin in PLUGINS.iterdir():
            (self.bin / plugin.name).symlink_to(plugin)
        places = {"folder": self._folder, "socket": self.socket, "bin": self.bin, "conf": self.conf, "image": _IMAGE}
        self._config.write_text(_CONFIG.format_map(places))
        with own_mounts(self._replaced, self.namespaces) as self._entering:
            try:
                self.start()
                self._import_image()
                yield self
            finally:
                self.kill()
                self._cri.close()
                self._end_sandboxes()
                self._remove_cgroups()

    # --- containerd itself ---

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start containerd, and *wait* until it answers. The entry point inherits *environment*."""
        assert self._process is None
        places = {"PLUMBLINE_SOCKET": str(self._node.socket), "PLUMBLINE_SPOOL": str(self._node.spool)}
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(self._config)],
                env={**os.environ, **places, **environment},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=self._entering(),  # noqa: PLW1509  # pytest has no other thread
            )
        if wait:
            eventually(self._answers, "containerd answers", _PATIENCE)

    def stop(self) -> None:
        """Terminate containerd and wait for its end; sandboxes continue."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_PATIENCE)
        self._process = None

    def kill(self) -> None:
        """Kill containerd if it runs; sandboxes continue."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, **environment: str) -> None:
        """Restart containerd with *environment*."""
        self.stop()
        self.start(wait=True, **environment)

    def forget(self, sandbox: CriSandbox) -> None:
        """Remove containerd's record of *sandbox*."""
        self._ctr("containers", "rm", sandbox.container_id)
        # Version 2 has a second record.
        if "sandboxes" in self._ctr("--help") and sandbox.container_id in self._ctr("sandboxes", "list"):
            self._ctr("sandboxes", "rm", "--force", sandbox.container_id)
        self.restart()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"containerd ended: {self.log.read_text()}"
        try:
            self.listed()
        except (OSError, GRPCError):  # it does not run, or still loads its state
            return False
        return True

    def _ctr(self, *arguments: str) -> str:
        """Run ``ctr`` in the namespace of the CRI and return its output."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert not done.returncode, done.stderr
        return done.stdout

    # --- requests of a kubelet; they raise GRPCError ---

    def run(self, pod: str, **config: Any) -> CriSandbox:
        """Create the sandbox of *pod*; *config* adds to the kubelet's request."""
        return self.sandbox(pod, self.start_run(pod, **config).answer().pod_sandbox_id)

    def start_run(self, pod: str, **config: Any) -> CriCall:
        """Request the sandbox of *pod* and return the open call."""
        about = {
            "metadata": {"name": pod, "uid": f"uid-of-{pod}", "namespace": "default"},
            "dns_config": {"servers": ["192.0.2.53"]},
            "linux": {"cgroup_parent": f"/{self._cgroup}"},
        }
        return self._cri.start("RunPodSandbox", config={**about, **config})

    def sandbox(self, pod: str, container_id: str) -> CriSandbox:
        """Return the running sandbox *container_id*."""
        answer = self._cri.call("PodSandboxStatus", pod_sandbox_id=container_id, verbose=True)
        info = json.loads(answer.info["info"])
        (netns,) = [each["path"] for each in info["runtimeSpec"]["linux"]["namespaces"] if each["type"] == "network"]
        return CriSandbox(pod, container_id, netns, info["pid"])

    def ip(self, sandbox: CriSandbox) -> str:
        """Return the IP that the pod gets."""
        return self._cri.call("PodSandboxStatus", pod_sandbox_id=sandbox.container_id).status.network.ip

    def halt(self, sandbox: CriSandbox) -> None:
        """Stop *sandbox* and its network; containerd keeps its record."""
        self._cri.call("StopPodSandbox", pod_sandbox_id=sandbox.container_id)

    def remove(self, sandbox: CriSandbox) -> None:
        """Stop *sandbox* if it runs, and remove it."""
        self.remove_by_id(sandbox.container_id)

    def remove_by_id(self, container_id: str) -> None:
        """Stop and remove the sandbox *container_id*, which may never have run."""
        self._cri.call("RemovePodSandbox", pod_sandbox_id=container_id)

    def listed(self) -> set[str]:
        """Return the container IDs of its sandboxes."""
        return {each.id for each in self._cri.call("ListPodSandbox").items}

    def calls(self, plugin: str) -> bool:
        """Return whether containerd is ready and calls *plugin* for the next pod."""
        answer = self._cri.call("Status", verbose=True)
        networks = json.loads(answer.info["cniconfig"])["Networks"]
        called = {each["Network"]["type"] for network in networks for each in network["Config"]["Plugins"]}
        return plugin in called and all(condition.status for condition in answer.status.conditions)

    # --- files and processes ---

    def result(self, sandbox: CriSandbox) -> Path:
        """Return libcni's file with the result of the sandbox' ADD on the network "default"."""
        return self.results / f"default-{sandbox.container_id}-eth0"

    def kill_processes(self, sandbox: CriSandbox) -> None:
        """Kill the shim of *sandbox*, which would report its end, and then its process."""
        for pid in (*(shim for shim in self._shims() if sandbox.container_id in _arguments(shim)), sandbox.pid):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not _arguments(sandbox.pid), "the processes have ended")

    def _import_image(self) -> None:
        archive = self._folder / "image.tar"
        write_image(archive, _IMAGE)
        self._ctr("images", "import", "--no-unpack", str(archive))
        image = {"image": _IMAGE}
        eventually(lambda: self._cri.call("ImageStatus", image=image).image.id, "the CRI knows the image", _PATIENCE)

    def _shims(self) -> list[int]:
        """Return the IDs of the sandboxes' shims, which outlive containerd."""
        return [pid for pid in process_ids() if str(self.socket) in _arguments(pid)]

    def _end_sandboxes(self) -> None:
        members = [listed for folder in self._cgroups() for listed in folder.rglob("cgroup.procs")]
        for pid in (*self._shims(), *(int(pid) for listed in members for pid in listed.read_text().split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _remove_cgroups(self) -> None:
        for folder in self._cgroups():
            for emptied in (*folder.glob("*/"), folder):
                eventually(lambda emptied=emptied: _removed(emptied), f"{emptied} is empty")

    def _cgroups(self) -> list[Path]:
        return [folder for folder in (_CGROUPS / self._cgroup, *_CGROUPS.glob(f"*/{self._cgroup}")) if folder.exists()]


def missing() -> str:
    """Return why containerd can't run here; empty if it can."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed: install Debian's package {package}"
    return ""


def _arguments(pid: int) -> list[str]:
    """Return the command line of *pid*; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _removed(folder: Path) -> bool:
    """Return whether the cgroup *folder* is removed; its last process may still be ending."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
