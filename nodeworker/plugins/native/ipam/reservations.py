"""The folder in which host-local reserves addresses, shared with the executed plugin.

Each reserved address has a file of its name, which contains the owner. ``last_reserved_ip.<range set>`` contains the
last address of a range set. All changes need an exclusive flock(2) of the file ``lock``. Reading 2,000 files takes
6 ms, so the process caches their contents.

The cache is invalid after another process changed the folder. Each change sets the folder's modification time, but by a
clock with a resolution of milliseconds. So before it caches, this process sets that time to a chosen nanosecond,
the seal, which such a clock does not hit again. After a foreign change, a file with the same name and inode is taken to
be unchanged. Inodes are reused, so a file is read again before an action depends on it.

Where the file system has files without a name, a kill leaves a complete file or none: the file is written, and
then gets its name. Like the executed plugin, this one does not wait for the disk. A power cut may leave a file without
content, but its container is gone too, and the cleanup after the reboot frees it (``nodeworker.leaks``). All addresses
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

from nodeworker.plugins.spec.addresses import Address, address

_LOCK_TIMEOUT: Final = 10.0
_LOCK_PAUSES: Final = (0.0005, 0.01)
"""Seconds between attempts to lock: the first pause, which doubles, and the longest."""
_MAX_CACHED_FILES: Final = 16_384
"""Upper bound of cached files over all folders: about 5 MB."""
LONGEST: Final = 4096
"""Bytes read of a file: more than any owner has."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_NO_UNNAMED_FILES: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR})
"""Errors of opening a file without a name if the file system does not support it."""


class _File(NamedTuple):
    """A file of the folder."""

    inode: int
    owner: bytes
    """Its content; empty if it can't be read."""


_Contents: TypeAlias = dict[str, _File]
"""The files of a folder by name."""


class BusyError(Exception):
    """Another process or thread held the folder's lock until the timeout, or replaced the folder."""


class _CacheEntry(msgspec.Struct, frozen=True):
    seal: int
    """The folder's modification time in nanoseconds: while it is the same, the contents are valid."""
    contents: _Contents


class _ContentsCache:
    """The contents of folders when this process last had their locks."""

    def __init__(self) -> None:
        self._folders: OrderedDict[tuple[int, int], _CacheEntry] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, folder: os.stat_result) -> tuple[_Contents, bool]:
        """Return the cached contents of *folder*, and whether they are certainly unchanged."""
        entry = self._folders.get((folder.st_dev, folder.st_ino))
        return (entry.contents, entry.seal == folder.st_mtime_ns) if entry else ({}, False)

    def put(self, folder: os.stat_result, contents: _Contents) -> None:
        """Cache the contents of *folder*, and evict the oldest folders above the bound."""
        with self._mutex:
            key = (folder.st_dev, folder.st_ino)
            self._folders[key] = _CacheEntry(folder.st_mtime_ns, contents)
            self._folders.move_to_end(key)
            while self._folders and sum(len(each.contents) for each in self._folders.values()) > _MAX_CACHED_FILES:
                self._folders.popitem(last=False)


_cache = _ContentsCache()
"""One for the process, because plugins are modules."""

_thread_locks: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
"""A lock per folder among the threads of the process, which flock(2) with its pauses would slow down."""
_thread_locks_mutex = threading.Lock()


