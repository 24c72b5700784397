"""A node is restored, and not before its pods can do without Plumbline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from events.ledger.ledger import LedgerError
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import NODE_STREAM
from events.process.settings import SettingsError
from events.schema import Pod
from nodeworker.host.install import installer
from nodeworker.host.install.uninstall import BinaryKeptError, StillAttachedError, Uninstaller
from tests.support.host.install_harness import BRIDGE, MULTUS, SINGLE, Host
from tests.support.stories.node import Node
from tests.support.stories.values import NETWORKS

WEB = Pod("shop", "web-0", "u")


@pytest.fixture
async def ledger(host: Host) -> AsyncIterator[JetStreamLedger]:
    server = EmbeddedServer(host.state / "ledger", host.run)
    server.start()
    try:
        ledger = await JetStreamLedger.connect(server.address, config=NODE_STREAM)
        yield ledger
        await ledger.close()
    finally:
        server.stop()


@pytest.fixture
def installed(host: Host) -> Host:
    """A host on which Plumbline is installed."""
    host.write("10-pods.conflist", BRIDGE)
    with host.worker():
        host.installer().configure()
    return host


async def attach(ledger: JetStreamLedger, sandbox: str, *networks: str) -> None:
    for event in Node().attach(sandbox, WEB, networks):
        await ledger.append(event)


async def uninstall(host: Host, *, force: bool = False) -> None:
    await Uninstaller(host.settings, host.section(), force=force).run()


async def test_uninstall_without_pods_restores_the_node(installed: Host, ledger: JetStreamLedger) -> None:
    await uninstall(installed)
    assert installed.names() == {"10-pods.conflist"}
    assert not list(installed.bin.iterdir())


async def test_uninstall_with_additional_networks_changes_nothing(installed: Host, ledger: JetStreamLedger) -> None:
    await attach(ledger, "a" * 64, *NETWORKS[:2])
    with pytest.raises(StillAttachedError, match=r"shop/web-0 \(aaaaaaaaaaaa\); delete or drain"):
        await uninstall(installed)
    assert "00-plumbline.conflist" in installed.names()
    assert (installed.bin / "plumbline").exists()
    assert not installer.uninstalled_marker(installed.settings).exists()


async def test_attach_in_progress_blocks_uninstall(installed: Host, ledger: JetStreamLedger) -> None:
    for event, _ in zip(Node().attach("a" * 64, WEB, NETWORKS[:2]), range(2), strict=False):
        await ledger.append(event)
    with pytest.raises(StillAttachedError):
        await uninstall(installed)


async def test_error_names_ten_pods_at_most(installed: Host, ledger: JetStreamLedger) -> None:
    node = Node()
    for number in range(12):
        for event in node.attach(f"{number:064}", WEB, NETWORKS[:2]):
            await ledger.append(event)
    with pytest.raises(StillAttachedError, match="and 2 more;"):
        await uninstall(installed)


async def test_pods_of_another_node_do_not_count(installed: Host, ledger: JetStreamLedger) -> None:
    for event in Node("node-2").attach("a" * 64, WEB, NETWORKS[:2]):
        await ledger.append(event)
    await uninstall(installed)
    assert not list(installed.bin.iterdir())


async def test_binary_stays_while_a_pod_may_need_del(
    installed: Host, ledger: JetStreamLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await attach(ledger, "a" * 64, NETWORKS[0])
    alive = {"/run/netns/" + "a" * 64}
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in alive or exists(path))
    with pytest.raises(BinaryKeptError, match=r"plumbline stays.*shop/web-0"):
        await uninstall(installed)
    assert installed.names() == {"10-pods.conflist"}
    assert (installed.bin / "plumbline").exists()
    alive.clear()
    await uninstall(installed)
    assert not list(installed.bin.iterdir())


async def test_force_does_not_read_the_ledger(installed: Host) -> None:
    await uninstall(installed, force=True)
    assert installed.names() == {"10-pods.conflist"}
    assert not list(installed.bin.iterdir())


async def test_uninstall_without_ledger_changes_nothing(installed: Host) -> None:
    with pytest.raises(SettingsError, match="no ledger"):
        await uninstall(installed)
    server = EmbeddedServer(installed.state / "ledger", installed.run)
    server.start()
    server.stop()
    (installed.run / "ledger.json").write_text(f'{{"url": "{server.url}", "token": "t"}}')
    with pytest.raises(LedgerError, match="ledger"):
        await uninstall(installed)
    assert "00-plumbline.conflist" in installed.names()


async def test_multus_is_restored_before_our_file_is_removed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("00-multus.conf", MULTUS)
    host.write("10-flat.conf", SINGLE)
    with host.worker():
        host.installer(replace_multus=True).configure()
    seen: list[set[str]] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **keys: (seen.append(host.names()), unlink(path, **keys)))
    await uninstall(host, force=True)
    assert host.names() == {"00-multus.conf", "10-flat.conf"}
    assert host.installed("00-multus.conf") == MULTUS
    assert all("00-multus.conf" in names for names in seen)


async def test_second_uninstall_succeeds(installed: Host) -> None:
    await uninstall(installed, force=True)
    await uninstall(installed, force=True)
    assert installed.names() == {"10-pods.conflist"}
