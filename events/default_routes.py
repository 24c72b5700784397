"""Say who has a pod's default routes once an attachment claims them: the worker makes it so, network-status tells it.

Pure. Kubernetes Network Custom Resource Definition De-facto Standard 1.3, section 4, "default-route", read strictly: a
claim is about the families that it names, and the routes of another family stay whose they were.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from events.schema import PlannedAttachment


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What the ``default_route`` of one attachment means for all attachments of its plan."""

    index: int
    """Of the attachment in the plan."""
    families: frozenset[int]
    """The IP versions that it is about."""
    gateways: Mapping[int, str]
    """By IP version; empty: the attachment keeps what its plugins brought."""

    def drops(self, index: int, family: int) -> bool:
        """Return whether the attachment *index* loses the default routes of IP version *family* it was made with."""
        return family in self.families and (index != self.index or family in self.gateways)


def claims(plans: Sequence[PlannedAttachment], brought: Callable[[int], Iterable[int]]) -> tuple[Claim, ...]:
    """Return the claims among *plans*; no two are about the same family.

    *brought* tells of which IP versions the plugins of an attachment, given by its index, brought default routes: that
    is what a claim without gateways is about.
    """
    found: list[Claim] = []
    for index, plan in enumerate(plans):
        if plan.default_route is not None:
            gateways = {ipaddress.ip_address(gateway).version: gateway for gateway in plan.default_route}
            found.append(Claim(index=index, families=frozenset(gateways or brought(index)), gateways=gateways))
    return tuple(found)


def is_dropped(found: Iterable[Claim], index: int, family: int) -> bool:
    """Return whether one of the claims *found* takes from attachment *index* its default routes of *family*."""
    return any(each.drops(index, family) for each in found)
