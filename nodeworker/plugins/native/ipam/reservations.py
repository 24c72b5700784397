"""The folder in which host-local remembers who has which address, shared with the executed plugin.

One file for each address, named after it, says whose it is; ``last_reserved_ip.<range set>`` says where to go on; all
of it is done under an exclusive flock(2) of the file ``lock``. To read all files costs 6 ms when there are 2,000, so
what they say is kept from one use to the next.

What is kept must not be trusted after somebody else was here. Every change of the folder sets its modification time,
but to a clock that stands still for milliseconds; so whoever keeps what it says sets that time to a nanosecond of its
own choice, the seal, which such a clock does not hit again. After somebody else was here, what is the same file by name
and inode is taken to say the same: an inode may come again, so what a file says is read once more where it is acted on.

A file appears complete or not at all, whenever its writer is killed: it is written without a name, and then linked.
The disk is not waited for, as the executed plugin does not wait either: a power cut may leave a name without content,
but no container either, and what is torn is freed with what the reboot has left (``nodeworker.leaks``). All addresses
of one interface are links to one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from nodeworker.plugins.native.ipam.addresses import Address, address

_LOCK_PATIENCE: Final = 10.0
_LOCK_PAUSES: Final = (0.0005, 0.01)
"""Seconds between attempts to lock: the first pause, which doubles, and the longest."""
_FILES_KEPT: Final = 16_384
"""How many files' contents are kept, over all folders: at most some 5 MB."""
LONGEST: Final = 4096
"""Bytes that are read of a file: more than any owner's name has."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_NO_UNNAMED_FILES: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR})
"""What opening a file without a name ends with where the file system has no such thing."""


class _File(NamedTuple):
    """One of a folder."""

    inode: int
    owner: bytes
    """What it says; an empty text for what can't be read."""


_Contents: TypeAlias = dict[str, _File]
"""The files of a folder by name."""


class BusyError(Exception):
    """Somebody else held the folder's lock for all the time, or replaced the folder."""


class _Kept(msgspec.Struct, frozen=True):
    seal: int
    """The folder's modification time in nanoseconds: while it has that, it contains what is kept."""
    contents: _Contents


class _Memory:
    """What folders contained when this process last had their locks."""

    def __init__(self) -> None:
        self._folders: OrderedDict[tuple[int, int], _Kept] = OrderedDict()
        self._mutex = threading.Lock()

    def recall(self, folder: os.stat_result) -> tuple[_Contents, bool]:
        """Return what was in *folder*, and whether it is certain that nobody has changed it."""
        kept = self._folders.get((folder.st_dev, folder.st_ino))
        return (kept.contents, kept.seal == folder.st_mtime_ns) if kept else ({}, False)

    def keep(self, folder: os.stat_result, contents: _Contents) -> None:
        """Keep what is in *folder*, and forget what is older if that is too much."""
        with self._mutex:
            key = (folder.st_dev, folder.st_ino)
            self._folders[key] = _Kept(folder.st_mtime_ns, contents)
            self._folders.move_to_end(key)
            while self._folders and sum(len(each.contents) for each in self._folders.values()) > _FILES_KEPT:
                self._folders.popitem(last=False)


_memory = _Memory()
"""Of the process, because plugins are modules. Forgetting it costs time and nothing else."""

_turns: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
"""For each folder that is waited for, whose turn it is among the threads of the process."""
_turns_mutex = threading.Lock()


