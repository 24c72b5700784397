"""A temporary folder that disappears with the process that made it.

A killed process can't remove its folder. But the kernel releases the folder's lock, so the next process recognizes
abandoned folders by their free locks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Scratch:
    """A new folder in the one for temporary files (``TMPDIR``); its name begins with *prefix*.

    The constructor first removes the folders of dead processes.
    """

    def __init__(self, prefix: str) -> None:
        for folder, lock in _abandoned(prefix):
            _remove(folder, lock)
        self.path, self._lock = _make_locked(prefix)

    def close(self) -> None:
        """Remove the folder."""
        _remove(self.path, self._lock)


def _abandoned(prefix: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of dead processes, each with its lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        lock = _lock(folder)
        if lock is not None:
            yield folder, lock


def _make_locked(prefix: str) -> tuple[Path, int]:
    while True:  # before it is locked, another process may take it for an abandoned one
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """Return the lock of *folder*; None if another process has it, or the folder is another user's or gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.is_dir():  # else another process removed it between open and lock
                return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
