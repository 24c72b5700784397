"""Restore the files that plugins keep for a sandbox.

Blocking: call it on a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from events.schema import Drift, ErrorClass
from nodeworker.drift.files import ExpectedFile
from nodeworker.drift.repair.in_place import NotRepaired
from nodeworker.plugins import device_info
from nodeworker.plugins.native.ipam import recorded, reservations
from nodeworker.plugins.native.ipam.recorded import Reservation


def restore_files(
    files: Sequence[ExpectedFile], drifts: Sequence[Drift], other_holder: Callable[[Reservation, bytes], str]
) -> list[NotRepaired]:
    """Restore the *files* that *drifts* are about; return those that could not be restored.

    *other_holder* returns the pod that may hold a reservation whose file has that content; empty: none.
    """
    not_repaired: list[NotRepaired] = []
    lost = [
        (each, drift)
        for drift in drifts
        for each in files
        if (each.ifname, each.expected) == (drift.ifname, drift.expected)
    ]
    for folder, group in groupby(sorted(lost, key=_folder), _folder):
        members = list(group)
        try:
            kept = _restore(folder, [each for each, _ in members], other_holder)
        except (OSError, reservations.BusyError) as error:
            reason = f"{folder} can't be used: {getattr(error, 'strerror', None) or error}; mend the file system"
            not_repaired += [NotRepaired(drift, ErrorClass.PLUGIN_FAILED, reason) for _, drift in members]
        else:
            not_repaired += [
                NotRepaired(drift, ErrorClass.NOT_REPAIRABLE, kept[each.path])
                for each, drift in members
                if each.path in kept
            ]
    return not_repaired


def _restore(
    folder: str, files: Sequence[ExpectedFile], other_holder: Callable[[Reservation, bytes], str]
) -> dict[str, str]:
    """Restore *files* in *folder*; return why those that could not be restored belong to others, by path."""
    kept: dict[str, str] = {}

    def may_replace(lost: Reservation, content: bytes) -> bool:
        if pod := other_holder(lost, content):
            kept[lost.path] = f"pod {pod} has the same address: delete one of the two pods, so that it gets another"
        return not pod

    lost = [each.reservation for each in files if each.reservation is not None]
    if lost:
        recorded.restore(folder, lost, may_replace)
    for each in files:
        if each.reservation is None:
            device_info.write(each.path, each.device_info)
    return kept


def _folder(lost: tuple[ExpectedFile, Drift]) -> str:
    return lost[0].path.rpartition("/")[0]
