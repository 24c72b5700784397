"""A worker for the entry point to talk to, and a runtime that executes it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nodeworker.shim import frame

Behaviour = Callable[[socket.socket], None]
"""What a worker does with one connection whose request it has read, before it closes."""


def reply(data: bytes) -> Behaviour:
    """Send *data*; the entry point may have gone before all of it is sent."""

    def behave(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)

    return behave


def reply_bytewise(data: bytes) -> Behaviour:
    """Send *data* in as many pieces as it has bytes."""

    def behave(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError):
            for byte in data:
                connection.sendall(bytes([byte]))

    return behave


def vanish(connection: socket.socket) -> None:
    """Close without an answer."""


def hang(connection: socket.socket) -> None:
    """Give no answer for as long as the entry point waits for one."""
    assert connection.recv(1) == b""


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return bytes(data)


class Worker:
    """Listens on *path*: the first connection gets the first behaviour, those after the last get the last."""

    def __init__(self, path: Path, *behaviours: Behaviour) -> None:
        self.frames: list[bytes] = []
        self._behaviours = behaviours
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, name="fake-worker")

    @property
    def requests(self) -> list[frame.Frame]:
        return [frame.decode_frame(data) for data in self.frames]

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                header = read_exactly(connection, frame.HEADER)
                if not header:  # its deadline came between connecting and sending
                    continue
                self.frames.append(header + read_exactly(connection, frame.body_length(header)))
                self._behaviours[min(len(self.frames), len(self._behaviours)) - 1](connection)


class Runtime:
    """Executes one entry point with its own socket and spool folder."""

    def __init__(self, binary: Path, folder: Path, deadline: float = 20) -> None:
        self.binary = binary
        self.socket = folder / "worker.sock"
        self.spool = folder / "spool"
        self._deadline = deadline

    def worker(self, *behaviours: Behaviour) -> Worker:
        self.socket.unlink(missing_ok=True)
        return Worker(self.socket, *behaviours)

    def environment(self, command: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c0ffee",
            "CNI_IFNAME": "eth0",
            "PLUMBLINE_SOCKET": str(self.socket),
            "PLUMBLINE_SPOOL": str(self.spool),
            "PLUMBLINE_DEADLINE": str(self._deadline),
        }

    def call(
        self, command: str, stdin: bytes = b"{}", env: Mapping[str, str | bytes | None] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command to its end; *env* changes the environment, and None takes a variable out."""
        merged = {**self.environment(command), **(env or {})}
        raw = {os.fsencode(key): os.fsencode(value) for key, value in merged.items() if value is not None}
        with tempfile.TemporaryFile() as file:  # made at the start: no deadline depends on when a pipe is written to
            file.write(stdin)
            file.seek(0)
            done = subprocess.run([self.binary], stdin=file, env=raw, capture_output=True, timeout=60, check=False)
        assert done.stderr == b"", done.stderr.decode(errors="replace")
        return done

    def spooled(self) -> list[Path]:
        return sorted(self.spool.iterdir()) if self.spool.exists() else []


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the CNI error object that *done* printed, checked for its form."""
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error.keys() == {"cniVersion", "code", "msg"}
    assert error["msg"]
    return error
