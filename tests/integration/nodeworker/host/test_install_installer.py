"""A node is installed, and stays installed."""

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


def test_no_configuration_is_written_without_a_worker(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with pytest.raises(NotYetError, match=r"not configured yet.*could not be reached"):
        install(host.installer(), 0, threading.Event())
    assert host.names() == {"10-pods.conflist"}
    assert (host.bin / "plumbline").exists()


def test_no_configuration_is_written_if_status_fails(host: Host) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with (
        host.worker(1, b'{"cniVersion":"1.1.0","code":50,"msg":"the node ledger does not answer"}'),
        pytest.raises(NotYetError, match="the node ledger does not answer"),
    ):
        host.installer().configure()
    assert host.names() == {"10-pods.conflist"}


def test_current_configuration_is_not_changed_or_checked(host: Host) -> None:
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


def test_new_version_leaves_one_configuration_file(host: Host) -> None:
    host.write("10-pods.conf", SINGLE)
    configure(host)
    assert host.names() == {"10-pods.conf", "00-plumbline.conf"}
    host.write("10-pods.conf", {**SINGLE, "cniVersion": "1.0.0"})
    configure(host)
    assert host.names() == {"10-pods.conf", "00-plumbline.conflist"}


@pytest.mark.parametrize("text", ["", "{", json.dumps({**BRIDGE, "cniVersion": "9.9.9"})])
def test_invalid_network_keeps_the_last_configuration(host: Host, text: str) -> None:
    host.write("10-pods.conflist", BRIDGE)
    configure(host)
    host.write("10-pods.conflist", text)
    with pytest.raises(InstallError, match="10-pods"):
        configure(host)
    assert host.installed()["plugins"][0]["delegates"] == [BRIDGE]


def test_briefly_missing_default_network_is_awaited(host: Host) -> None:
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


def test_new_first_default_network_is_used_at_once(host: Host) -> None:
    host.write("20-flat.conf", SINGLE)
    with host.worker():
        one = host.installer()
        one.configure()
        host.write("10-pods.conflist", BRIDGE)
        one.configure()
    assert host.installed()["name"] == "pods"


def test_configuration_that_sorts_first_is_refused(host: Host) -> None:
    host.write("00-calico.conflist", BRIDGE)
    with pytest.raises(InstallError, match=r"00-calico.conflist sorts before 00-plumbline.conflist.*rename it"):
        configure(host)
    assert host.names() == {"00-calico.conflist"}


def test_default_network_can_be_in_another_folder(host: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00-first.conf").write_text(json.dumps(SINGLE))
    configure(host, cni_autoconf_dir=str(elsewhere))
    assert host.installed("00-plumbline.conf")["name"] == "flat"


def test_multus_is_replaced_only_on_request(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    host.write("10-pods.conflist", BRIDGE)
    with pytest.raises(InstallError, match="--replace-multus"):
        configure(host)
    assert host.names() == {"00-multus.conf", "10-pods.conflist"}


def test_multus_configuration_is_renamed_and_taken_over(host: Host) -> None:
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


def test_rewritten_multus_configuration_is_renamed_again(host: Host) -> None:
    host.write("00-multus.conf", MULTUS)
    configure(host, replace_multus=True)
    host.write("00-multus.conf", {**MULTUS, "name": "newer"})
    configure(host, replace_multus=True)
    assert host.names() == {"00-multus.conf.plumbline-saved", "00-plumbline.conf"}
    assert host.installed("00-plumbline.conf")["name"] == "newer"


def test_uninstalled_node_needs_an_explicit_install(host: Host) -> None:
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


def test_missing_folder_is_named_in_the_error(host: Host) -> None:
    host.bin.rmdir()
    with pytest.raises(InstallError, match=r"bin can't be changed \(No such file.*folder of CNI plugins"):
        host.installer()


class Watching:
    """A watching installer whose pauses the test controls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self._turns: list[Callable[[], object]] = []
        self._stopped = False
        monkeypatch.setattr(installer.log, "info", lambda event, **keys: self._note(self.said, event, keys))
        monkeypatch.setattr(installer.log, "warning", lambda event, **keys: self._note(self.warned, event, keys))

    @staticmethod
    def _note(lines: list[str], event: str, keys: dict[str, str]) -> None:
        if event == "installation_waits":
            lines.append(keys["reason"])

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


def test_watching_installer_logs_a_failure_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not watching.warned
    assert host.installed()["name"] == "renamed"


def test_watching_installer_warns_once_of_what_lasts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching(monkeypatch)

    def later() -> None:
        host.clock.now += 6

    with host.worker():
        watching.run(host, later, later, later, later)
    assert len(watching.said) == 1
    assert watching.warned == watching.said


def test_watching_installer_warns_at_once_of_what_only_a_person_can_change(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.write("10-pods.conflist", BRIDGE)
    host.conf.rename(host.conf.with_name("elsewhere"))
    host.conf.write_text("no folder")
    watching = Watching(monkeypatch)
    with host.worker():
        watching.run(host, lambda: None)
    assert len(watching.warned) == 1


def test_watching_installer_restores_removed_files(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("10-pods.conflist", BRIDGE)
    with host.worker():
        Watching(monkeypatch).run(
            host, (host.conf / "00-plumbline.conflist").unlink, (host.bin / "plumbline").unlink, lambda: None
        )
    assert "00-plumbline.conflist" in host.names()
    asked = subprocess.run([host.bin / "plumbline"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True)
    assert b"1.1.0" in asked.stdout


def test_watching_installer_respects_an_uninstallation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("10-pods.conflist", BRIDGE)
    uninstalled_marker(host.settings).touch()
    with host.worker():
        Watching(monkeypatch).run(host, lambda: None)
    assert host.names() == {"10-pods.conflist"}
    assert not list(host.bin.iterdir())
