"""What the plugins that put one interface into the container do alike once it is there."""

from __future__ import annotations

from collections.abc import Sequence

from nodeworker.kernel import sysctl
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call
from nodeworker.plugins.native.kit.addressing import Assignment, configure, with_interface
from nodeworker.plugins.native.kit.announce import announce
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context
from nodeworker.plugins.spec.results import DNS, Interface, Result


def configure_link(
    ends: Endpoints,
    call: Call,
    link: Link,
    given: Sequence[Assignment],
    ipam: Result | None,
    *,
    arp_notify: bool = False,
) -> None:
    """Set *link*, in the container, up, with what *ipam* assigns, if it does; *given* are its addresses.

    The kernel tells IPv4 neighbours; with *arp_notify*, as after the reference plugin, also from then on. Raises
    NativeError.
    """
    if ipam is None:
        with error_context(f"set {call.ifname} up"):
            ends.container.do(links.change(link.index, up=True))
        return
    configure(ends, call, link, given, ipam, dad=False, notify=True)
    if not arp_notify:
        ends.netns.inside(lambda: sysctl.reset(call.ifname, "ipv4", "arp_notify"))
    announce(ends, link, given)


def build_result(call: Call, version: str, link: Link, ipam: Result | None, dns: DNS) -> Result:
    """Return the result, in CNI version *version*, of an ADD that made *link* with what *ipam* assigns."""
    return Result(
        cni_version=version,
        interfaces=(Interface(name=link.name, mac=link.mac, mtu=link.mtu, sandbox=call.netns),),
        ips=() if ipam is None else with_interface(ipam.ips, 0),
        routes=() if ipam is None else ipam.routes,
        dns=dns,
    )