class Folder:
    """The locked folder. All methods raise OSError."""

    def __init__(self, fd: int, staged: int | None) -> None:
        self._fd = fd
        self._staged = staged
        known, unchanged = _cache.get(os.fstat(fd))
        self._contents = known if unchanged else _read_all(fd, known)
        self._changed = not unchanged

    def held_by(self, owner: bytes) -> list[Address]:
        """Return the addresses of *owner*, IPv4 first, in ascending order."""
        names = [name for name, file in self._contents.items() if file.owner == owner]
        # A write into an existing file does not change the folder's time.
        names = [name for name in names if _read(self._fd, name) == owner]
        found = [each for name in names if (each := address_of(name)) is not None]
        return sorted(found, key=lambda each: (each.version, int(each)))

    def reservations(self) -> dict[Address, bytes]:
        """Return the reserved addresses with their owners, as of the last reading."""
        return {each: file.owner for name, file in self._contents.items() if (each := address_of(name)) is not None}

    def owner_of(self, reserved: Address) -> bytes:
        """Return the owner in the file of *reserved* now; empty if it can't be read."""
        return _read(self._fd, str(reserved))

    def reserve(self, wanted: Address, owner: bytes) -> bool:
        """Reserve *wanted* for *owner*; return False if a file of its name exists, even if that is no reservation."""
        name = str(wanted)
        if name in self._contents:
            return False
        self._changed = True
        try:
            inode = self._create(name, owner)
        except FileExistsError:
            # Another process created it without the lock.
            self._contents[name] = _File(0, _read(self._fd, name))
            return False
        self._contents[name] = _File(inode, owner)
        return True

    def free(self, held: Address, owner: bytes) -> bool:
        """Free *held* if its file still names *owner*; return whether it did."""
        name = str(held)
        confirmed = _read(self._fd, name) == owner
        if confirmed:
            self._changed = True
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
        self._contents.pop(name, None)
        return confirmed

    def last_reserved(self, range_set: int) -> Address | None:
        """Return the last reserved address of the *range_set*, None if unknown."""
        try:
            return address(_read(self._fd, _last_reserved(range_set)).decode())
        except ValueError:
            return None

    def remember(self, range_set: int, reserved: Address) -> None:
        """Record *reserved* as the last address of the *range_set*."""
        name = _last_reserved(range_set)
        self._changed |= name not in self._contents
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=self._fd)
        try:
            # No truncation before the write: ext4 would flush the blocks at once. A kill in between only changes the
            # address at which the next search starts.
            text = str(reserved).encode()
            _write(fd, text)
            os.ftruncate(fd, len(text))
        finally:
            os.close(fd)
        self._contents.setdefault(name, _File(0, b""))

    def seal(self) -> None:
        """Cache the contents, if the file system can store the seal that proves them unchanged."""
        if not self._changed:
            return
        # Odd, so that a file system with a resolution of microseconds or less can't store it: it would be no seal.
        chosen = time.time_ns() | 1
        with contextlib.suppress(OSError):
            os.utime(self._fd, ns=(chosen, chosen))
            status = os.fstat(self._fd)
            if status.st_mtime_ns == chosen:
                _cache.put(status, self._contents)

    def _create(self, name: str, owner: bytes) -> int:
        """Create the file and return its inode."""
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
def locked(path: str, *, owner: bytes | None = None, timeout: float = _LOCK_TIMEOUT) -> Iterator[Folder]:
    """Lock the folder at *path*, which is created if missing when an *owner* is to reserve in it.

    *timeout*: seconds to wait for the lock, which a live process holds for milliseconds.

    Raises BusyError; OSError, of which FileNotFoundError means that the folder is missing.
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
        _wait_for(stack, lock, path, timeout)
        # Closing does not unlock while a child that was just forked has the file open.
        stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
        if not os.path.samestat(os.fstat(lock), os.stat(f"{path}/lock")):
            raise BusyError(f"{path} was replaced while it was locked")
        folder = Folder(fd, staged)
        try:
            yield folder
        finally:
            folder.seal()


def owner(container_id: str, ifname: str) -> bytes:
    """Return the content of a reservation for that interface."""
    return f"{container_id}\r\n{ifname}".encode()


def address_of(name: str) -> Address | None:
    """Return the address that a file called *name* reserves, None for any other file."""
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
    """Return a file without a name that contains *owner*; None if the file system does not support it."""
    try:
        fd = _opened(stack, ".", os.O_WRONLY | os.O_TMPFILE, folder=folder)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise
    _write(fd, owner)
    return fd


def _wait_for(stack: contextlib.ExitStack, lock: int, path: str, timeout: float) -> None:
    """Lock out the other threads of this process, which needs no polling, then other processes."""
    ends_at = time.monotonic() + timeout
    with _thread_locks_mutex:
        thread_lock = _thread_locks.setdefault(path, threading.Lock())
    if not thread_lock.acquire(timeout=timeout):
        raise _busy(path)
    stack.callback(thread_lock.release)
    pause, longest = _LOCK_PAUSES
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends_at:
                raise _busy(path) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _busy(path: str) -> BusyError:
    return BusyError(f"{path}/lock is held by another process")


def _read_all(folder: int, known: _Contents) -> _Contents:
    """Return the files of the folder; the content of *known* ones is not read again."""
    contents: _Contents = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            file = known.get(entry.name)
            if file is None or file.inode != entry.inode():
                file = _File(entry.inode(), _read(folder, entry.name))
            contents[entry.name] = file
    return contents


def _read(folder: int, name: str) -> bytes:
    """Return the stripped content of the file, empty if it can't be read."""
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
