"""Keep what was built in a folder of the user's, so that it is built once for every checkout, wheel and test.

Standard library only: the wheel's build hook runs it before Plumbline's dependencies are installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def user_folder() -> Path:
    """Return the folder for Plumbline's caches of this user, as XDG names it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plumbline"


class BuildCache:
    """Files by key. A file's suffix is the digest of its content, so a damaged file counts as absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> Path | None:
        """Return the intact file for *key*, or None."""
        return next((file for file in self._folder.glob(f"{key}.*") if file.suffix == _suffix(file)), None)

    def obtain(self, key: str, build: Callable[[Path], None], wait: Callable[[], None] = lambda: None) -> Path:
        """Return the file for *key*, which *build* writes to the path it gets, unless there is one.

        One process builds at a time; the others call *wait* once, and then use its file. Raises what *build* raises,
        and OSError where the folder can't be written.
        """
        if found := self.find(key):
            return found
        self._folder.mkdir(parents=True, exist_ok=True)
        with _lock(self._folder / "lock", wait):
            return self.find(key) or self._build(key, build)

    def _build(self, key: str, build: Callable[[Path], None]) -> Path:
        with tempfile.TemporaryDirectory(prefix="building-", dir=self._folder) as folder:
            draft = Path(folder, "draft")
            build(draft)
            return draft.replace(self._folder / f"{key}{_suffix(draft)}")


def _suffix(file: Path) -> str:
    return f".{hashlib.sha256(file.read_bytes()).hexdigest()}"


@contextmanager
def _lock(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at *path*. The kernel releases it when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
