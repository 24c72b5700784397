"""A node is brought to its installation, and held to it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeworker.host.install import InstallError, NotYetError, installer
from nodeworker.host.install.installer import install, uninstalled_marker, watch
from tests.support.host.install_harness import BRIDGE, MULTUS, SINGLE, Host


def configure(host: Host, **keys: object) -> None:
    with host.worker():
        host.installer(**keys).configure()


def test_binary_and_configuration_are_installed(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with host.worker() as worker:
        install(host.installer(), 0, threading.Event())
    (asked,) = worker.requests
    assert asked.env == {"CNI_COMMAND": "STATUS", "CNI_PATH": str(host.bin)}
    question = json.loads(asked.stdin)
    assert (question["cniVersion"], question["type"], question["name"]) == ("1.1.0", "plumbline", "pods")
    assert question["delegates"] == [BRIDGE]
    assert (host.bin / "plumbline").read_bytes() == host.binary.read_bytes()
    assert (host.bin / "plumbline").stat().st_mode & 0o777 == 0o755
    assert host.installed()["plugins"][0]["delegates"] == [BRIDGE]
    assert (host.conf / "00-plumbline.conflist").stat().st_mode & 0o777 == 0o600


def test_the_runtime_is_told_of_nothing_while_no_worker_answers(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with pytest.raises(NotYetError, match=r"not configured yet.*could not be reached"):
        install(host.installer(), 0, threading.Event())
    assert host.names() == {"10-pods.conflist"}
    assert (host.bin / "plumbline").exists()


def test_a_worker_that_is_not_ready_is_no_worker(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with (
        host.worker(1, b'{"cniVersion":"1.1.0","code":50,"msg":"the node ledger does not answer"}'),
        pytest.raises(NotYetError, match="the node ledger does not answer"),
    ):
        host.installer().configure()
    assert host.names() == {"10-pods.conflist"}


def test_what_is_right_is_left_alone_and_nobody_is_asked(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    configure(host)
    before = (host.conf / "00-plumbline.conflist").stat()
    host.installer().configure()
    assert (host.conf / "00-plumbline.conflist").stat() == before


def test_a_changed_default_network_is_followed(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    configure(host)
    host.write("10-pods.conflist", {**BRIDGE, "name": "renamed"})
    configure(host)
    assert host.installed()["name"] == "renamed"


def test_another_version_changes_the_file_and_leaves_one(host: Host) -> None:
    host.write("10-pods.conf", SINGLE)
    configure(host)
    assert host.names() == {"10-pods.conf", "00-plumbline.conf"}
    host.write("10-pods.conf", {**SINGLE, "cniVersion": "1.0.0"})
    configure(host)
    assert host.names() == {"10-pods.conf", "00-plumbline.conflist"}


@pytest.mark.parametrize("text", ["", "{", json.dumps({**BRIDGE, "cniVersion": "9.9.9"})])
def test_the_last_good_configuration_stays(host: Host, text: str) -> None:
    host.write("10-pods.conflist", BRIDGE)
    configure(host)
    host.write("10-pods.conflist", text)
    with pytest.raises(InstallError, match="10-pods"):
        configure(host)
    assert host.installed()["plugins"][0]["delegates"] == [BRIDGE]


def test_a_default_network_that_vanishes_for_a_moment_is_waited_for(host: Host) -> None:
    path = host.write("10-pods.conflist", BRIDGE)
    host.write("20-flat.conf", SINGLE)
    with host.worker():
        one = host.installer()
        one.configure()
        path.unlink()
        with pytest.raises(NotYetError, match=r"10-pods.conflist is gone.*20-flat.conf"):
            one.configure()
        host.write("10-pods.conflist", BRIDGE)
        one.configure()
        path.unlink()
        with pytest.raises(NotYetError):
            one.configure()
        assert host.installed()["name"] == "pods"
        host.clock.now += 10
        one.configure()
    assert host.installed("00-plumbline.conf")["name"] == "flat"


def test_a_default_network_that_comes_before_the_other_is_taken_at_once(host: Host) -> None:
    host.write("20-flat.conf", SINGLE)
    with host.worker():
        one = host.installer()
        one.configure()
        host.write("10-pods.conflist", BRIDGE)
        one.configure()
    assert host.installed()["name"] == "pods"


def test_a_configuration_that_the_runtime_would_read_first_is_said(host: Host) -> None:
    host.write("00-calico.conflist", BRIDGE)
    with pytest.raises(InstallError, match=r"00-calico.conflist sorts before 00-plumbline.conflist.*rename it"):
        configure(host)
    assert host.names() == {"00-calico.conflist"}


def test_the_default_network_may_lie_elsewhere(host: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00-first.conf").write_text(json.dumps(SINGLE))
    configure(host, cni_autoconf_dir=str(elsewhere))
    assert host.installed("00-plumbline.conf")["name"] == "flat"


def test_beside_multus_nothing_is_installed_unless_it_is_to_be_replaced(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    host.write("10-pods.conflist", BRIDGE)
    with pytest.raises(InstallError, match="--replace-multus"):
        configure(host)
    assert host.names() == {"00-multus.conf", "10-pods.conflist"}


def test_multus_is_set_aside_and_its_configuration_taken_over(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    host.write("10-pods.conflist", BRIDGE)
    configure(host, replace_multus=True)
    saved = {"00-multus.conf.plumbline-saved", "00-plumbline.conf", "10-pods.conflist"}
    assert host.names() == saved
    assert host.installed("00-plumbline.conf") == {**MULTUS, "type": "plumbline"}
    host.installer().configure()
    assert host.names() == saved


def test_multus_stays_while_no_worker_answers(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    with pytest.raises(NotYetError):
        host.installer(replace_multus=True).configure()
    assert host.names() == {"00-multus.conf"}


def test_a_multus_that_writes_its_file_again_is_set_aside_again(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    configure(host, replace_multus=True)
    host.write("00-multus.conf", {**MULTUS, "name": "newer"})
    configure(host, replace_multus=True)
    assert host.names() == {"00-multus.conf.plumbline-saved", "00-plumbline.conf"}
    assert host.installed("00-plumbline.conf")["name"] == "newer"


def test_after_an_uninstallation_only_a_new_installation_goes_on(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    uninstalled_marker(host.settings).touch()
    with host.worker():
        with pytest.raises(NotYetError, match="was uninstalled here"):
            host.installer()
        one = installer.Installer(host.settings, host.section(), host.binary)
        with pytest.raises(NotYetError, match="was uninstalled here"):
            one.configure()
        install(one, 0, threading.Event())
    assert "00-plumbline.conflist" in host.names()


def test_a_folder_that_is_not_there_is_said(host: Host) -> None:
    host.bin.rmdir()
    with pytest.raises(InstallError, match=r"bin can't be changed \(No such file.*folder of CNI plugins"):
        host.installer()


class Watching:
    """A watching installer whose pauses the test makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self._turns: list[Callable[[], object]] = []
        self._stopped = False
        monkeypatch.setattr(installer.log, "warning", lambda _, reason: self.said.append(reason))

    def run(self, host: Host, *turns: Callable[[], object]) -> None:
        self._turns = list(turns)
        one = installer.Installer(host.settings, host.section(), host.binary, host.clock)
        watch(one, host.bin / "plumbline", self)  # pyright: ignore[reportArgumentType]

    def is_set(self) -> bool:
        return self._stopped

    def wait(self, seconds: float) -> None:
        if self._turns:
            self._turns.pop(0)()
        else:
            self._stopped = True


