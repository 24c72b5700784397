"""Run the tests in separate namespaces, so that two concurrent runs share nothing of the machine.

The run has its own network with a loopback, its own processes, its own IPC, and an empty ``/run`` and ``/var/lib/cni``.
What a test leaves behind ends with the run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_EMPTY = ("/run", "/var/lib/cni")

_libc = ctypes.CDLL(None, use_errno=True)


def isolate() -> int | None:
    """Move the run into new namespaces. Return None in the process that is to run the tests.

    The calling process waits for that one and returns its exit code. Between the two is the first process of the new
    process namespace, which reaps orphans. Raises OSError where the kernel refuses.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    if init := os.fork():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests get it too, and report
        return _exit_code(os.waitpid(init, 0)[1])
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    _furnish()
    if tests := os.fork():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os._exit(_reap(tests))
    return None


def _furnish() -> None:
    """Give the new namespaces what programs expect in them."""
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for folder in _EMPTY:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _reap(tests: int) -> int:
    """Wait for every process until *tests* ends, and return the exit code of that one."""
    while True:
        ended, status = os.wait()
        if ended == tests:
            return _exit_code(status)


def _exit_code(status: int) -> int:
    """Return the exit code, as a shell has it where a signal ended the process."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    _call("mount", *words, flags, options.encode())


def _call(function: str, *args: int | bytes | None) -> None:
    if _libc[function](*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
