"""Decide which attachment has a pod's default routes if one claims them. The worker and network-status both use it.

Pure. Kubernetes Network Custom Resource Definition De-facto Standard 1.3, section 4, "default-route", read strictly: a
claim is about the IP versions that it names, and the routes of the other version stay unchanged.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from events.schema import PlannedAttachment


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The meaning of one attachment's ``default_route`` for all attachments of its plan."""

    index: int
    """Index of the attachment in the plan."""
    families: frozenset[int]
    """IP versions of the claimed routes."""
    gateways: Mapping[int, str]
    """By IP version; empty: the attachment keeps the default routes of its plugins."""

    def drops(self, index: int, family: int) -> bool:
        """Return whether the attachment *index* loses its plugins' default routes of IP version *family*."""
        return family in self.families and (index != self.index or family in self.gateways)


def claims(plans: Sequence[PlannedAttachment], families_of: Callable[[int], Iterable[int]]) -> tuple[Claim, ...]:
    """Return the claims among *plans*; no two claim the same IP version.

    *families_of* returns the IP versions for which an attachment's plugins made default routes, by the attachment's
    index. A claim without gateways is about those.
    """
    found: list[Claim] = []
    for index, plan in enumerate(plans):
        if plan.default_route is not None:
            gateways = {ipaddress.ip_address(gateway).version: gateway for gateway in plan.default_route}
            found.append(Claim(index=index, families=frozenset(gateways or families_of(index)), gateways=gateways))
    return tuple(found)


def is_dropped(found: Iterable[Claim], index: int, family: int) -> bool:
    """Return whether one of the claims *found* takes its default routes of *family* from attachment *index*."""
    return any(each.drops(index, family) for each in found)
