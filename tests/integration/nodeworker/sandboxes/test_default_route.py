"""Default routes in real namespaces: over the claiming interface only, without touching other routes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from events.schema import ErrorClass, Failure, IfName, NetworkName, Phase
from nodeworker.errors import RequestFailedError
from nodeworker.planning.resolve.route_claims import ClaimedRoute, UnrequestedRoute
from nodeworker.sandboxes import default_route

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ATTACHMENTS = ("eth0", "net1", "net2")
ETH0 = ("via 10.1.0.1 dev eth0", "via fd00:1::1 dev eth0 metric 1024")
NET1 = ("via 10.2.0.1 dev net1", "via fd00:2::1 dev net1 metric 1024")


class Namespace:
    """A pod's namespace, as ip(8) shows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"

    def ip(self, *args: str) -> str:
        return subprocess.run(["ip", "-n", self.name, *args], check=True, capture_output=True, text=True).stdout

    def attach(self, index: int, name: str) -> None:
        """Make an interface with an address of each family; 10.<index>.0.1 and fd00:<index>::1 are its routers."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"router{index}")
        self.ip("addr", "add", f"10.{index}.0.5/24", "dev", name)
        self.ip("addr", "add", f"fd00:{index}::5/64", "dev", name, "nodad")
        self.ip("link", "set", f"router{index}", "up")
        self.ip("link", "set", name, "up")

    def default(self, *route: str) -> None:
        self.ip("-6" if ":" in "".join(route) else "-4", "route", "add", "default", *route)

    def defaults(self, family: int, *more: str) -> set[str]:
        """Return the default routes of *family*, in short form."""
        shown: list[dict[str, Any]] = json.loads(self.ip(f"-{family}", "-json", "route", "show", "default", *more))
        return {" ".join(f"{key} {each[short]}" for key, short in _TOLD if short in each) for each in shown}


_TOLD = (("via", "gateway"), ("dev", "dev"), ("metric", "metric"))


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A pod with three interfaces; the default routes of both families go over eth0."""
    made = Namespace(f"plumbline-test-{os.urandom(4).hex()}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.ip("link", "set", "lo", "up")
        for index, name in enumerate(ATTACHMENTS, 1):
            made.attach(index, name)
        made.default("via", "10.1.0.1")
        made.default("via", "fd00:1::1")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=True)


def over_net1(gateways: dict[int, str], own: tuple[str, ...] = ("net1",)) -> ClaimedRoute:
    return ClaimedRoute(
        network=NetworkName("d/n1"),
        ifname=IfName("net1"),
        gateways=gateways,
        own=frozenset(own),
        others=frozenset(ATTACHMENTS) - {*own, "net1"},
    )


def move(pod: Namespace, wanted: ClaimedRoute) -> None:
    default_route.move(pod.path, wanted)
    default_route.check(pod.path, wanted)


def refused(pod: Namespace, wanted: ClaimedRoute, phase: Phase = Phase.ADD) -> Failure:
    verb = default_route.move if phase is Phase.ADD else default_route.check
    with pytest.raises(RequestFailedError) as caught:
        verb(pod.path, wanted)
    failure = caught.value.failure
    assert (failure.error_class, failure.code) == (ErrorClass.ROUTE_FAILED, 104)
    assert (failure.phase, failure.network, failure.ifname) == (phase, "d/n1", "net1")
    assert failure.message.startswith("net1 of network d/n1 ")
    return failure


def test_the_route_goes_over_the_chosen_interface_and_the_other_family_stays(pod: Namespace) -> None:
    move(pod, over_net1({4: "10.2.0.1"}))
    assert pod.defaults(4) == {NET1[0]}
    assert pod.defaults(6) == {ETH0[1]}


def test_ipv6_moves_and_ipv4_stays(pod: Namespace) -> None:
    move(pod, over_net1({6: "fd00:2::1"}))
    assert pod.defaults(4) == {ETH0[0]}
    assert pod.defaults(6) == {NET1[1]}


def test_both_families_move(pod: Namespace) -> None:
    move(pod, over_net1({4: "10.2.0.1", 6: "fd00:2::1"}))
    assert (pod.defaults(4), pod.defaults(6)) == ({NET1[0]}, {NET1[1]})


def test_a_link_local_router_will_do(pod: Namespace) -> None:
    move(pod, over_net1({6: "fe80::1"}))
    assert pod.defaults(6) == {"via fe80::1 dev net1 metric 1024"}


