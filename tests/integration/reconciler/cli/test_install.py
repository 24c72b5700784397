"""``plumbline install`` and ``uninstall``, and their effect on ``plumbline up``, as users run them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.process.child_process import die_with_parent
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually

MAIN = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]
PLUGINS = Path("/usr/lib/cni")
BRIDGE = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.89.0.0/24"}}],
}


class Host:
    """Folders of a node, and the configuration file that names them."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.conf = folder / "bin", folder / "net.d"
        self.bin.mkdir()
        self.conf.mkdir()
        (self.bin / "bridge").symlink_to(PLUGINS / "bridge")
        self.ours = self.conf / "00-plumbline.conflist"
        self.socket = folder / "run" / "worker.sock"
        self.config = folder / "plumbline.json"
        section = {"cniBinDir": str(self.bin), "cniConfDir": str(self.conf)}
        self.write(install=section, stateDir=str(folder / "state"), runDir=str(folder / "run"))
        (self.conf / "10-pods.conflist").write_text(json.dumps(BRIDGE))

    def write(self, **keys: Any) -> None:
        self.config.write_text(json.dumps(keys))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return plumbline(self.config, *arguments)

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a long-lived command during the block."""
        # pytest has no other thread
        child = subprocess.Popen([*MAIN, "--config", str(self.config), *arguments], preexec_fn=die_with_parent())  # noqa: PLW1509
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(30)
            finally:
                child.kill()
                child.wait()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    if os.geteuid() != 0:
        pytest.skip("the worker needs root")
    if not (PLUGINS / "bridge").exists():
        pytest.skip(f"there are no plugins in {PLUGINS}: install Debian's package containernetworking-plugins")
    return Host(tmp_path)


def test_without_worker_only_the_binary_is_installed_with_the_reason(host: Host) -> None:
    done = host.run("install", "--wait", "0")
    assert done.returncode == 1
    assert "the runtime is not configured yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert (host.bin / "plumbline").exists()
    assert not host.ours.exists()


def test_binary_only_installs_only_the_binary(host: Host, tmp_path: Path) -> None:
    build = tmp_path / "other-build"
    build.write_bytes(b"another build")
    other = tmp_path / "other"
    other.mkdir()
    done = host.run("install", "--binary-only", "--entry-point", str(build), "--cni-bin-dir", str(other))
    assert done.returncode == 0, done.stderr
    assert (other / "plumbline").read_bytes() == b"another build"
    assert [path.name for path in host.bin.iterdir()] == ["bridge"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cni-bin-dir", "here"], "not an absolute path"),
        (["--master-file-name", "a/b"], "not the name of a file"),
        (["--network-json", "/nowhere"], "/nowhere can't be read"),
        (["--network-json", "/dev/null"], "not a JSON object"),
        (["--watch", "--binary-only"], "not allowed with"),
        (["--wach"], "--wach"),
    ],
)
def test_wrong_usage_is_reported(host: Host, arguments: list[str], said: str) -> None:
    done = host.run("install", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_unknown_key_of_the_section_is_refused(host: Host) -> None:
    host.write(install={"cniBinDirectory": "/opt"})
    for command in ("install", "uninstall", "check-config"):
        done = host.run(command)
        assert done.returncode == 2
        assert "cniBinDirectory" in done.stderr


def test_help_lists_the_exit_codes(host: Host) -> None:
    assert "Exit codes: 0 done, 1 failed" in " ".join(host.run("install", "--help").stdout.split())
    assert "3 the configuration is removed" in " ".join(host.run("uninstall", "--help").stdout.split())


def test_a_watching_installer_ends_with_0_and_removes_nothing(host: Host) -> None:
    with host.running("install", "--watch") as child:
        eventually((host.bin / "plumbline").exists, "the entry point is installed")
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert (host.bin / "plumbline").exists()


def test_up_installs_and_follows_until_uninstall(host: Host) -> None:
    with host.running("up") as up:
        eventually(host.ours.exists, "the configuration is written")
        assert host.socket.exists()
        (host.conf / "10-pods.conflist").write_text(json.dumps({**BRIDGE, "name": "renamed"}))
        eventually(lambda: json.loads(host.ours.read_text())["name"] == "renamed", "the new name is taken over")
        assert host.run("install").returncode == 0

        done = host.run("uninstall")
        assert done.returncode == 0, done.stderr
        assert not host.ours.exists()
        assert not (host.bin / "plumbline").exists()

        assert host.run("install").returncode == 0
        assert host.ours.exists()
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0
    assert host.ours.exists()
    assert (host.bin / "plumbline").exists()
    assert host.run("uninstall").returncode in (2, 4)
    shutil.rmtree(host.conf.parent / "run")
    assert host.run("uninstall", "--force").returncode == 0
    assert [path.name for path in host.conf.iterdir()] == ["10-pods.conflist"]
