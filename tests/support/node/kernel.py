"""The node as the kernel shows it. End-to-end tests compare the ledger with it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

_CLONE_NEWNET = 0x40000000


class Link(NamedTuple):
    """One interface."""

    mac: str
    addresses: frozenset[str]
    """With prefix length, without link-local addresses."""


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Move this process and its children to a new network namespace, which replaces the node's.

    Whatever is made "on the node" goes with it, and other tests on the machine are neither seen nor disturbed.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc("unshare", _CLONE_NEWNET)
        ip("link", "set", "lo", "up")
        yield
    finally:
        _libc("setns", before, _CLONE_NEWNET)
        os.close(before)


def _libc(function: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[function](*args) != 0:
        raise OSError(ctypes.get_errno(), function)


def ip(*args: str) -> str:
    """Run ip(8) and return what it prints."""
    return _run("ip", *args)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _entering(netns: str) -> tuple[str, ...]:
    """Return the words before a command that run it in *netns*."""
    if netns.startswith("/"):
        return ("nsenter", f"--net={netns}")
    return ("ip", "netns", "exec", netns) if netns else ()


def links(netns: str = "") -> dict[str, Link]:
    """Return the interfaces of the namespace *netns*, by default of the node itself, but for the loopback.

    *netns* is a name as ip(8) has it, or a path.
    """
    shown: list[dict[str, Any]] = json.loads(_run(*_entering(netns), "ip", "-json", "addr", "show"))
    return {
        link["ifname"]: Link(
            link["address"],
            frozenset(f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] != "link"),
        )
        for link in shown
        if link["link_type"] != "loopback"
    }


def ping(netns: str, address: str) -> bool:
    """Return whether *address* answers within *netns*."""
    command = ["ip", "netns", "exec", netns, "ping", "-c", "1", "-W", "2", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