def test_a_watching_installer_waits_and_says_so_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching(monkeypatch)
    with host.worker():
        watching.run(
            host,
            lambda: None,
            lambda: host.write("10-pods.conflist", BRIDGE),
            lambda: host.write("10-pods.conflist", "{"),
            lambda: host.write("10-pods.conflist", {**BRIDGE, "name": "renamed"}),
        )
    assert len(watching.said) == 2
    assert "has no configuration" in watching.said[0]
    assert "is not JSON" in watching.said[1]
    assert host.installed()["name"] == "renamed"


def test_a_watching_installer_restores_what_others_remove(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with host.worker():
        Watching(monkeypatch).run(
            host, (host.conf / "00-plumbline.conflist").unlink, (host.bin / "plumbline").unlink, lambda: None
        )
    assert "00-plumbline.conflist" in host.names()
    asked = subprocess.run([host.bin / "plumbline"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True)
    assert b"1.1.0" in asked.stdout


def test_a_watching_installer_leaves_an_uninstalled_node_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("10-pods.conflist", BRIDGE)
    uninstalled_marker(host.settings).touch()
    with host.worker():
        Watching(monkeypatch).run(host, lambda: None)
    assert host.names() == {"10-pods.conflist"}
    assert not list(host.bin.iterdir())
