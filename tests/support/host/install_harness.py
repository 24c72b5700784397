"""A host's folders, and the worker on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from events.process.settings import InstallSection, Settings
from nodeworker.host.install.installer import Installer
from nodeworker.shim.frame import encode_reply
from tests.support.worker.shim_harness import Worker, reply

BRIDGE = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True, "ips": False}},
    ],
}
SINGLE = {"cniVersion": "0.3.1", "name": "flat", "type": "macvlan", "capabilities": {"mac": True}}
MULTUS = {
    "cniVersion": "0.3.1",
    "name": "multus-cni-network",
    "type": "multus",
    "capabilities": {"portMappings": True},
    "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig",
    "namespaceIsolation": True,
    "delegates": [BRIDGE],
}


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A node before the installation."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.bin, self.conf, self.run = (folder / name for name in ("bin", "net.d", "run"))
        for made in (self.bin, self.conf, self.run):
            made.mkdir()
        self.state = folder / "state"
        self.binary = binary
        self.clock = Clock()
        self.settings = Settings(node="node-1", run_dir=str(self.run), state_dir=str(self.state))

    def section(self, **keys: Any) -> InstallSection:
        return InstallSection(cni_bin_dir=str(self.bin), cni_conf_dir=str(self.conf), **keys)

    def installer(self, **keys: Any) -> Installer:
        installer = Installer(self.settings, self.section(**keys), self.binary, self.clock)
        installer.install_entry_point()
        return installer

    def worker(self, exit_code: int = 0, stdout: bytes = b"") -> Worker:
        """A worker that answers every question alike."""
        self.settings.socket.unlink(missing_ok=True)
        return Worker(self.settings.socket, reply(encode_reply(exit_code, stdout)))

    def write(self, name: str, config: Any) -> Path:
        path = self.conf / name
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    def installed(self, name: str = "00-plumbline.conflist") -> dict[str, Any]:
        return json.loads((self.conf / name).read_text())

    def names(self) -> set[str]:
        """The files that the runtime's folder of configurations has."""
        return {path.name for path in self.conf.iterdir()}
