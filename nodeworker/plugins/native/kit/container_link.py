"""The verbs of a plugin that puts one interface into the container: what they do alike for every kind of interface."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from events.schema import Phase
from nodeworker.kernel import sysctl
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.plugins.native.api import Call
from nodeworker.plugins.native.kit import verify
from nodeworker.plugins.native.kit.addressing import Assignment, assignments, configure, with_interface
from nodeworker.plugins.native.kit.announce import announce_ipv6
from nodeworker.plugins.native.kit.endpoints import (
    Endpoints,
    create_link,
    error_context,
    find_link,
    open_endpoints,
    remove_links,
)
from nodeworker.plugins.spec.results import DNS, Interface, Result


def add_link(
    call: Call,
    create: Callable[[Endpoints], Link],
    ipam_result: Result | None,
    *,
    version: str,
    dns: DNS,
    arp_notify: bool = False,
) -> Result:
    """Do ADD: call *create*, configure its interface, and return the result in CNI *version*.

    *create* returns the interface also if an interrupted ADD created it. *arp_notify*: see ``configure_link``. Raises
    NativeError.
    """
    assigned = [] if ipam_result is None else assignments(call, ipam_result)
    with open_endpoints(call, Phase.ADD) as ends:
        link = create(ends)
        configure_link(ends, call, link, assigned, ipam_result, arp_notify=arp_notify)
    return build_result(call, version, link, ipam_result, dns)


class LinkCheck(msgspec.Struct, frozen=True):
    """CHECK of the interface that an ADD created."""

    ends: Endpoints
    call: Call
    result: Result
    """The recorded result of the ADD."""

    def link(self, kind: str) -> Link:
        """Return the interface, which is of *kind* and has the recorded MAC address. Raises NativeError."""
        return verify.check_link(self.ends, self.call, self.result, kind)

    def addresses(self, link: Link) -> None:
        """Raise NativeError unless *link* has the recorded addresses, and the container the recorded routes."""
        verify.check_addresses(self.ends, self.call, link, self.result)


@contextlib.contextmanager
def check_of(call: Call) -> Iterator[LinkCheck]:
    """Yield the CHECK of *call*. Raises NativeError if the runtime gave no result, or the namespace is unusable."""
    result = verify.recorded_result(call)
    with open_endpoints(call, Phase.CHECK) as ends:
        yield LinkCheck(ends, call, result)


def remove_link(call: Call) -> None:
    """Do DEL: delete the container's interface of *call*; it, or its namespace, may be gone. Raises NativeError."""
    remove_links(call.netns, [call.ifname])


def create_or_find(ends: Endpoints, call: Call, kind: str, request: Request) -> Link | None:
    """Return the interface that *request* creates, or the one that already has its name.

    None: the kernel refuses it because of another interface. Raises NativeError.
    """
    return create_link(ends.container, call.ifname, kind, request) or find_link(ends.container, call.ifname)


def configure_link(
    ends: Endpoints,
    call: Call,
    link: Link,
    assigned: Sequence[Assignment],
    ipam_result: Result | None,
    *,
    arp_notify: bool = False,
) -> None:
    """Set *link*, in the container, up, with the addresses *assigned* and the routes of *ipam_result*.

    The kernel announces IPv4 addresses to the neighbours, because ``configure`` sets ``arp_notify``; this process
    announces IPv6 addresses. With *arp_notify*, as after the reference plugin, the kernel also announces whenever the
    interface comes up later. Raises NativeError.
    """
    if ipam_result is None:
        with error_context(f"set {call.ifname} up"):
            ends.container.do(links.change(link.index, up=True))
        return
    configure(ends, call, link, assigned, ipam_result, dad=False, notify=True)
    if not arp_notify:
        ends.netns.run_inside(lambda: sysctl.reset(call.ifname, "ipv4", "arp_notify"))
    announce_ipv6(ends, link, assigned)


def build_result(call: Call, version: str, link: Link, ipam_result: Result | None, dns: DNS) -> Result:
    """Return the result, in CNI *version*, of an ADD that created *link* with what *ipam_result* assigned."""
    return Result(
        cni_version=version,
        interfaces=(Interface(name=link.name, mac=link.mac, mtu=link.mtu, sandbox=call.netns),),
        ips=() if ipam_result is None else with_interface(ipam_result.ips, 0),
        routes=() if ipam_result is None else ipam_result.routes,
        dns=dns,
    )
