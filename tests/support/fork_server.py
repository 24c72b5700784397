"""Start Python programs by fork, from a process that has imported their modules already.

A worker spends most of its start on imports, and the tests start several hundred. A program that is forked here runs
in the ``__main__`` of a module, with arguments, environment, folder, standard files and network namespace of its own,
and ends as an interpreter ends. ``test_fork_server`` compares it with one that is executed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from events.process.child_process import die_with_parent
from tests.support.repository import REPOSITORY

_FLAGS = ("-W", "error")
_CLONE_NEWNET = 0x40000000
_MESSAGE_BYTES = 512 * 1024
_NUMBER_BYTES = 4
_POLL = 0.01
_STANDARD_FILES = 3


class ForkedProcess:
    """A program that a fork server has started, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, reports: socket.socket, args: Sequence[str]) -> None:
        self._reports = reports
        self._args = args
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        data = self._reports.recv(_NUMBER_BYTES, socket.MSG_WAITALL)
        assert len(data) == _NUMBER_BYTES, f"the fork server ended while it ran {self._args}"
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
                    [sys.executable, *_FLAGS, "-m", "tests.support.fork_server", str(theirs.fileno()), *self._modules],
                    cwd=REPOSITORY,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    preexec_fn=lambda: _enter(self._network),  # noqa: PLW1509  # no lock is taken there
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
        request = _Request(program, {**os.environ, **(env or {})}, str(cwd))
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


class _Request(NamedTuple):
    program: Sequence[str]
    env: Mapping[str, str]
    cwd: str


def _serve(control: socket.socket) -> tuple[_Request, Sequence[int]] | None:
    """Fork for each request until the client closes *control*; return the request in the child, None in the server."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    pid, reports = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _report(reports, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    reports.close()
                    continue
                message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 5)
                if not message:
                    return None
                tie = die_with_parent()
                pid = os.fork()
                if not pid:
                    tie()
                    for pidfd, (_, reports) in running.items():
                        os.close(pidfd)
                        reports.close()
                    return _Request(*json.loads(message)), descriptors
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                reports = socket.socket(fileno=descriptors[0])
                _report(reports, pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = (pid, reports)
                selector.register(pidfd, selectors.EVENT_READ)


def _report(reports: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client may have lost interest
        reports.sendall(number.to_bytes(_NUMBER_BYTES, "big", signed=True))


def _furnish(request: _Request, descriptors: Sequence[int]) -> None:
    """Give the child what *request* asks for, and close what belongs to the server."""
    _, network, *standard = descriptors
    _enter(network)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(_STANDARD_FILES, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)


def _enter(network: int) -> None:
    """Enter the network namespace that *network* is open at; without root there is but one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET) and ctypes.get_errno() != errno.EPERM:
        raise OSError(ctypes.get_errno(), "setns")


def _run(program: Sequence[str]) -> None:
    """Run *program* as the interpreter does that has it on its command line."""
    kind, *rest = program
    if kind == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        for module in (rest[0], f"{rest[0]}.__main__"):  # runpy warns of a module that it is to run and finds imported
            if module.rpartition(".")[2] == "__main__" or not hasattr(sys.modules.get(module), "__path__"):
                sys.modules.pop(module, None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.argv = [kind, *rest]
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Import the modules that the command line names, and serve; in a child, run its program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork takes along what other threads hold"
    gc.freeze()  # a child that looked for garbage in all of this would copy it
    forked = _serve(control)
    control.close()
    if forked is not None:
        request, descriptors = forked
        _furnish(request, descriptors)
        _run(request.program)


if __name__ == "__main__":
    main()
