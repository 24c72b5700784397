"""Kernel parameters of the calling thread's namespace.

A parameter that already has the value is not written: many writes wait for the lock that all link operations share.
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
    """Set the parameter *name*, a path below ``net``, to *value*. Raises OSError."""
    if _read(name) != value:
        _write(name, value)


def try_ensure(name: str, value: str, *, is_another: bool = False) -> None:
    """Set the parameter *name* to *value*, if the parameter exists and is writable.

    *is_another*: the caller knows that the value differs, as on a new interface, so it is not read first.
    """
    with contextlib.suppress(OSError):
        if is_another:
            _write(name, value)
        else:
            ensure(name, value)


def reset(ifname: str, family: str, name: str) -> None:
    """Set the parameter *name* of *ifname* to the value of a new interface, if the parameter exists."""
    with contextlib.suppress(OSError):
        ensure(f"{family}/conf/{ifname}/{name}", _read(f"{family}/conf/default/{name}"))


def enable_ipv6(ifname: str) -> None:
    """Enable IPv6 on ``lo`` and *ifname*. Raises OSError if the parameter is read-only."""
    for name in (f"ipv6/conf/{each}/disable_ipv6" for each in ("lo", ifname)):
        if os.path.exists(f"{_ROOT}/{name}"):
            ensure(name, "0")


def _write(name: str, value: str) -> None:
    _within(f"{_ROOT}/{name}", os.O_WRONLY, lambda fd: os.write(fd, value.encode()))


def _read(name: str) -> str:
    return _within(f"{_ROOT}/{name}", os.O_RDONLY, lambda fd: os.read(fd, _LONGEST)).decode().strip()


def _within(path: str, flags: int, act: Callable[[int], T]) -> T:
    """Return what *act* returns with the open file. A file object would take five times as long."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        return act(fd)
    finally:
        os.close(fd)