def test_a_pod_without_default_route_gets_one(pod: Namespace) -> None:
    pod.ip("route", "del", "default")
    move(pod, over_net1({4: "10.2.0.1"}))
    assert pod.defaults(4) == {NET1[0]}


def test_every_attachment_loses_its_routes_whatever_the_metric(pod: Namespace) -> None:
    pod.default("via", "10.1.0.2", "metric", "10")
    pod.default("dev", "net2", "metric", "20", "mtu", "1400")
    pod.default("via", "10.2.0.9", "metric", "30", "src", "10.2.0.5")
    pod.default("via", "fd00:2::9", "metric", "5")
    pod.ip("-6", "route", "add", "default", "dev", "net2", "metric", "6")
    pod.ip("-6", "route", "append", "default", "via", "fd00:1::2")
    move(pod, over_net1({4: "10.2.0.1", 6: "fd00:2::1"}))
    assert (pod.defaults(4), pod.defaults(6)) == ({NET1[0]}, {NET1[1]})


def test_a_route_over_several_attachments_goes_as_a_whole(pod: Namespace) -> None:
    hops = ("nexthop", "via", "10.1.0.1", "nexthop", "via", "10.3.0.1")
    pod.ip("route", "replace", "default", *hops)
    pod.ip(
        "-6",
        "route",
        "replace",
        "default",
        *(hop.replace("10.1.0.", "fd00:1::").replace("10.3.0.", "fd00:3::") for hop in hops),
    )
    move(pod, over_net1({4: "10.2.0.1", 6: "fd00:2::1"}))
    assert (pod.defaults(4), pod.defaults(6)) == ({NET1[0]}, {NET1[1]})


def test_other_routes_and_other_tables_stay(pod: Namespace) -> None:
    pod.ip("route", "add", "172.16.0.0/12", "via", "10.1.0.1")
    pod.ip("route", "add", "0.0.0.0/1", "via", "10.1.0.1")
    pod.ip("route", "add", "default", "via", "10.3.0.1", "table", "100")
    pod.ip("route", "add", "default", "via", "10.3.0.1", "table", "1000")
    before = {line for line in everything(pod) if line != f"default {ETH0[0]}"}
    assert len(before) == len(everything(pod)) - 1
    move(pod, over_net1({4: "10.2.0.1"}))
    assert everything(pod) == before | {f"default {NET1[0]}"}


def everything(pod: Namespace) -> set[str]:
    return {line.strip() for line in pod.ip("route", "show", "table", "all").splitlines()}


def test_an_empty_list_keeps_the_plugins_route(pod: Namespace) -> None:
    pod.default("via", "10.2.0.9", "metric", "30", "mtu", "1400")
    move(pod, over_net1({4: ""}))
    assert pod.defaults(4) == {"via 10.2.0.9 dev net1 metric 30"}
    assert "mtu 1400" in pod.ip("route", "show", "default")
    assert pod.defaults(6) == {ETH0[1]}


def test_the_plugins_route_may_use_its_second_interface(pod: Namespace) -> None:
    pod.default("via", "10.3.0.1", "metric", "30")
    move(pod, over_net1({4: ""}, own=("net1", "net2")))
    assert pod.defaults(4) == {"via 10.3.0.1 dev net2 metric 30"}


def test_a_gateway_replaces_the_route_over_the_second_interface_too(pod: Namespace) -> None:
    pod.default("via", "10.3.0.1", "metric", "30")
    move(pod, over_net1({4: "10.2.0.1"}, own=("net1", "net2")))
    assert pod.defaults(4) == {NET1[0]}


def test_a_repeated_move_changes_nothing(pod: Namespace) -> None:
    wanted = over_net1({4: "10.2.0.1", 6: "fd00:2::1"})
    for _ in range(3):
        move(pod, wanted)
        assert (pod.defaults(4), pod.defaults(6)) == ({NET1[0]}, {NET1[1]})


def test_a_move_that_was_interrupted_is_finished(pod: Namespace) -> None:
    pod.ip("route", "del", "default")
    pod.ip("route", "add", "default", "via", "10.2.0.1", "dev", "net1")
    move(pod, over_net1({4: "10.2.0.1", 6: "fd00:2::1"}))
    assert (pod.defaults(4), pod.defaults(6)) == ({NET1[0]}, {NET1[1]})


