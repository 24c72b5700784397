"""The lock in the run folder: a node's events have one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path


class WorkerRunningError(OSError):
    """The node has a worker already."""


@contextlib.contextmanager
def only_worker(run_dir: Path) -> Iterator[int]:
    """Hold the lock of *run_dir* during the block, and as long as any process has the yielded descriptor open.

    Raises WorkerRunningError.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_dir / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkerRunningError(f"another worker holds {lock.name}: a node has one") from None
        yield lock.fileno()


def version() -> str:
    """Return the installed version of Plumbline."""
    try:
        return importlib.metadata.version("plumbline")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
