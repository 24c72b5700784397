"""Decide whether host-local could reserve an address now, without its lock, which an ADD may hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.ranges import RangeSet, range_of, room, shown


def obstacle(folder: str, range_sets: Iterable[RangeSet]) -> str:
    """Return why *folder* can't reserve an address of each of *range_sets*, or an empty text.

    The folder may be missing: an ADD creates it.
    """
    try:
        if reason := _unusable(folder):
            return reason
        names = os.listdir(folder) if os.path.exists(folder) else []
    except OSError as error:
        return f"{folder} can't be used: {error.strerror}; repair the file system"
    for ranges in range_sets:
        if _used_up(ranges, names):
            return f"all addresses of {shown(ranges)} are taken: detach pods, or make the range larger"
    return ""


def _unusable(folder: str) -> str:
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        return f"{existing} is not a folder: remove or rename it"
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        return f"{existing} can't be written: repair the file system"
    system = os.statvfs(existing)
    # Some file systems report 0 files in total.
    if not system.f_bfree or (system.f_files and not system.f_ffree):
        return f"no space is left for {existing}: make room on its file system"
    return ""


def _used_up(ranges: RangeSet, names: Collection[str]) -> bool:
    """Return whether *names* contains the file of every address of *ranges*."""
    left = room(ranges)
    if len(names) < left:
        return False
    for each in filter(None, map(reservations.address_of, names)):
        of = range_of(ranges, each)
        if of is not None and each != of.gateway:
            left -= 1
    return left <= 0
