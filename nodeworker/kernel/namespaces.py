"""Open network namespaces, and run a function inside one.

A thread enters a namespace only to open something there: a socket keeps its namespace, so any thread can use it later.
Nothing here forks a process, or creates a namespace where a path has none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable
from typing import Self, TypeVar

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed

T = TypeVar("T")

_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000
_SIOCGIFINDEX = 0x8933
_SIOCGIFMTU = 0x8921
_IFREQ = struct.Struct("16s24x")
_MTU = struct.Struct("16si20x")
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def interfaces_present(path: str, names: Iterable[str], phase: Phase, inode: int = 0) -> set[str]:
    """Return which of *names* are interfaces in the network namespace at *path*; *inode* as for ``Namespace``.

    It takes 0.1 ms, less than a thread would cost. Raises RequestFailedError (namespace_invalid).
    """
    with _probe(path, phase, inode) as probe:
        return {name for name in names if _exists(probe, name)}


def mtu_of(path: str, name: str, phase: Phase) -> int:
    """Return the MTU of interface *name* in the network namespace at *path*; 0 if the interface does not exist.

    Raises RequestFailedError (namespace_invalid).
    """
    with _probe(path, phase) as probe:
        try:
            return _MTU.unpack(fcntl.ioctl(probe, _SIOCGIFMTU, _MTU.pack(name.encode(), 0)))[1]
        except OSError:
            return 0


def is_namespace(path: str) -> bool:
    """Return whether *path* is a network namespace; after an unmount, its mount point remains as a plain file."""
    try:
        os.close(_open(path, Phase.DEL))
    except RequestFailedError:
        return False
    return True


def inode(path: str) -> int:
    """Return the inode of the namespace at *path*, which no other existing namespace has; 0 if there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def why_gone(path: str, inode: int = 0) -> str:
    """Return the evidence that the namespace at *path*, which had that *inode*, is gone; an empty text if none.

    An unreadable path is no evidence. *inode* 0: unknown. After an unmount, the mount point remains as a plain file.
    """
    if not path:
        return ""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"its namespace {path} is gone"
    except OSError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return f"its namespace {path} is gone: something else is there"
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if fcntl.ioctl(target, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            replaced = inode and os.fstat(target).st_ino != inode
            return f"its namespace is gone: another one is at {path}" if replaced else ""
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            return ""
    finally:
        os.close(target)
    return f"its namespace {path} is gone: it was unmounted"


class Namespace:
    """A container's network namespace, open. A context manager; for one thread at a time."""

    def __init__(self, path: str, phase: Phase, inode: int = 0) -> None:
        """Open the namespace at *path*, which must have that *inode*, if it is not 0.

        Raises RequestFailedError (namespace_invalid) if there is none, or another one, or the thread's own.
        """
        self.path = path
        self._phase = phase
        self.fd = _open(path, phase)
        try:
            self.node_fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise
        if os.path.sameopenfile(self.node_fd, self.fd):
            self.close()
            raise _invalid(path, phase, "it is the node's own")
        if inode and os.fstat(self.fd).st_ino != inode:
            self.close()
            raise _invalid(path, phase, "the namespace of the ADD is gone, and another one is there")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)
        os.close(self.node_fd)

    def run_inside(self, act: Callable[[], T]) -> T:
        """Return what *act* returns; the calling thread is in the namespace meanwhile.

        Sockets that *act* opens stay in the namespace. Raises RequestFailedError (namespace_invalid).
        """
        if _libc.setns(self.fd, _CLONE_NEWNET):
            raise _invalid(self.path, self._phase, os.strerror(ctypes.get_errno()))
        try:
            return act()
        finally:
            if _libc.setns(self.node_fd, _CLONE_NEWNET):
                os.abort()  # a thread that stays in a pod's namespace would change the wrong interfaces


def _probe(path: str, phase: Phase, inode: int = 0) -> socket.socket:
    """Return a socket in the namespace at *path*, for queries about interfaces. Raises what ``Namespace`` raises."""
    with Namespace(path, phase, inode) as container:
        return container.run_inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def _exists(probe: socket.socket, name: str) -> bool:
    try:
        fcntl.ioctl(probe, _SIOCGIFINDEX, _IFREQ.pack(name.encode()))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _open(path: str, phase: Phase) -> int:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO or a device could hang
            raise _invalid(path, phase, "it is not a namespace file")
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _invalid(path, phase, error.strerror or str(error)) from error
    try:
        if fcntl.ioctl(target, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return target
        reason = "it is a namespace of another kind"
    except OSError:
        reason = "it is not a namespace file"
    os.close(target)
    raise _invalid(path, phase, reason)


def _invalid(path: str, phase: Phase, reason: str) -> RequestFailedError:
    return failed(
        ErrorClass.NAMESPACE_INVALID,
        phase,
        f"CNI_NETNS {path!r} can't be used as a network namespace: {reason}",
    )
