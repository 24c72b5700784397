"""Drift is repaired on the networks that people use: two families, point to point, chains, adopted from Multus."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from events.schema import DriftKind, DriftObserved, DriftRepaired
from tests.e2e.drift.test_drift import (
    Change,
    bounce,
    held_node,
    inside,
    kinds,
    lladdr,
    picture,
    port_of,
    recorded,
    set_port_down,
)
from tests.e2e.host.test_adopt import Adopted, adopted
from tests.support.node.kernel import ip
from tests.support.node.node import Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

__all__ = ["adopted", "held_node"]


class Network(NamedTuple):
    """The network of the pod's second interface, and what must be there beside the kernel's state."""

    config: Callable[[Node], dict[str, Any]]
    more: Callable[[PodSandbox], str] = lambda pod: ""


def two_families(node: Node, v4: str, v6: str, routes: tuple[str, ...]) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}] for subnet in (v4, v6)]
    return {**node.host_local(v4), "ranges": ranges, "routes": [{"dst": destination} for destination in routes]}


def dual_bridge(node: Node) -> dict[str, Any]:
    return node.bridge(ipam=two_families(node, "10.87.0.0/16", "fd87::/64", ("0.0.0.0/0", "::/0")))


def dual_macvlan(node: Node) -> dict[str, Any]:
    ipam = two_families(node, "192.168.0.0/16", "fd92::/64", ("10.99.0.0/16", "fd99::/64"))
    return {**node.macvlan("1.0.0", ipam=ipam), "name": "second"}


def ptp(node: Node) -> dict[str, Any]:
    ipam = two_families(node, "10.88.0.0/16", "fd88::/64", ("10.98.0.0/16", "fd98::/64"))
    return {"cniVersion": "1.0.0", "name": "second", "type": "ptp", "mtu": 1400, "ipMasq": True, "ipam": ipam}


def chained(node: Node, *others: dict[str, Any]) -> dict[str, Any]:
    first = dual_macvlan(node)
    head = {"cniVersion": first.pop("cniVersion"), "name": first.pop("name")}
    return {**head, "plugins": [first, *others]}


def tuned(node: Node) -> dict[str, Any]:
    sysctl = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.rp_filter": "2"}
    return chained(node, {"type": "tuning", "mac": "02:00:00:00:77:01", "mtu": 1380, "promisc": True, "sysctl": sysctl})


def routed_by_source(node: Node) -> dict[str, Any]:
    return chained(node, {"type": "sbr"})


def tuning(pod: PodSandbox) -> str:
    """Return what the plugin ``tuning`` has set besides MAC address and MTU."""
    names = [f"net.ipv4.conf.net1.{name}" for name in ("arp_filter", "rp_filter")]
    words = ["ip", "netns", "exec", pod.namespace, "sysctl", *names]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    (link,) = json.loads(ip("-n", pod.namespace, "-json", "-details", "link", "show", "net1"))
    return f"{shown}{link['promiscuity'] > 0}"


def rules(pod: PodSandbox) -> str:
    """Return the routing rules with the contents of their tables; the plugin chooses the table numbers.

    The reference plugin leaves rules of addresses that were removed before its DEL: their tables are empty.
    """
    lines: list[str] = []
    for family in ("-4", "-6"):
        for rule in json.loads(ip("-n", pod.namespace, family, "-json", "rule", "show")):
            table = rule["table"]
            if table.isdecimal():
                table = ip("-n", pod.namespace, family, "route", "show", "table", table)
            if table:
                lines.append(f"{family} {rule['src']} {table}")
    return "\n".join(lines)


NETWORKS = {
    "dual-stack": Network(dual_macvlan),
    "ptp": Network(ptp),
    "tuning": Network(tuned, tuning),
    "sbr": Network(routed_by_source, rules),
}


_SEEN = 0.7
"""Seconds after an attach until the worker's first inspection has ended."""


def attached(node: Node, network: Network, name: str = "samplepod") -> PodSandbox:
    """Return a pod with addresses of both families on a bridge, and with a second interface on *network*.

    The worker has inspected it: an MTU that is not configured must stay as first seen.
    """
    node.nad("second", network.config(node))
    pod = node.pod(name, "second", config=node.conf(dual_bridge(node)))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    time.sleep(_SEEN)
    return pod


def disable_ipv6(pod: PodSandbox) -> None:
    words = ["ip", "netns", "exec", pod.namespace, "sysctl", "-qw", "net.ipv6.conf.net1.disable_ipv6=1"]
    subprocess.run(words, check=True)


def flush_both(pod: PodSandbox) -> None:
    for ifname in ("eth0", "net1"):
        ip("-n", pod.namespace, "addr", "flush", "dev", ifname, "scope", "global")


def remove_routes(pod: PodSandbox) -> None:
    for family in ("-4", "-6"):
        flush = ("route", "flush", "dev", "net1", "scope", "global", "type", "unicast", "table", "all")
        ip("-n", pod.namespace, family, *flush)


