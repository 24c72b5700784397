"""The process of a fork server: it imports modules, forks for each request, and reports how each child ended."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from events.process.child_process import die_with_parent

NUMBER_BYTES = 4
"""Length of a process ID or exit code on a report socket."""

_CLONE_NEWNET = 0x40000000
_MESSAGE_BYTES = 512 * 1024
_STANDARD_FILES = 3


class Request(NamedTuple):
    """The arguments of ``python``, and what surrounds the program."""

    program: Sequence[str]
    env: Mapping[str, str]
    cwd: str


def _serve(control: socket.socket) -> tuple[Request, Sequence[int]] | None:
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
                    return Request(*json.loads(message)), descriptors
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                reports = socket.socket(fileno=descriptors[0])
                _report(reports, pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = (pid, reports)
                selector.register(pidfd, selectors.EVENT_READ)


def _report(reports: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client may have lost interest
        reports.sendall(number.to_bytes(NUMBER_BYTES, "big", signed=True))


def _furnish(request: Request, descriptors: Sequence[int]) -> None:
    """Give the child what *request* asks for, and close what belongs to the server."""
    _, network, *standard = descriptors
    enter(network)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(_STANDARD_FILES, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.cwd)


def enter(network: int) -> None:
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
    assert threading.active_count() == 1, "a fork would copy locks that other threads hold"
    gc.freeze()  # a child that looked for garbage in all of this would copy it
    forked = _serve(control)
    control.close()
    if forked is not None:
        request, descriptors = forked
        _furnish(request, descriptors)
        _run(request.program)


if __name__ == "__main__":
    main()