def test_the_chosen_interface_may_have_been_the_default_before(pod: Namespace) -> None:
    wanted = ClaimedRoute(
        network=NetworkName("d/n0"),
        ifname=IfName("eth0"),
        gateways={4: "10.1.0.254"},
        own=frozenset({"eth0"}),
        others=frozenset({"net1", "net2"}),
    )
    move(pod, wanted)
    assert pod.defaults(4) == {"via 10.1.0.254 dev eth0"}


def test_routes_of_router_advertisements_are_left_and_not_counted(pod: Namespace) -> None:
    pod.default("via", "fe80::9", "dev", "net2", "proto", "ra", "metric", "512")
    move(pod, over_net1({6: "fd00:2::1"}))
    assert pod.defaults(6, "proto", "ra") == {"via fe80::9 dev net2 metric 512"}
    assert pod.defaults(6, "proto", "boot") == {NET1[1]}


@pytest.mark.parametrize(
    ("family", "gateway", "has"), [(4, "192.0.2.1", "10.2.0.5/24;"), (6, "2001:db8::1", "fd00:2::5/64, fe80::")]
)
def test_a_gateway_out_of_reach_is_refused(pod: Namespace, family: int, gateway: str, has: str) -> None:
    message = refused(pod, over_net1({family: gateway})).message
    assert f"IPv{family} via {gateway}" in message
    assert f"net1 has {has}" in message
    assert "name a gateway in default-route" in message
    assert not pod.defaults(family)


def test_an_interface_that_is_down_can_have_no_route(pod: Namespace) -> None:
    pod.ip("link", "set", "net1", "down")
    assert "can't be given" in refused(pod, over_net1({4: "10.2.0.1"})).message


def test_a_family_that_is_switched_off_in_the_pod_is_refused(pod: Namespace) -> None:
    sysctl = ["ip", "netns", "exec", pod.name, "sysctl", "-qw", "net.ipv6.conf.net1.disable_ipv6=1"]
    subprocess.run(sysctl, check=True)
    assert "IPv6 via fd00:2::1" in refused(pod, over_net1({6: "fd00:2::1"})).message


def test_an_interface_that_is_gone_is_named(pod: Namespace) -> None:
    pod.ip("link", "del", "net1")
    assert "the interface is gone" in refused(pod, over_net1({4: "10.2.0.1"})).message
    assert pod.defaults(4) == {ETH0[0]}


def test_an_unknown_interface_keeps_its_route_and_the_add_fails(pod: Namespace) -> None:
    pod.attach(7, "theirs")
    pod.default("via", "10.7.0.1", "metric", "7")
    message = refused(pod, over_net1({4: "10.2.0.1"})).message
    assert "IPv4 needs exactly one, via 10.2.0.1 dev net1, but there is: " in message
    assert "via 10.7.0.1 dev theirs metric 7" in message
    assert "via 10.7.0.1 dev theirs metric 7" in pod.defaults(4)


def test_two_routes_of_one_plugin_are_refused(pod: Namespace) -> None:
    pod.default("via", "10.2.0.9", "metric", "30")
    pod.default("via", "10.2.0.8", "metric", "40")
    message = refused(pod, over_net1({4: ""})).message
    assert "needs exactly one, dev net1, but there is: " in message


def test_a_route_that_a_plugin_reported_but_did_not_make_fails(pod: Namespace) -> None:
    assert "but there is: none" in refused(pod, over_net1({4: ""})).message


@pytest.mark.parametrize("family", [4, 6])
def test_check_reports_a_removed_route(pod: Namespace, family: int) -> None:
    wanted = over_net1({4: "10.2.0.1", 6: "fd00:2::1"})
    move(pod, wanted)
    pod.ip(f"-{family}", "route", "del", "default")
    message = refused(pod, wanted, Phase.CHECK).message
    assert f"IPv{family} needs exactly one" in message
    assert "but there is: none; recreate the pod" in message
    assert not pod.defaults(family)


@pytest.mark.parametrize("change", [("via", "10.2.0.2"), ("via", "10.3.0.1"), ("dev", "net1")])
def test_check_reports_a_changed_route(pod: Namespace, change: tuple[str, ...]) -> None:
    wanted = over_net1({4: "10.2.0.1"})
    move(pod, wanted)
    pod.ip("route", "replace", "default", *change)
    assert f"but there is: {' '.join(change)}" in refused(pod, wanted, Phase.CHECK).message


