"""Whether host-local could reserve an address now, found out without its lock, which an ADD may be holding."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.ranges import RangeSet, range_of, room, shown


def obstacle(folder: str, range_sets: Iterable[RangeSet]) -> str:
    """Return why no address of each of *range_sets* could be reserved in *folder*, or an empty text.

    The folder need not be there: an ADD makes it.
    """
    try:
        if reason := _unusable(folder):
            return reason
        names = os.listdir(folder) if os.path.exists(folder) else []
    except OSError as error:
        return f"{folder} can't be used: {error.strerror}; mend the file system"
    for ranges in range_sets:
        if _used_up(ranges, names):
            return f"all addresses of {shown(ranges)} are taken: detach pods, or make the range larger"
    return ""


def _unusable(folder: str) -> str:
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return f"{there} is no folder: move it out of the way"
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return f"{there} can't be written: mend the file system"
    system = os.statvfs(there)
    # Some file systems do not count their files.
    if not system.f_bfree or (system.f_files and not system.f_ffree):
        return f"no space is left for {there}: make room on its file system"
    return ""


def _used_up(ranges: RangeSet, names: Collection[str]) -> bool:
    """Return whether the files of those *names* are one for each address of *ranges*."""
    places = room(ranges)
    if len(names) < places:
        return False
    for each in filter(None, map(reservations.address_of, names)):
        of = range_of(ranges, each)
        if of is not None and each != of.gateway:
            places -= 1
    return places <= 0
