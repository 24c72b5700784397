"""Watch for removed network namespaces: runtimes delete their files from a folder.

An inotify(7) event only triggers a scan, so a lost event does no harm. Namespaces of processes, under ``/proc``, vanish
without an event; the next scan finds them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger(__name__)

_IN_DELETE = 0x200
_IN_MOVED_FROM = 0x40
_IN_ONLYDIR = 0x01000000
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_BUFFER = 64 * 1024
_EVENT = struct.Struct("=iIII")
"""Watch descriptor, mask, cookie, length of the name that follows."""

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceWatch:
    """An inotify watch of folders. Call ``close`` at the end."""

    def __init__(self, on_removed: Callable[[set[str]], None]) -> None:
        """*on_removed* is called with the names of the files that were removed from any of the folders."""
        self._on_removed = on_removed
        self._fd = _libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
        self._watched: dict[str, int] = {}
        if self._fd < 0:
            log.warning("namespaces_not_watched", error=os.strerror(ctypes.get_errno()))
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def follow(self, netns: Iterable[str]) -> None:
        """Watch the folders of these namespaces only. Call it again after a folder may have been recreated."""
        folders = {os.path.dirname(path) for path in netns if path.startswith("/") and not path.startswith("/proc/")}
        for folder in self._watched.keys() - folders:
            self._unwatch(folder)
        for folder in folders:
            self._watch(folder)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _watch(self, folder: str) -> None:
        """Watch *folder*. For a folder that is watched already, the kernel returns the same watch descriptor."""
        if self._fd < 0:
            return
        flags = _IN_DELETE | _IN_MOVED_FROM | _IN_ONLYDIR
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(folder), flags)
        if watch >= 0:
            self._watched[folder] = watch
        else:
            self._watched.pop(folder, None)

    def _unwatch(self, folder: str) -> None:
        watch = self._watched.pop(folder)
        if self._fd >= 0 and watch not in self._watched.values():
            _libc.inotify_rm_watch(self._fd, watch)

    def _read(self) -> None:
        try:
            events = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        names: set[str] = set()
        start = 0
        while start + _EVENT.size <= len(events):
            *_, length = _EVENT.unpack_from(events, start)
            start += _EVENT.size + length
            names.add(os.fsdecode(events[start - length : start].rstrip(b"\0")))
        self._on_removed(names)
