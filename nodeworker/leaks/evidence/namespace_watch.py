"""Hear of namespaces that go, as it happens: their files are removed from the folders that runtimes make them in.

What the kernel tells of (inotify(7)) is only a reason to look, so it does not matter if something is lost. Namespaces
of processes, below ``/proc``, go silently; they are found by the next look.
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
"""Watch, what happened, cookie, length of the name behind it."""

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceWatch:
    """Watches folders. Close it."""

    def __init__(self, gone: Callable[[set[str]], None]) -> None:
        """*gone* is called with the names of what was removed from any of the folders."""
        self._gone = gone
        self._fd = _libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
        self._watched: dict[str, int] = {}
        if self._fd < 0:
            log.warning("namespaces_not_watched", error=os.strerror(ctypes.get_errno()))
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._hear)

    def follow(self, netns: Iterable[str]) -> None:
        """Watch the folders of these namespaces, and no others. A folder that is gone is watched when it is back."""
        folders = {os.path.dirname(path) for path in netns if path.startswith("/") and not path.startswith("/proc/")}
        for folder in self._watched.keys() - folders:
            self._forget(folder)
        for folder in folders:
            self._watch(folder)

    def close(self) -> None:
        """Watch nothing any more."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _watch(self, folder: str) -> None:
        """Watch *folder*, which is the same watch if it is the same folder still."""
        if self._fd < 0:
            return
        flags = _IN_DELETE | _IN_MOVED_FROM | _IN_ONLYDIR
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(folder), flags)
        if watch >= 0:
            self._watched[folder] = watch
        else:
            self._watched.pop(folder, None)

    def _forget(self, folder: str) -> None:
        watch = self._watched.pop(folder)
        if self._fd >= 0 and watch not in self._watched.values():
            _libc.inotify_rm_watch(self._fd, watch)

    def _hear(self) -> None:
        try:
            told = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        names: set[str] = set()
        start = 0
        while start + _EVENT.size <= len(told):
            *_, length = _EVENT.unpack_from(told, start)
            start += _EVENT.size + length
            names.add(os.fsdecode(told[start - length : start].rstrip(b"\0")))
        self._gone(names)
