"""Move the pod's default routes to the attachment that claims them: a plugin does not know the other networks.

Each claimed family is moved by itself, and the kernel's routes are read back to verify it. Default routes from IPv6
router advertisements (RFC 4861, section 6.3.4) stay and do not count: the next advertisement would bring them again. A
network that must not have them turns ``accept_ra`` off.

The functions block for about a millisecond: call them on a thread.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from events.schema import ErrorClass, Phase
from nodeworker.errors import failed
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError
from nodeworker.planning.resolve.route_claims import ClaimedRoute, UnrequestedRoute

_FROM_ROUTERS = 9
"""RTPROT_RA in the kernel's ``include/uapi/linux/rtnetlink.h``."""

_EVERYWHERE = {4: routes.DEFAULT_V4, 6: routes.DEFAULT_V6}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class _RouteError(Exception):
    """A default route is not where it was claimed; the text is the end of a sentence."""


def move(netns: str, claimed: ClaimedRoute) -> None:
    """Move the default routes in the namespace at *netns* as *claimed*; they may be there already.

    Those of the attachments in the main table are removed, whatever their metric. Raises RequestFailedError:
    ROUTE_FAILED (some may have been moved by then), NAMESPACE_INVALID.
    """
    with _explaining(claimed, Phase.ADD), Netlink.in_namespace(netns, Phase.ADD) as netlink:
        names = _names(netlink)
        index = next((index for index, name in names.items() if name == claimed.ifname), None)
        if index is None:
            raise _RouteError("the interface is gone; find out what removed it")
        for family, gateway in claimed.gateways.items():
            losing = claimed.others | claimed.own if gateway else claimed.others
            found = _defaults(netlink, family)
            netlink.do(*(routes.delete(route) for route in found if names.get(route.index) in losing))
            if gateway:
                _add(netlink, claimed, family, index)
        _verify(netlink, claimed, "find out what makes routes beside the plugins of the pod's networks")


class TakenRoute(NamedTuple):
    """A default route that an attachment took from the default network."""

    route: UnrequestedRoute
    routes: str
    """The pod's default routes with the best metric, in the kernel's order."""


def taken(netns: str, unrequested: Sequence[UnrequestedRoute]) -> list[TakenRoute]:
    """Return those of *unrequested* that the kernel uses in the namespace at *netns* before the default network's.

    Raises RequestFailedError: ROUTE_FAILED, NAMESPACE_INVALID.
    """
    with Netlink.in_namespace(netns, Phase.ADD) as netlink:
        try:
            names = _names(netlink)
            best = {family: _best(netlink, family) for family in {each.family for each in unrequested}}
        except NetlinkError as error:
            message = f"the pod's default routes can't be read: the kernel said: {error.strerror}; try again"
            raise failed(ErrorClass.ROUTE_FAILED, Phase.ADD, message) from error
    return [
        TakenRoute(each, ", ".join(_described(route, names) for route in best[each.family]))
        for each in unrequested
        if each.own & {names.get(route.index) for route in _used(best[each.family], each, names)}
    ]


def _best(netlink: Netlink, family: int) -> list[Route]:
    """Return the default routes of *family* with the best metric, in the kernel's order."""
    found = _defaults(netlink, family)
    metric = min((route.metric for route in found), default=0)
    return [route for route in found if route.metric == metric]


def _used(best: Sequence[Route], route: UnrequestedRoute, names: Mapping[int, str]) -> Iterable[Route]:
    """Return which of *best* come before the default network's: IPv6 spreads its traffic over all of them."""
    if route.family == 6:
        return best
    return itertools.takewhile(lambda each: names.get(each.index) not in route.default, best)


def check(netns: str, claimed: ClaimedRoute) -> None:
    """Check that the default routes are where ``move`` puts them. Raises RequestFailedError."""
    with _explaining(claimed, Phase.CHECK), Netlink.in_namespace(netns, Phase.CHECK) as netlink:
        _verify(netlink, claimed, "recreate the pod")


@contextmanager
def _explaining(claimed: ClaimedRoute, phase: Phase) -> Generator[None]:
    """Turn an error of the routes into the failure of the request."""
    try:
        yield
    except (_RouteError, NetlinkError) as error:
        problem = f"the kernel said: {error.strerror}; try again" if isinstance(error, NetlinkError) else str(error)
        verb = "can't be given" if phase is Phase.ADD else "does not have"
        raise failed(
            ErrorClass.ROUTE_FAILED,
            phase,
            f"{claimed.ifname} of network {claimed.network} {verb} the pod's default route: {problem}",
            network=claimed.network,
            ifname=claimed.ifname,
        ) from error


def _add(netlink: Netlink, claimed: ClaimedRoute, family: int, index: int) -> None:
    gateway = claimed.gateways[family]
    route = Route(destination=_EVERYWHERE[family], index=index, gateway=ipaddress.ip_address(gateway))
    try:
        netlink.do(routes.add(route))
    except NetlinkError as error:
        assigned = [str(each.address) for each in addresses.list_of(netlink, index) if each.address.version == family]
        raise _RouteError(
            f"the kernel refused IPv{family} via {gateway} ({error.strerror}), and {claimed.ifname} has "
            f"{', '.join(assigned) or 'no address'}; name a gateway in default-route that is on its network"
        ) from error


def _verify(netlink: Netlink, claimed: ClaimedRoute, remedy: str) -> None:
    """Raise _RouteError unless every claimed family has exactly one default route, the claimed one."""
    names = _names(netlink)
    for family, gateway in claimed.gateways.items():
        found = _defaults(netlink, family)
        if len(found) != 1 or not _is_claimed(found[0], claimed, gateway, names):
            should = f"via {gateway} dev {claimed.ifname}" if gateway else f"dev {claimed.ifname}"
            there = ", ".join(_described(route, names) for route in found) or "none"
            raise _RouteError(f"IPv{family} needs exactly one, {should}, but there is: {there}; {remedy}")


def _is_claimed(route: Route, claimed: ClaimedRoute, gateway: str, names: Mapping[int, str]) -> bool:
    if not gateway:
        return names.get(route.index) in claimed.own
    return names.get(route.index) == claimed.ifname and route.gateway == ipaddress.ip_address(gateway)


def _described(route: Route, names: Mapping[int, str]) -> str:
    via = f"via {route.gateway} " if route.gateway else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{via}dev {names.get(route.index, route.index)}{metric}"


def _defaults(netlink: Netlink, family: int) -> list[Route]:
    return [route for route in routes.defaults(netlink, _FAMILIES[family]) if route.protocol != _FROM_ROUTERS]


def _names(netlink: Netlink) -> dict[int, str]:
    return {link.index: link.name for link in links.list_all(netlink)}
