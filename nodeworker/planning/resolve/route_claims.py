"""Decide which default routes have to go, and what comes, when an attachment claims those of the pod.

Pure. All of it follows from the recorded plan and the recorded results, so that an ADD that was cut, a CHECK and a DEL
come to the same without a separate record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from events.default_routes import Claim, claims, is_dropped
from events.fold import Attachment
from events.schema import ErrorClass, IfName, NetworkName, Phase, PlannedAttachment
from nodeworker.errors import failed
from nodeworker.planning.resolve.networks import NetworkEntry
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.addresses import address, family, network
from nodeworker.plugins.spec.results import Result, ResultError, Route

_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_IN_MAIN = frozenset({None, 0, 254})
"""What a result says of the table of a route in the main one (CNI specification 1.1, section 5, "ADD Success")."""


class ClaimedRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Where the default routes of a pod have to go."""

    network: NetworkName
    ifname: IfName
    """Interface of the attachment that claims them."""
    gateways: Mapping[int, str]
    """By IP version, of every family that the claim is about; empty text: as the attachment's plugins brought it."""
    own: frozenset[str]
    """All interfaces of that attachment."""
    others: frozenset[str]
    """The interfaces of the other attachments."""


class UnrequestedRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A default route that an attachment's plugins created, though no ``default-route`` gives it to that attachment."""

    network: NetworkName
    ifname: IfName
    family: int
    """IP version."""
    own: frozenset[str]
    """All interfaces of that attachment."""
    default: frozenset[str]
    """All interfaces of the pod's default network."""


def claimed_gateways(wants: Sequence[NetworkEntry]) -> list[tuple[str, ...] | None]:
    """Return for each of *wants* the gateways of the default routes that it claims; None: no claim.

    Each selection by itself names one gateway for a family at most. Several may claim, as in Multus, if they name
    gateways of different families. Raises RequestFailedError (INVALID_ANNOTATION) for claims that contradict each
    other.
    """
    claims = [want.selection.default_route if want.selection else None for want in wants]
    made = [claim for claim in claims if claim is not None]
    if _contradict(made):
        names = ", ".join(str(want.selection) for want, claim in zip(wants, claims, strict=True) if claim is not None)
        raise failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"default-route is on {len(made)} networks ({names}), but an IP version has one; choose one "
            f"network, or name gateways of different versions",
        )
    return claims


def claimed_routes(attachments: Sequence[Attachment]) -> tuple[ClaimedRoute, ...]:
    """Return where the default routes of the pod with *attachments*, all made, have to go; empty: where they are.

    A claim without gateways to the routes of plugins that created none moves nothing.
    """
    return tuple(_claimed_route(attachments, claim) for claim in _claims(attachments) if claim.families)


def void_claims(attachments: Sequence[Attachment]) -> tuple[PlannedAttachment, ...]:
    """Return the plans of *attachments*, all made, that claim the default routes of plugins that created none."""
    return tuple(attachments[claim.index].plan for claim in _claims(attachments) if not claim.families)


def unrequested_routes(attachments: Sequence[Attachment]) -> tuple[UnrequestedRoute, ...]:
    """Return the default routes that *attachments*, all made, have beside the default network's and the claimed ones.

    That is what the results say: a plugin may have moved the routes to another table since.
    """
    found = _claims(attachments)
    claimed = {(claim.index, family) for claim in found for family in claim.families}
    return tuple(
        UnrequestedRoute(
            network=attachment.plan.network,
            ifname=attachment.plan.ifname,
            family=family,
            own=_own(attachments, index),
            default=_own(attachments, 0),
        )
        for index, attachment in enumerate(attachments)
        if not attachment.plan.default
        for family in sorted(_default_families(attachment))
        if (index, family) not in claimed and not is_dropped(found, index, family)
    )


def _claimed_route(attachments: Sequence[Attachment], claim: Claim) -> ClaimedRoute:
    plan, own = attachments[claim.index].plan, _own(attachments, claim.index)
    return ClaimedRoute(
        network=plan.network,
        ifname=plan.ifname,
        gateways={family: claim.gateways.get(family, "") for family in sorted(claim.families)},
        own=own,
        others=_planned(attachments).union(*map(_interfaces, attachments)) - own,
    )


def _own(attachments: Sequence[Attachment], index: int) -> frozenset[str]:
    """Return the interfaces of the attachment *index*.

    A plugin may name an interface that it only worked on: it belongs to the attachment it is named after.
    """
    attachment = attachments[index]
    return frozenset({attachment.plan.ifname} | (_interfaces(attachment) - _planned(attachments)))


def _planned(attachments: Sequence[Attachment]) -> frozenset[str]:
    return frozenset(attachment.plan.ifname for attachment in attachments)


def adjusted_result(attachments: Sequence[Attachment], attachment: Attachment) -> str:
    """Return the result of *attachment*, one of *attachments*, with the default routes that it is left with.

    That is what CHECK and DEL hand to plugins: a plugin would object to the loss of a route. Until all attachments are
    made, and where a result can't be read, it is the result as recorded.
    """
    found = _claims(attachments)
    if not found or not all(each.result for each in attachments):
        return attachment.result
    index = attachments.index(attachment)
    given = [gateway for claim in found if claim.index == index for gateway in claim.gateways.items()]
    try:
        result = results.decode(attachment.result, attachment.plan.cni_version)
        kept = [
            route for route in result.routes if not (_is_default(route) and is_dropped(found, index, _family(route)))
        ]
        routes = (*kept, *(Route(dst=_EVERYWHERE[family], gw=gateway) for family, gateway in given))
        after = replace(result, routes=routes)
        return attachment.result if after == result else results.encode(after, result.cni_version)
    except ResultError:
        return attachment.result  # or one of a version that can't say a route without an address


def _contradict(claims: Sequence[tuple[str, ...]]) -> bool:
    """Return whether two of *claims* may be about one family; one without gateways may be about any."""
    families = Counter(address(gateway).version for gateways in claims for gateway in gateways)
    return len(claims) > 1 and (not all(claims) or max(families.values()) > 1)


def _claims(attachments: Sequence[Attachment]) -> tuple[Claim, ...]:
    return claims([attachment.plan for attachment in attachments], lambda index: _default_families(attachments[index]))


def _default_families(attachment: Attachment) -> set[int]:
    """Return the IP versions of the default routes that the plugins of *attachment* created."""
    return {_family(route) for route in _result(attachment).routes if _is_default(route)}


def _result(attachment: Attachment) -> Result:
    """Return the result of *attachment*; an empty one if it can't be decoded: the chain reports that error."""
    try:
        return results.decode(attachment.result, attachment.plan.cni_version)
    except ResultError:
        return Result(cni_version=attachment.plan.cni_version)


def _interfaces(attachment: Attachment) -> set[str]:
    return {interface.name for interface in _result(attachment).interfaces if interface.sandbox}


def _is_default(route: Route) -> bool:
    return network(route.dst).prefixlen == 0 and route.table in _IN_MAIN


def _family(route: Route) -> int:
    return family(route.dst)
