"""List the addresses of interfaces in all namespaces of the node: an address on an interface is not a leak.

Blocking. It costs a third of a millisecond for each namespace, so the scanner calls it only for suspected leaks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from events.schema import Phase
from nodeworker.errors import RequestFailedError
from nodeworker.kernel.rtnetlink import addresses
from nodeworker.kernel.rtnetlink.socket import Netlink

_MOUNTS = Path("/proc/self/mountinfo")
_OWN = "/proc/thread-self/ns/net"
_MOUNT_POINT, _AFTER_DASH = 4, " - "
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH})


def addresses_in_use() -> frozenset[str]:
    """Return all addresses, without prefix length. Raises OSError if a namespace could not be read."""
    found: set[str] = set()
    with Netlink.on_node() as node:
        found |= _of(node)
    for path in _namespaces():
        try:
            with Netlink.in_namespace(path, Phase.RECLAIM) as inside:
                found |= _of(inside)
        except RequestFailedError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _GONE:
                raise OSError(errno.EIO, error.failure.message) from error  # its addresses are not known
    return frozenset(found)


def _of(netlink: Netlink) -> set[str]:
    return {str(each.address.ip) for each in addresses.list_all(netlink)}


def _namespaces() -> Iterator[str]:
    """Yield one path for each namespace that is mounted, or that a process runs in."""
    seen = {os.stat(_OWN).st_ino}
    for path in (*_mounted(), *_of_processes()):
        try:
            inode = os.stat(path).st_ino
        except OSError:
            continue
        if inode not in seen:
            seen.add(inode)
            yield path


def _mounted() -> Iterator[str]:
    for line in _MOUNTS.read_text().splitlines():
        before, _, after = line.partition(_AFTER_DASH)
        if after.startswith("nsfs "):
            yield before.split(" ")[_MOUNT_POINT].encode().decode("unicode_escape")  # a space is written as \040


def _of_processes() -> Iterator[str]:
    return (f"/proc/{entry}/ns/net" for entry in os.listdir("/proc") if entry.isdecimal())
