"""The lock in the run folder: a node's events have one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

_TIMEOUT = 5.0
"""Seconds to wait for the lock: the native processes of a killed worker hold it until the kernel has ended them."""


class WorkerRunningError(OSError):
    """The node has a worker already."""


@contextlib.contextmanager
def only_worker(run_dir: Path) -> Iterator[int]:
    """Hold the lock of *run_dir* during the block, and as long as any process has the yielded descriptor open.

    It waits a few seconds for the lock, and blocks meanwhile. Call it in the main thread, which gets the alarm that
    ends the wait. Raises WorkerRunningError.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_dir / "worker.lock").open("w") as lock:
        try:
            with _alarm(_TIMEOUT):
                fcntl.flock(lock, fcntl.LOCK_EX)
        except TimeoutError:
            raise WorkerRunningError(
                f"another worker has locked {lock.name}: stop it, because a node has one worker"
            ) from None
        yield lock.fileno()


def version() -> str:
    """Return the installed version of Plumbline."""
    try:
        return importlib.metadata.version("plumbline")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block, also out of a blocking system call, after *seconds*."""
    previous = signal.signal(signal.SIGALRM, _time_out)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _time_out(*_: object) -> NoReturn:
    raise TimeoutError