class Folder:
    """The folder, while its lock is held. All methods raise OSError."""

    def __init__(self, fd: int, staged: int | None) -> None:
        self._fd = fd
        self._staged = staged
        known, unchanged = _memory.recall(os.fstat(fd))
        self._contents = known if unchanged else _read_all(fd, known)
        self._changed = not unchanged

    def held_by(self, owner: bytes) -> list[Address]:
        """Return the addresses whose files say *owner*, in their order."""
        names = [name for name, file in self._contents.items() if file.owner == owner]
        # The folder's time does not tell of a file that was written to in place.
        names = [name for name in names if _read(self._fd, name) == owner]
        found = [each for name in names if (each := address_of(name)) is not None]
        return sorted(found, key=lambda each: (each.version, int(each)))

    def reservations(self) -> dict[Address, bytes]:
        """Return the addresses that have a file, and what it was last known to say."""
        return {each: file.owner for name, file in self._contents.items() if (each := address_of(name)) is not None}

    def reserve(self, wanted: Address, owner: bytes) -> bool:
        """Make *wanted* the *owner*'s; return False if it is taken, be it by something that is no reservation."""
        name = str(wanted)
        if name in self._contents:
            return False
        self._changed = True
        try:
            inode = self._create(name, owner)
        except FileExistsError:
            # Somebody who does not lock was here.
            self._contents[name] = _File(0, _read(self._fd, name))
            return False
        self._contents[name] = _File(inode, owner)
        return True

    def free(self, held: Address, owner: bytes) -> bool:
        """Free *held* if its file says *owner* indeed, and return whether it did."""
        name = str(held)
        confirmed = _read(self._fd, name) == owner
        if confirmed:
            self._changed = True
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
        self._contents.pop(name, None)
        return confirmed

    def last_reserved(self, range_set: int) -> Address | None:
        """Return the address that was reserved last of the *range_set*, None if that is not known."""
        try:
            return address(_read(self._fd, _last_reserved(range_set)).decode())
        except ValueError:
            return None

    def remember(self, range_set: int, reserved: Address) -> None:
        """Note *reserved* as the last of the *range_set*."""
        name = _last_reserved(range_set)
        self._changed |= name not in self._contents
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=self._fd)
        try:
            # Not emptied before: ext4 would write the blocks out at once. What a kill leaves is a worse start at most.
            text = str(reserved).encode()
            _write(fd, text)
            os.ftruncate(fd, len(text))
        finally:
            os.close(fd)
        self._contents.setdefault(name, _File(0, b""))

    def seal(self) -> None:
        """Keep what is known of the folder for the next time, if it can be told then whether it still holds."""
        if not self._changed:
            return
        # Odd, so that a file system which keeps microseconds or less can't have it either: that would be no seal.
        chosen = time.time_ns() | 1
        with contextlib.suppress(OSError):
            os.utime(self._fd, ns=(chosen, chosen))
            status = os.fstat(self._fd)
            if status.st_mtime_ns == chosen:
                _memory.keep(status, self._contents)

    def _create(self, name: str, owner: bytes) -> int:
        """Make the file, and return its inode."""
        if self._staged is not None:
            os.link(f"/proc/self/fd/{self._staged}", name, dst_dir_fd=self._fd, follow_symlinks=True)
            return os.fstat(self._staged).st_ino
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._fd)
        try:
            _write(fd, owner)
            return os.fstat(fd).st_ino
        except OSError:
            os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked(path: str, *, owner: bytes | None = None, patience: float = _LOCK_PATIENCE) -> Iterator[Folder]:
    """Hold the lock of the folder at *path*, which is made if it is missing and there is an *owner* to reserve for.

    *patience* are the seconds to wait for the lock, which is held for milliseconds by whoever is alive.

    Raises OSError, FileNotFoundError among them when there is no folder; BusyError.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = _opened(stack, path, _FOLDER)
        except FileNotFoundError:
            if owner is None:
                raise
            os.makedirs(path, mode=0o755, exist_ok=True)
            fd = _opened(stack, path, _FOLDER)
        staged = None if owner is None else _stage(stack, fd, owner)
        lock = _opened(stack, "lock", os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK, 0o750, folder=fd)
        _wait_for(stack, lock, path, patience)
        # Closing is not enough while a child that was just forked still has the file open.
        stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
        if not os.path.samestat(os.fstat(lock), os.stat(f"{path}/lock")):
            raise BusyError(f"{path} was replaced in the meantime")
        folder = Folder(fd, staged)
        try:
            yield folder
        finally:
            folder.seal()


def address_of(name: str) -> Address | None:
    """Return the address that a file of that *name* stands for, None for a file of another kind."""
    try:
        parsed = address(name)
    except ValueError:
        return None
    return parsed if str(parsed) == name else None


def _opened(stack: contextlib.ExitStack, name: str, flags: int, mode: int = 0o644, *, folder: int | None = None) -> int:
    fd = os.open(name, flags, mode, dir_fd=folder)
    stack.callback(os.close, fd)
    return fd


def _stage(stack: contextlib.ExitStack, folder: int, owner: bytes) -> int | None:
    """Return a file without a name that says *owner*; None where there is no such thing."""
    try:
        fd = _opened(stack, ".", os.O_WRONLY | os.O_TMPFILE, folder=folder)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise
    _write(fd, owner)
    return fd


def _wait_for(stack: contextlib.ExitStack, lock: int, path: str, patience: float) -> None:
    """Wait for the turn among the threads of this process, which costs no pauses, then for other processes."""
    deadline = time.monotonic() + patience
    with _turns_mutex:
        turn = _turns.setdefault(path, threading.Lock())
    if not turn.acquire(timeout=patience):
        raise _busy(path)
    stack.callback(turn.release)
    pause, longest = _LOCK_PAUSES
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _busy(path) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _busy(path: str) -> BusyError:
    return BusyError(f"{path}/lock is held by another process")


def _read_all(folder: int, known: _Contents) -> _Contents:
    """Return the files of the folder; those that are *known* are not read again."""
    contents: _Contents = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            file = known.get(entry.name)
            if file is None or file.inode != entry.inode():
                file = _File(entry.inode(), _read(folder, entry.name))
            contents[entry.name] = file
    return contents


def _read(folder: int, name: str) -> bytes:
    """Return what the file says without the space around it, an empty text for what is no file that can be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return b""
    try:
        return os.read(fd, LONGEST).strip()
    except OSError:
        return b""
    finally:
        os.close(fd)


def _write(fd: int, content: bytes) -> None:
    if os.write(fd, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _last_reserved(range_set: int) -> str:
    return f"last_reserved_ip.{range_set}"
