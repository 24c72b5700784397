"""Kernel parameters of the namespace that the thread is in; what is so already is not written.

Many of these writes wait for the lock that all link operations of the node share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_ROOT = "/proc/sys/net"
_LONGEST = 256


def ensure(name: str, value: str) -> None:
    """Make the parameter *name*, a path below ``net``, *value*. Raises OSError."""
    if _read(name) != value:
        _write(name, value)


def try_ensure(name: str, value: str, *, is_another: bool = False) -> None:
    """Make the parameter *name* *value* where there is such a parameter and it may be written.

    *is_another*: it is known to be another, as on an interface that was just made, so there is no need to look.
    """
    with contextlib.suppress(OSError):
        if is_another:
            _write(name, value)
        else:
            ensure(name, value)


def reset(ifname: str, family: str, name: str) -> None:
    """Make the parameter *name* of *ifname* what it is for a new interface, where there is such a parameter."""
    with contextlib.suppress(OSError):
        ensure(f"{family}/conf/{ifname}/{name}", _read(f"{family}/conf/default/{name}"))


def enable_ipv6(ifname: str) -> None:
    """Let ``lo`` and *ifname* have IPv6 addresses. Raises OSError if that is forbidden."""
    for name in (f"ipv6/conf/{each}/disable_ipv6" for each in ("lo", ifname)):
        if os.path.exists(f"{_ROOT}/{name}"):
            ensure(name, "0")


def _write(name: str, value: str) -> None:
    _within(f"{_ROOT}/{name}", os.O_WRONLY, lambda fd: os.write(fd, value.encode()))


def _read(name: str) -> str:
    return _within(f"{_ROOT}/{name}", os.O_RDONLY, lambda fd: os.read(fd, _LONGEST)).decode().strip()


def _within(path: str, flags: int, act: Callable[[int], T]) -> T:
    """Return what *act* returns with the file open; file objects would take five times as long."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        return act(fd)
    finally:
        os.close(fd)
