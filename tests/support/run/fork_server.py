"""Start Python programs by fork, from a process that has imported their modules already.

A worker spends most of its start on imports, and the tests start several hundred. A program that is forked here runs
in the ``__main__`` of a module, with arguments, environment, folder, standard files and network namespace,
and ends as an interpreter ends. ``test_fork_server`` compares it with one that is executed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.repository import REPOSITORY
from tests.support.run.fork_server_main import NUMBER_BYTES, Request, enter

_FLAGS = ("-W", "error")
_POLL = 0.01


class ForkedProcess:
    """A program that a fork server has started, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, reports: socket.socket, args: Sequence[str]) -> None:
        self._reports = reports
        self._args = args
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        data = self._reports.recv(NUMBER_BYTES, socket.MSG_WAITALL)
        assert len(data) == NUMBER_BYTES, f"the fork server ended while it ran {self._args}"
        return int.from_bytes(data, "big", signed=True)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the program has ended. Raises TimeoutExpired after *timeout* seconds."""
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self._args), timeout or 0)
            self.returncode = self._number()
            self._reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the signal *number*, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ListenedProcess:
    """A program whose standard error is a stream, with the methods of ``asyncio.subprocess.Process`` that tests use."""

    def __init__(self, process: ForkedProcess, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self.stderr = stderr
        self.send_signal = process.send_signal
        self.kill = process.kill

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the program runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Return the exit code once the program has ended."""
        while (code := self._process.poll()) is None:  # noqa: ASYNC110  # the server reports it to a blocking socket
            await asyncio.sleep(_POLL)
        return code

    async def communicate(self) -> tuple[bytes, bytes]:
        """Return nothing, and what the program writes to standard error until it ends."""
        stderr = await self.stderr.read()
        await self.wait()
        return b"", stderr


class ForkServer:
    """A process that has imported *modules* and forks a program for each request.

    It starts with the first program, and ends with this process, and its programs with it. Make it outside of the
    network namespaces of tests: it stays where it was made, and would keep them.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._network = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _connected(self) -> socket.socket:
        """Return the connection to the server, which is started where it does not run."""
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        *_FLAGS,
                        "-m",
                        "tests.support.run.fork_server_main",
                        str(theirs.fileno()),
                        *self._modules,
                    ],
                    cwd=REPOSITORY,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    preexec_fn=lambda: enter(self._network),  # noqa: PLW1509  # no lock is taken there
                )
            atexit.register(self.close)
        return self._control

    def start(
        self,
        *program: str,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> ForkedProcess:
        """Start ``python`` with the arguments *program*, which begin with ``-m MODULE``, ``-c CODE`` or a script.

        The program runs in the network namespace of the calling thread. *env* changes this process' environment.
        """
        request = Request(program, {**os.environ, **(env or {})}, str(cwd))
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            files = [stack.enter_context(open(path, "rb")) for path in ("/proc/thread-self/ns/net", os.devnull)]
            descriptors = [theirs.fileno(), *(file.fileno() for file in files)]
            descriptors += [file if isinstance(file, int) else file.fileno() for file in (stdout, stderr)]
            socket.send_fds(self._connected(), [json.dumps(request).encode()], descriptors)
        return ForkedProcess(ours, program)

    def run(
        self, *program: str, env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with the arguments *program*; return its output. Raises TimeoutExpired."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self.start(*program, stdout=stdout, stderr=stderr, env=env)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            texts: list[str] = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(program), code, *texts)

    async def listen(self, *program: str) -> ListenedProcess:
        """Start ``python`` with the arguments *program* and read its standard error."""
        reading, writing = os.pipe()
        try:
            process = self.start(*program, stdout=1, stderr=writing)
        finally:
            os.close(writing)
        reader = asyncio.StreamReader()
        pipe = os.fdopen(reading, "rb", 0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return ListenedProcess(process, reader)

    def close(self) -> None:
        """End the server, if it runs, and wait for it."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait()


_COMMANDS = [f"reconciler.cli.{name}" for name in ("adopt", "install", "rebuild", "timeline", "verify")]

WORKER = ForkServer("nodeworker.__main__", "nodeworker.planning.cluster.manifests")
"""Forks ``-m nodeworker``, and what builds on it."""
RECONCILER = ForkServer("reconciler.__main__", "reconciler.cli.main", *_COMMANDS)
"""Forks ``-m reconciler``, and the commands of ``plumbline``."""


def plumbline(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``plumbline`` with *words* and the configuration at *config*."""
    return RECONCILER.run("-c", "from reconciler.cli.main import main; main()", "--config", str(config), *words)