CHANGES: dict[str, tuple[Change, DriftKind]] = {
    "deleted": (inside("link", "del", "net1"), DriftKind.LINK_MISSING),
    "deleted bridge interface": (inside("link", "del", "eth0"), DriftKind.LINK_MISSING),
    "bounced": (bounce, DriftKind.ADDRESS_MISSING),
    "left down": (inside("link", "set", "net1", "down"), DriftKind.LINK_DOWN),
    "IPv6 addresses": (inside("-6", "addr", "flush", "dev", "net1", "scope", "global"), DriftKind.ADDRESS_MISSING),
    "IPv6 disabled": (disable_ipv6, DriftKind.ADDRESS_MISSING),
    "all addresses": (flush_both, DriftKind.ADDRESS_MISSING),
    "foreign IPv6 address": (inside("addr", "add", "fd77::9/64", "dev", "net1"), DriftKind.ADDRESS_FOREIGN),
    "routes": (remove_routes, DriftKind.ROUTE_MISSING),
    "IPv6 default route": (inside("-6", "route", "del", "default"), DriftKind.ROUTE_MISSING),
    "MTU": (inside("link", "set", "net1", "mtu", "1300"), DriftKind.MTU_CHANGED),
    "MAC address": (inside("link", "set", "net1", "address", "02:00:00:00:00:99"), DriftKind.MAC_CHANGED),
}


_EVERYWHERE = ("deleted", "bounced", "left down", "IPv6 addresses", "all addresses", "routes")
_HERE = {
    "dual-stack": ("deleted bridge interface", "IPv6 disabled", "foreign IPv6 address", "IPv6 default route"),
    "ptp": ("IPv6 disabled", "MTU", "MAC address"),
    "tuning": ("MTU", "MAC address"),
    "sbr": (),
}


@pytest.mark.parametrize(("network", "change"), [(on, each) for on in NETWORKS for each in (*_EVERYWHERE, *_HERE[on])])
def test_each_drift_is_repaired(held: Node, network: str, change: str) -> None:
    alter, kind = CHANGES[change]
    more = NETWORKS[network].more
    pod = attached(held, NETWORKS[network])
    before, reserved, checked = (picture(pod), more(pod)), held.reserved(), pod.check()
    alter(pod)
    eventually(lambda: recorded(held, pod, DriftRepaired), "the drift is repaired", 10)
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "the ledger knows", 10)
    assert (picture(pod), more(pod)) == before
    assert kind in {each for data in recorded(held, pod, DriftObserved) for each in kinds(data.drifts)}
    assert held.reserved() == reserved
    assert pod.check() == checked  # the reference plugins refuse some of their own results
    assert pod.delete().exit_code == 0


def test_repaired_ipv6_address_is_announced(held: Node) -> None:
    pod, neighbour = (attached(held, NETWORKS["dual-stack"], name) for name in ("pod", "neighbour"))
    for ifname in ("eth0", "net1"):
        own = next(each for each in pod.links()[ifname].addresses if ":" in each).partition("/")[0]
        wrong = ("lladdr", "02:00:00:00:00:66", "nud", "reachable", "dev", ifname)
        ip("-n", neighbour.namespace, "neigh", "replace", own, *wrong)
        ip("-n", pod.namespace, "-6", "addr", "flush", "dev", ifname, "scope", "global")
        mac = pod.links()[ifname].mac
        eventually(lambda own=own, mac=mac: lladdr(neighbour, own) == mac, f"{own} is known to be at {mac}")
    for each in (pod, neighbour):
        assert each.delete().exit_code == 0


ADOPTED: dict[str, tuple[Change, DriftKind]] = {
    "deleted": (inside("link", "del", "net1"), DriftKind.LINK_MISSING),
    "deleted bridge interface": (inside("link", "del", "eth0"), DriftKind.LINK_MISSING),
    "address": (inside("addr", "flush", "dev", "net1"), DriftKind.ADDRESS_MISSING),
    "port down": (set_port_down, DriftKind.LINK_DOWN),
    "MTU": (inside("link", "set", "net1", "mtu", "1400"), DriftKind.MTU_CHANGED),
    "MAC address": (inside("link", "set", "net1", "address", "02:00:00:00:00:99"), DriftKind.MAC_CHANGED),
}


def test_drift_of_an_adopted_pod_is_repaired(adopted: Adopted) -> None:
    node, (pod, _) = adopted.node, adopted.pod("adopted")
    before, reserved, port = picture(pod), node.reserved(), port_of(pod)
    assert adopted.run().returncode == 0
    node.start()
    with reconciler(node):
        for name, (alter, kind) in ADOPTED.items():
            known = len(recorded(node, pod, DriftRepaired))
            alter(pod)
            eventually(lambda known=known: len(recorded(node, pod, DriftRepaired)) > known, f"{name} is repaired")
            eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")
            assert picture(pod) == before
            assert kind in {each for data in recorded(node, pod, DriftObserved) for each in kinds(data.drifts)}
        assert (port_of(pod), node.reserved()) == (port, reserved)
        assert pod.check().exit_code == 0
        assert pod.delete().exit_code == 0
    assert not node.reserved()


def test_drift_before_an_adoption_is_repaired(adopted: Adopted) -> None:
    node, (pod, _) = adopted.node, adopted.pod("adopted")
    before = picture(pod)
    ip("-n", pod.namespace, "link", "del", "net1")
    assert adopted.run().returncode == 0
    node.start()
    with reconciler(node):
        eventually(lambda: recorded(node, pod, DriftRepaired), "the drift is repaired")
        eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")
        assert picture(pod) == before
        assert pod.delete().exit_code == 0
