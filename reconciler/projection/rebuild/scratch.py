"""A folder for what is drawn up in files, which goes with the process that does so.

A process that is killed can't take it away. But the kernel then lets go of the folder's lock, and whoever makes the
next folder knows by that which ones nobody works in any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Scratch:
    """A new folder of this process, in the one for temporary files (``TMPDIR``); its name begins with *prefix*.

    Those of processes that are gone are taken away first.
    """

    def __init__(self, prefix: str) -> None:
        for folder, lock in _left(prefix):
            _remove(folder, lock)
        self.path, self._lock = _locked(prefix)

    def close(self) -> None:
        """Take the folder away."""
        _remove(self.path, self._lock)


def _left(prefix: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of processes that are gone, each with its lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        lock = _lock(folder)
        if lock is not None:
            yield folder, lock


def _locked(prefix: str) -> tuple[Path, int]:
    while True:  # until it has its lock somebody else may take it for one that was left
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """Return the lock of *folder*, None where another has it, or the folder is another user's or gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.is_dir():  # else it was taken away between the two
                return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
