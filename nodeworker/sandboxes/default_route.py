"""Give the pod's default routes to the attachment that claims them: a plugin knows nothing of the other networks.

Each family by itself, and only those that are claimed. What counts is what the kernel has in the end, so it is read
back. Default routes that the kernel learned from IPv6 router advertisements (RFC 4861, section 6.3.4) are left alone
and not counted: the next advertisement would bring them again. A network that must not have them turns ``accept_ra``
off.

Everything here blocks, for about a millisecond: call it on a thread.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import failed
from nodeworker.kernel.rtnetlink import addresses, links, routes
from nodeworker.kernel.rtnetlink.routes import Route
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError
from nodeworker.planning.resolve.route_claims import ClaimedRoute

_FROM_ROUTERS = 9
"""RTPROT_RA in the kernel's ``include/uapi/linux/rtnetlink.h``."""

_EVERYWHERE = {4: routes.DEFAULT_V4, 6: routes.DEFAULT_V6}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class _RouteError(Exception):
    """A default route is not where it is wanted; the text is the end of a sentence."""


def move(netns: str, wanted: ClaimedRoute, pod: Pod) -> None:
    """Bring the default routes in the namespace at *netns* to where they are *wanted*; they may be there already.

    What the attachments have in the main table goes, whatever its metric. Raises RequestFailedError: ROUTE_FAILED (some
    may have been moved by then), NAMESPACE_INVALID.
    """
    with _complaining(wanted, pod, Phase.ADD), Netlink.in_namespace(netns, Phase.ADD) as netlink:
        if not wanted.gateways:
            raise _RouteError("its plugins made none, and default-route names no gateway; name one, or remove the key")
        names = _names(netlink)
        index = next((index for index, name in names.items() if name == wanted.ifname), None)
        if index is None:
            raise _RouteError("the interface is gone; find out what removed it")
        for family, gateway in wanted.gateways.items():
            losing = wanted.others | wanted.own if gateway else wanted.others
            found = _defaults(netlink, family)
            netlink.do(*(routes.delete(route) for route in found if names.get(route.index) in losing))
            if gateway:
                _add(netlink, wanted, family, index)
        _verify(netlink, wanted, "find out what makes routes beside the plugins of the pod's networks")


def check(netns: str, wanted: ClaimedRoute, pod: Pod) -> None:
    """Look whether the default routes are where ``move`` puts them. Raises RequestFailedError as it does if not."""
    with _complaining(wanted, pod, Phase.CHECK), Netlink.in_namespace(netns, Phase.CHECK) as netlink:
        _verify(netlink, wanted, "delete the pod to have it made anew")


@contextmanager
def _complaining(wanted: ClaimedRoute, pod: Pod, phase: Phase) -> Generator[None]:
    """Turn what is wrong with the routes into the failure of the request."""
    try:
        yield
    except (_RouteError, NetlinkError) as error:
        problem = f"the kernel said: {error.strerror}; try again" if isinstance(error, NetlinkError) else str(error)
        verb = "can't be given" if phase is Phase.ADD else "does not have"
        raise failed(
            ErrorClass.ROUTE_FAILED,
            phase,
            f"pod {pod}: {wanted.ifname} of network {wanted.network} {verb} the pod's default route: {problem}",
            network=wanted.network,
            ifname=wanted.ifname,
        ) from error


def _add(netlink: Netlink, wanted: ClaimedRoute, family: int, index: int) -> None:
    gateway = wanted.gateways[family]
    route = Route(destination=_EVERYWHERE[family], index=index, gateway=ipaddress.ip_address(gateway))
    try:
        netlink.do(routes.add(route))
    except NetlinkError as error:
        assigned = [str(each.address) for each in addresses.of(netlink, index) if each.address.version == family]
        raise _RouteError(
            f"the kernel refused IPv{family} via {gateway} ({error.strerror}), and {wanted.ifname} has "
            f"{', '.join(assigned) or 'no address'}; name a gateway in default-route that is reached over it directly"
        ) from error


def _verify(netlink: Netlink, wanted: ClaimedRoute, remedy: str) -> None:
    """Raise _RouteError unless every family has exactly one default route, the wanted one."""
    names = _names(netlink)
    for family, gateway in wanted.gateways.items():
        found = _defaults(netlink, family)
        if len(found) != 1 or not _is_wanted(found[0], wanted, gateway, names):
            should = f"via {gateway} dev {wanted.ifname}" if gateway else f"dev {wanted.ifname}"
            there = ", ".join(_told(route, names) for route in found) or "none"
            raise _RouteError(f"of IPv{family} there has to be one, {should}, and there is: {there}; {remedy}")


def _is_wanted(route: Route, wanted: ClaimedRoute, gateway: str, names: Mapping[int, str]) -> bool:
    if not gateway:
        return names.get(route.index) in wanted.own
    return names.get(route.index) == wanted.ifname and route.gateway == ipaddress.ip_address(gateway)


def _told(route: Route, names: Mapping[int, str]) -> str:
    via = f"via {route.gateway} " if route.gateway else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{via}dev {names.get(route.index, route.index)}{metric}"


def _defaults(netlink: Netlink, family: int) -> list[Route]:
    return [route for route in routes.defaults(netlink, _FAMILIES[family]) if route.protocol != _FROM_ROUTERS]


def _names(netlink: Netlink) -> dict[int, str]:
    return {link.index: link.name for link in links.every(netlink)}