def test_check_reports_a_second_route(pod: Namespace) -> None:
    wanted = over_net1({4: "10.2.0.1"})
    move(pod, wanted)
    pod.default("via", "10.1.0.1", "metric", "5")
    assert "via 10.2.0.1 dev net1, via 10.1.0.1 dev eth0 metric 5" in refused(pod, wanted, Phase.CHECK).message


def test_a_missing_namespace_is_an_error(pod: Namespace) -> None:
    wanted = over_net1({4: "10.2.0.1"})
    for path in ("/run/netns/plumbline-test-none", "/proc/self/ns/net"):
        for verb, phase in ((default_route.move, Phase.ADD), (default_route.check, Phase.CHECK)):
            with pytest.raises(RequestFailedError) as caught:
                verb(path, wanted)
            assert (caught.value.failure.error_class, caught.value.failure.phase) == (
                ErrorClass.NAMESPACE_INVALID,
                phase,
            )


def test_nothing_is_left_open(pod: Namespace) -> None:
    before = os.listdir("/proc/self/fd")
    move(pod, over_net1({4: "10.2.0.1"}))
    refused(pod, over_net1({4: "192.0.2.1"}))
    assert os.listdir("/proc/self/fd") == before


# --- routes that no default-route requests ---


def taken(pod: Namespace, *unrequested: tuple[str, int]) -> dict[tuple[str, int], str]:
    """Return the pod's routes by interface and family of each of *unrequested* that was taken from eth0."""
    given = [
        UnrequestedRoute(
            network=NetworkName(f"d/{ifname}"),
            ifname=IfName(ifname),
            family=family,
            own=frozenset({ifname}),
            default=frozenset({"eth0"}),
        )
        for ifname, family in unrequested
    ]
    found = default_route.taken(pod.path, given)
    return {(each.route.ifname, each.route.family): each.routes for each in found}


def as_plugin(pod: Namespace, *route: str) -> None:
    """Add a default route before others, as the reference plugins do (``RouteAddEcmp`` of their library)."""
    pod.ip("-6" if ":" in "".join(route) else "-4", "route", "prepend", "default", *route)


def test_route_that_a_plugin_adds_later_is_taken(pod: Namespace) -> None:
    as_plugin(pod, "via", "10.2.0.1")
    assert taken(pod, ("net1", 4)) == {("net1", 4): "via 10.2.0.1 dev net1, via 10.1.0.1 dev eth0"}
    assert pod.ip("route", "get", "192.0.2.1").split()[:5] == ["192.0.2.1", "via", "10.2.0.1", "dev", "net1"]


def test_every_attachment_before_the_default_network_takes_the_route(pod: Namespace) -> None:
    as_plugin(pod, "via", "10.2.0.1")
    as_plugin(pod, "via", "10.3.0.1")
    routes = "via 10.3.0.1 dev net2, via 10.2.0.1 dev net1, via 10.1.0.1 dev eth0"
    assert taken(pod, ("net1", 4), ("net2", 4)) == {("net1", 4): routes, ("net2", 4): routes}


def test_ipv6_routes_share_the_traffic(pod: Namespace) -> None:
    pod.ip("-6", "route", "append", "default", "via", "fd00:2::1")
    (routes,) = taken(pod, ("net1", 6)).values()
    assert set(routes.split(", ")) == {ETH0[1], NET1[1]}


def test_routes_of_a_worse_metric_or_behind_are_not_taken(pod: Namespace) -> None:
    pod.default("via", "10.2.0.1", "metric", "10")
    pod.ip("route", "append", "default", "via", "10.3.0.1")
    pod.default("via", "fd00:2::1", "metric", "2000")
    assert taken(pod, ("net1", 4), ("net2", 4), ("net1", 6)) == {}


def test_routes_of_another_table_are_not_taken(pod: Namespace) -> None:
    pod.default("via", "10.2.0.1", "table", "100")
    assert taken(pod, ("net1", 4)) == {}


def test_route_is_taken_in_a_pod_that_had_none(pod: Namespace) -> None:
    pod.ip("route", "del", "default")
    as_plugin(pod, "via", "10.2.0.1")
    assert taken(pod, ("net1", 4), ("net2", 4)) == {("net1", 4): NET1[0]}


def test_routes_of_a_namespace_that_is_gone_fail_the_add(pod: Namespace) -> None:
    with pytest.raises(RequestFailedError) as caught:
        default_route.taken("/run/netns/nowhere", [])
    assert caught.value.failure.error_class is ErrorClass.NAMESPACE_INVALID
