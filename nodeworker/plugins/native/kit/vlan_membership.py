"""The VLANs of a bridge's port, by the configuration of its network. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from nodeworker.plugins.native.api import NativeError

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""The first and the last VLAN of each range."""

HIGHEST = 4094
"""IEEE 802.1Q reserves 4095."""
_IDS = range(1, HIGHEST + 1)


class Trunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VLANs that a port has with tags: one VLAN, a range, or both."""

    min_id: int | None = msgspec.field(name="minID", default=None)
    max_id: int | None = msgspec.field(name="maxID", default=None)
    id: int | None = None


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The VLANs of a port; without any, the bridge's default applies."""

    untagged: int = 0
    """The VLAN of the container's untagged frames, a trunk's native VLAN; 0: the bridge's default."""
    tagged: Ranges = ()
    """The VLANs with tags, ``untagged`` not among them."""
    filtering: bool = False
    """Whether a bridge that is created for the port filters by VLAN."""
    keeps_default: bool = True
    """Whether the port stays in the bridge's default VLAN."""

    @property
    def any(self) -> bool:
        """Whether it names a VLAN."""
        return bool(self.untagged or self.tagged)

    def __str__(self) -> str:
        named = [f"{self.untagged} untagged"] if self.untagged else []
        only = "" if self.keeps_default else ", and not the bridge's own"
        return f"VLAN {', '.join([*named, *shown(self.tagged)])}{only}"


def membership(vlan: int, trunk: Sequence[Trunk] | None, *, keeps_default: bool) -> Membership:
    """Return the membership that the configuration requests. Raises NativeError if the request is invalid."""
    if vlan and vlan not in _IDS:
        raise NativeError(f"vlan {vlan} is not between 0 and {HIGHEST}")
    return Membership(
        untagged=vlan,
        tagged=_without(vlan, _ranges(trunk or ())),
        filtering=bool(vlan) or trunk is not None,
        keeps_default=keeps_default,
    )


def merged(wanted: Iterable[tuple[int, int]]) -> Ranges:
    """Return the VLANs of *wanted* as sorted ranges that neither touch nor overlap."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(wanted):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def shown(ranges: Ranges) -> list[str]:
    """Return *ranges* as texts, such as ``7`` and ``10-20``."""
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def _without(vlan: int, ranges: Ranges) -> Ranges:
    """Return *ranges* without *vlan*."""
    below = [(first, min(last, vlan - 1)) for first, last in ranges]
    above = [(max(first, vlan + 1), last) for first, last in ranges]
    return merged((first, last) for first, last in below + above if first <= last)


def _ranges(trunk: Sequence[Trunk]) -> Ranges:
    """Return the VLANs of *trunk*. Raises NativeError."""
    wanted: list[tuple[int, int]] = []
    for index, each in enumerate(trunk):
        place = f"vlanTrunk[{index}]"
        if (each.min_id is None) != (each.max_id is None):
            raise NativeError(f"{place} has only one of minID and maxID: set both")
        if each.min_id is not None and each.max_id is not None:
            if each.min_id not in _IDS or each.max_id not in _IDS or each.max_id < each.min_id:
                raise NativeError(f"{place} range {each.min_id} to {each.max_id} is empty or not within 1 to {HIGHEST}")
            wanted.append((each.min_id, each.max_id))
        if each.id is not None:
            if each.id not in _IDS:
                raise NativeError(f"{place} id {each.id} is not between 1 and {HIGHEST}")
            wanted.append((each.id, each.id))
    return merged(wanted)
