"""Kernel parameters of the namespace that the thread is in; what is so already is not written.

Many of these writes wait for the lock that all link operations of the node share.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_ROOT = Path("/proc/sys/net")


def ensure(name: str, value: str) -> None:
    """Make the parameter *name*, a path below ``net``, *value*. Raises OSError."""
    path = _ROOT / name
    if path.read_text().strip() != value:
        path.write_text(value)


def prefer(name: str, value: str) -> None:
    """Make the parameter *name* *value* where there is such a parameter and it may be written."""
    with contextlib.suppress(OSError):
        ensure(name, value)


def enable_ipv6(ifname: str) -> None:
    """Let ``lo`` and *ifname* have IPv6 addresses. Raises OSError if that is forbidden."""
    for name in (f"ipv6/conf/{each}/disable_ipv6" for each in ("lo", ifname)):
        if (_ROOT / name).exists():
            ensure(name, "0")
