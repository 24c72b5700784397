"""A container runtime of the field, with libcni inside, on top of it all: podman and its CNI networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.fold import Sandbox
from tests.support.node.node import Node, addresses_of
from tests.support.waiting import eventually

_PACKAGES = {"podman": "podman", "runc": "runc", "busybox": "busybox-static"}


class Podman:
    """podman with separate storage, networks and configuration in *folder*."""

    def __init__(self, folder: Path, node: Node, shim: Path) -> None:
        self._folder = folder
        self._env = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        plugins, networks = folder / "plugins", folder / "networks"
        plugins.mkdir(parents=True)
        networks.mkdir()
        # The cleanup process of an ended container does not have the environment of the process that started it.
        entry_point = plugins / "plumbline"
        entry_point.write_text(
            f"#!/bin/sh\nexport PLUMBLINE_SOCKET={node.socket} PLUMBLINE_SPOOL={node.spool}\nexec {shim}\n"
        )
        entry_point.chmod(0o755)
        conflist = {"cniVersion": "1.0.0", "name": "plumb", "plugins": [node.conf()]}
        (networks / "plumb.conflist").write_text(json.dumps(conflist))
        (folder / "containers.conf").write_text(
            f'[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["{plugins}", "/usr/lib/cni"]\n'
            f'network_config_dir = "{networks}"\ndefault_network = "plumb"\n'
            '[containers]\ndefault_ulimits = ["nofile=256:256", "nproc=256:256"]\n'  # to raise them may be forbidden
            f'[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\n'
            f'events_logger = "none"\ntmp_dir = "{folder}/libpod"\n'
        )
        self._rootfs = folder / "rootfs"
        for name in ("bin", "proc", "sys", "dev", "etc", "run", "tmp"):
            (self._rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox
        shutil.copy(busybox, self._rootfs / "bin" / "busybox")

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        stores = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")]
        command = ["podman", *stores, "--storage-driver", "vfs", *arguments]
        return subprocess.run(command, env=self._env, check=False, capture_output=True, text=True, timeout=60)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        return self(
            *("run", "--detach", "--name", name, "--network", "plumb"),
            *("--rootfs", str(self._rootfs), "/bin/busybox", "sleep", "1000"),
        )

    def addresses(self, name: str) -> dict[str, set[str]]:
        """Return what the container itself sees: its interfaces, each with its IPv4 addresses."""
        seen = self("exec", name, "/bin/busybox", "ip", "-o", "-4", "addr")
        assert not seen.returncode, seen.stderr
        words = [line.split() for line in seen.stdout.splitlines()]
        return {ifname: {w[3] for w in words if w[1] == ifname} for ifname in {w[1] for w in words} - {"lo"}}

    def settings(self, name: str) -> dict[str, Any]:
        return json.loads(self("inspect", name, "--format", "{{json .NetworkSettings.Networks.plumb}}").stdout)


@pytest.fixture
def podman(node: Node, shim: Path) -> Iterator[Podman]:
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: install Debian's package {package}")
    with tempfile.TemporaryDirectory(prefix="plumb-", dir="/tmp") as folder:  # podman bounds the length of its paths
        podman = Podman(Path(folder), node, shim)
        yield podman
        podman("rm", "--force", "--all", "--time", "0")


def recorded(node: Node) -> Sandbox:
    (sandbox,) = node.state().sandboxes.values()
    return sandbox


def test_podman_attaches_restarts_and_removes_a_container(node: Node, podman: Podman) -> None:
    node.samplepod()
    ran = podman.run("samplepod")
    assert not ran.returncode, ran.stderr
    sandbox = recorded(node)
    assert sandbox.key.container_id == ran.stdout.strip()
    results: dict[str, set[str]] = {a.plan.ifname: addresses_of(json.loads(a.result)) for a in sandbox.attachments}
    assert set(results) == {"eth0", "net1"}
    assert podman.addresses("samplepod") == results
    settings = podman.settings("samplepod")
    assert f"{settings['IPAddress']}/{settings['IPPrefixLen']}" in results["eth0"]

    again = podman("restart", "--time", "0", "samplepod")
    assert not again.returncode, again.stderr
    reattached = recorded(node)
    assert reattached.key == sandbox.key
    assert reattached.intent != sandbox.intent
    assert set(podman.addresses("samplepod")) == {"eth0", "net1"}

    removed = podman("rm", "--force", "--time", "0", "samplepod")
    assert not removed.returncode, removed.stderr
    assert not node.state().sandboxes
    assert not node.reserved()


def test_podman_reports_why_a_container_is_not_attached(node: Node, podman: Podman) -> None:
    node.pod("unlucky", "not-there")
    ran = podman.run("unlucky")
    assert ran.returncode
    assert "pod default/unlucky: network default/not-there does not exist" in ran.stderr


def test_podman_removes_a_container_while_no_worker_runs(node: Node, podman: Podman) -> None:
    node.samplepod()
    assert not podman.run("samplepod").returncode
    node.kill()
    assert not podman("rm", "--force", "--time", "0", "samplepod").returncode
    node.start()
    eventually(lambda: not node.state().sandboxes, "the DEL is done")
    assert not node.reserved()
