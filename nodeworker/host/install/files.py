"""Change files that a container runtime reads: at every moment a file has the complete old or new content."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock *folder* against other installers. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, mode: int) -> bool:
    """Give *path*, in a locked folder, *content* and *mode*; return whether that changed it.

    A program that runs from *path* continues. Durable at return. Raises OSError.
    """
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)  # of an installer that was killed: the folder is locked
    if _is_current(path, content, mode):
        return False
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        move(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return True


def move(path: Path, to: Path) -> None:
    """Rename *path*, durably. Raises OSError."""
    path.replace(to)
    _sync(to.parent)


def remove(path: Path) -> bool:
    """Remove *path*, durably; return whether it existed. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _sync(path.parent)
    return True


def _is_current(path: Path, content: bytes, mode: int) -> bool:
    try:
        return path.read_bytes() == content and stat.S_IMODE(path.stat().st_mode) == mode
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
