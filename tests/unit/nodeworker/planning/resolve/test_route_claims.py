"""The claims to a pod's default routes: from the annotation, the plan and the results."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.fold import Attachment, AttachmentPhase
from events.schema import ErrorClass, Failure, IfName, NetworkName, PlannedAttachment
from nodeworker.errors import RequestFailedError
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from nodeworker.planning.resolve.networks import networks_of as networks_wanted
from nodeworker.planning.resolve.objects import PodObject
from nodeworker.planning.resolve.route_claims import (
    adjusted_result,
    claimed_gateways,
    claimed_routes,
    unrequested_routes,
    void_claims,
)
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import ResultError
from nodeworker.plugins.spec.versions import SUPPORTED

EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
ADDRESS = {4: "10.{}.0.5/24", 6: "fd00:{}::5/64"}
GATEWAY = {4: "10.{}.0.1", 6: "fd00:{}::1"}
ELSEWHERE = {4: "172.16.0.0/12", 6: "2001:db8::/32"}


def claims(*default_routes: list[str] | None, default_network: list[str] | None = None) -> list[Any]:
    """Return the claims of a pod with networks net1, net2, ..., whose ``default-route`` are *default_routes*."""
    annotations = {
        NETWORKS: json.dumps([{"name": f"n{i}", "default-route": each} for i, each in enumerate(default_routes, 1)])
    }
    if default_network is not None:
        annotations[DEFAULT_NETWORK] = json.dumps([{"name": "fast", "default-route": default_network}])
    conf = parse_netconf(json.dumps({"name": "plumbline", "clusterNetwork": "podnet"}), NodeDefaults())
    return claimed_gateways(networks_wanted(conf, PodObject("d", "p", "u", annotations)))


def refused(*default_routes: list[str] | None, default_network: list[str] | None = None) -> Failure:
    with pytest.raises(RequestFailedError) as caught:
        claims(*default_routes, default_network=default_network)
    assert caught.value.failure.error_class is ErrorClass.INVALID_ANNOTATION
    assert caught.value.failure.code == 7
    return caught.value.failure


def made(
    index: int,
    families: tuple[int, ...] = (4, 6),
    *,
    claim: tuple[str, ...] | None = None,
    version: str = "1.1.0",
    defaults: tuple[int, ...] | None = None,
) -> Attachment:
    """Return the attachment *index*, addresses in *families*, default routes in *defaults* (all), another in each."""
    ifname = f"net{index}" if index else "eth0"
    routes = [
        {"dst": EVERYWHERE[family], "gw": GATEWAY[family].format(index)}
        for family in (families if defaults is None else defaults)
    ]
    routes += [{"dst": ELSEWHERE[family], "gw": GATEWAY[family].format(index)} for family in families]
    result: dict[str, Any] = {"cniVersion": version}
    if version in {"0.1.0", "0.2.0"}:
        for family in families:
            mine = [route for route in routes if (":" in route["dst"]) == (family == 6)]
            result[f"ip{family}"] = {"ip": ADDRESS[family].format(index), "routes": mine}
    else:
        result["interfaces"] = [{"name": f"veth{index}"}, {"name": ifname, "sandbox": "/run/netns/p"}]
        stated = version.startswith("0")
        result["ips"] = [
            {"address": ADDRESS[f].format(index), "interface": 1} | ({"version": str(f)} if stated else {})
            for f in families
        ]
        result["routes"] = routes
    return attachment(index, result, claim=claim, version=version)


def attachment(
    index: int, result: dict[str, Any] | str, *, claim: tuple[str, ...] | None = None, version: str = "1.1.0"
) -> Attachment:
    plan = PlannedAttachment(
        network=NetworkName(f"d/n{index}"),
        ifname=IfName(f"net{index}" if index else "eth0"),
        cni_name=f"n{index}",
        cni_version=version,
        plugins=("{}",),
        default=not index,
        default_route=claim,
    )
    text = result if isinstance(result, str) else json.dumps(result)
    return Attachment(plan=plan, phase=AttachmentPhase.ATTACHED, result=text)


def routes(attachments: list[Attachment], index: int) -> list[tuple[str, str]]:
    """Return the routes in the adjusted result of the attachment *index*, by destination."""
    one = attachments[index]
    result = results.decode(adjusted_result(attachments, one), one.plan.cni_version)
    return sorted((route.dst, route.gw) for route in result.routes)


# --- the annotation ---


def test_a_claim_is_recorded_for_the_network_that_makes_it_and_for_no_other() -> None:
    assert claims(None, ["10.1.1.1", "FD00:0::1"], None) == [None, None, ("10.1.1.1", "fd00::1"), None]


def test_a_claim_without_gateways_is_one() -> None:
    assert claims([]) == [None, ()]
    assert claims(None) == [None, None]


def test_the_pods_own_default_network_may_claim() -> None:
    assert claims(None, default_network=["10.1.1.1"]) == [("10.1.1.1",), None]


def test_two_claims_are_refused_across_both_annotations() -> None:
    message = refused(None, ["10.1.1.1"], default_network=[]).message
    assert "kube-system/fast, d/n2" in message
    assert "choose one network" in message


@pytest.mark.parametrize("gateways", [(["10.1.1.1"], ["10.1.1.2"]), (["10.1.1.1", "fd00::1"], ["fd00::2"]), ([], [])])
def test_two_claims_to_one_family_are_refused(gateways: tuple[list[str], list[str]]) -> None:
    assert "default-route is on 2 networks (d/n1, d/n2)" in refused(*gateways).message


def test_each_family_may_go_to_another_network() -> None:
    assert claims(["10.1.1.1"], ["fd00::1"]) == [None, ("10.1.1.1",), ("fd00::1",)]
    attachments = [made(0), made(1, claim=("10.1.0.254",)), made(2, claim=("fd00:2::9",))]
    v4, v6 = claimed_routes(attachments)
    assert (v4.ifname, v4.gateways, v4.others) == ("net1", {4: "10.1.0.254"}, {"eth0", "net2"})
    assert (v6.ifname, v6.gateways, v6.others) == ("net2", {6: "fd00:2::9"}, {"eth0", "net1"})
    assert not {"0.0.0.0/0", "::/0"} & {to for to, _ in routes(attachments, 0)}
    assert [to for to, _ in routes(attachments, 1) if to.endswith("/0")] == ["0.0.0.0/0"]
    assert [to for to, _ in routes(attachments, 2) if to.endswith("/0")] == ["::/0"]


@pytest.mark.parametrize(
    "gateways", [["10.1.1.1", "10.1.1.2"], ["10.1.1.1", "10.1.1.1"], ["10.1.1.1", "fd00::1", "fd00::2"]]
)
def test_traffic_is_not_spread_over_several_gateways(gateways: list[str]) -> None:
    assert "a family has one default route" in refused(gateways).message


@pytest.mark.parametrize("gateway", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "127.0.0.1", "::1"])
def test_an_address_that_no_router_can_have_is_refused(gateway: str) -> None:
    failure = refused([gateway])
    assert failure.network == "d/n1"
    assert f'"{gateway}", which can' in failure.message


def test_an_ipv4_gateway_in_ipv6_notation_is_an_ipv4_gateway() -> None:
    assert claims(["::ffff:10.1.1.1"]) == [None, ("10.1.1.1",)]
    assert "holds 2 IPv4 gateways (10.1.1.1, 10.1.1.2)" in refused(["::ffff:10.1.1.1", "10.1.1.2"]).message


@given(st.lists(st.ip_addresses(v=4) | st.ip_addresses(v=6), max_size=4))
def test_one_gateway_for_each_family_is_recorded(
    given_: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    try:
        (_, recorded) = claims([str(each) for each in given_])
    except RequestFailedError:
        return
    assert len(recorded) == len(given_)
    assert len({ipaddress.ip_address(each).version for each in recorded}) == len(recorded)


# --- what follows from it ---


def test_without_a_claim_every_result_stays_unchanged() -> None:
    attachments = [made(0), made(1)]
    assert claimed_routes(attachments) == ()
    assert [adjusted_result(attachments, each) for each in attachments] == [each.result for each in attachments]


def test_gateways_say_which_families_move() -> None:
    attachments = [made(0), made(1, claim=("10.1.0.254",)), made(2)]
    (route,) = claimed_routes(attachments)
    assert (route.network, route.ifname, route.gateways) == ("d/n1", "net1", {4: "10.1.0.254"})
    assert (route.own, route.others) == ({"net1"}, {"eth0", "net2"})
    for index in (0, 2):
        assert routes(attachments, index) == [
            ("172.16.0.0/12", f"10.{index}.0.1"),
            ("2001:db8::/32", f"fd00:{index}::1"),
            ("::/0", f"fd00:{index}::1"),
        ]
    assert routes(attachments, 1) == [
        ("0.0.0.0/0", "10.1.0.254"),
        ("172.16.0.0/12", "10.1.0.1"),
        ("2001:db8::/32", "fd00:1::1"),
        ("::/0", "fd00:1::1"),
    ]


def test_an_empty_list_moves_the_families_of_the_networks_routes() -> None:
    attachments = [made(0), made(1, defaults=(6,), claim=())]
    (route,) = claimed_routes(attachments)
    assert route.gateways == {6: ""}
    assert adjusted_result(attachments, attachments[1]) == attachments[1].result
    assert ("::/0", "fd00:0::1") not in routes(attachments, 0)
    assert ("0.0.0.0/0", "10.0.0.1") in routes(attachments, 0)


def test_an_empty_list_on_a_network_without_routes_moves_no_family() -> None:
    attachments = [made(0), made(1, defaults=(), claim=())]
    assert claimed_routes(attachments) == ()
    assert [plan.ifname for plan in void_claims(attachments)] == ["net1"]
    assert [adjusted_result(attachments, each) for each in attachments] == [each.result for each in attachments]


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("family", [4, 6])
def test_results_of_every_version_lose_and_gain_the_route(version: str, family: int) -> None:
    other = 10 - family
    gateway = GATEWAY[family].format(9)
    attachments = [made(0, version=version), made(1, version=version, claim=(gateway,))]
    assert (EVERYWHERE[family], gateway) in routes(attachments, 1)
    destinations = [destination for destination, _ in routes(attachments, 0)]
    assert sorted(destinations) == sorted([EVERYWHERE[other], ELSEWHERE[4], ELSEWHERE[6]])
    for each in attachments:
        assert json.loads(adjusted_result(attachments, each))["cniVersion"] == version
    if version == "0.2.0":
        ip4 = json.loads(adjusted_result(attachments, attachments[0]))[f"ip{family}"]
        assert [route["dst"] for route in ip4["routes"]] == [ELSEWHERE[family]]


def test_a_result_that_is_left_without_routes_has_no_such_key() -> None:
    only = {"cniVersion": "1.0.0", "routes": [{"dst": "0.0.0.0/0"}]}
    attachments = [attachment(0, only), made(1, claim=("10.1.0.1",))]
    assert json.loads(adjusted_result(attachments, attachments[0])) == {"cniVersion": "1.0.0"}


def test_a_default_route_in_another_table_is_ignored() -> None:
    in_table = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/n"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "table": 100}, {"dst": "0.0.0.0/0", "table": 254}],
    }
    attachments = [attachment(0, in_table), made(1, claim=("10.1.0.1",))]
    assert json.loads(adjusted_result(attachments, attachments[0]))["routes"] == in_table["routes"][:1]
    attachments = [attachment(0, in_table, claim=()), made(1)]
    in_table["routes"].pop()
    without = [attachment(0, in_table, claim=()), made(1)]
    assert [route.gateways for route in claimed_routes(attachments)] == [{4: ""}]
    assert claimed_routes(without) == ()


def test_interfaces_of_a_claim_are_those_in_the_container() -> None:
    def with_interfaces(*names: str) -> dict[str, Any]:
        inside = [{"name": name, "sandbox": "/n"} for name in names]
        return {"cniVersion": "1.0.0", "interfaces": [{"name": "veth0"}, *inside]}

    attachments = [
        attachment(0, with_interfaces("eth0", "extra0")),
        attachment(1, with_interfaces("net1", "extra1", "eth0"), claim=("10.1.0.1",)),
        attachment(2, with_interfaces("net2", "net1")),
    ]
    (route,) = claimed_routes(attachments)
    assert route.own == {"net1", "extra1"}
    assert route.others == {"eth0", "extra0", "net2"}


def test_until_all_attachments_are_made_no_result_is_adjusted() -> None:
    attachments = [made(0), made(1, claim=("10.1.0.1",)), attachment(2, "")]
    assert [adjusted_result(attachments, each) for each in attachments] == [each.result for each in attachments]


def test_an_undecodable_result_is_passed_on_unchanged() -> None:
    attachments = [made(0), attachment(1, "torn {", claim=("10.1.0.1",))]
    assert adjusted_result(attachments, attachments[1]) == "torn {"
    assert ("0.0.0.0/0", "10.0.0.1") not in routes(attachments, 0)


def test_a_result_of_an_old_version_without_address_stays_unchanged() -> None:
    attachments = [made(0), attachment(1, {"cniVersion": "0.2.0"}, claim=("10.1.0.1",), version="0.2.0")]
    assert adjusted_result(attachments, attachments[1]) == attachments[1].result


families = st.sampled_from([(), (4,), (6,), (4, 6)])
attachments_made = st.lists(st.tuples(families, families, st.sampled_from(SUPPORTED)), min_size=1, max_size=4)


@given(attachments_made, st.data())
def test_only_claimed_families_get_a_new_default_route(
    drawn: list[tuple[tuple[int, ...], tuple[int, ...], str]], data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(drawn) - 1))
    asked = data.draw(families)
    claim = tuple(GATEWAY[family].format(9) for family in asked)
    attachments = []
    for index, (has, brings, version) in enumerate(drawn):
        # A result in an old version has routes only for families of its addresses.
        has = (*has, *(f for f in asked if f not in has)) if index == chosen else has  # noqa: PLW2901
        brings = tuple(family for family in brings if family in has)  # noqa: PLW2901
        one = made(index, has, defaults=brings, version=version, claim=claim if index == chosen else None)
        attachments.append(one)
    claimed = claimed_routes(attachments)
    gateways = {family: gateway for route in claimed for family, gateway in route.gateways.items()}
    moved = set(asked or [f for f in EVERYWHERE if EVERYWHERE[f] in dict(decoded(attachments[chosen].result))])
    assert (set(gateways), len(claimed)) == (moved, bool(moved))
    for family, everywhere in EVERYWHERE.items():
        before = [(i, gw) for i, one in enumerate(attachments) for to, gw in decoded(one.result) if to == everywhere]
        after = [(i, gw) for i in range(len(attachments)) for to, gw in routes(attachments, i) if to == everywhere]
        if family not in moved:
            assert after == before
        else:
            assert after == [(chosen, gateways[family] or GATEWAY[family].format(chosen))]
    for index, one in enumerate(attachments):  # nothing else has changed
        assert others_of(decoded(one.result)) == others_of(routes(attachments, index))
        assert adjusted_result(readjusted(attachments), readjusted(attachments)[index]) == adjusted_result(
            attachments, one
        )


def readjusted(attachments: list[Attachment]) -> list[Attachment]:
    return [
        Attachment(plan=each.plan, phase=each.phase, result=adjusted_result(attachments, each), device_info="")
        for each in attachments
    ]


def decoded(text: str) -> list[tuple[str, str]]:
    try:
        return sorted((route.dst, route.gw) for route in results.decode(text, "1.1.0").routes)
    except ResultError as error:
        raise AssertionError(text) from error


def others_of(all_routes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [route for route in all_routes if route[0] not in EVERYWHERE.values()]


# --- routes that no default-route requests ---


def unrequested(attachments: list[Attachment]) -> list[tuple[str, int]]:
    return [(route.ifname, route.family) for route in unrequested_routes(attachments)]


@pytest.mark.parametrize("version", SUPPORTED)
def test_default_routes_of_further_networks_are_unrequested(version: str) -> None:
    attachments = [made(0, version=version), made(1, version=version), made(2, version=version, defaults=(6,))]
    assert unrequested(attachments) == [("net1", 4), ("net1", 6), ("net2", 6)]
    route = unrequested_routes(attachments)[0]
    assert (route.network, route.own, route.default) == ("d/n1", frozenset({"net1"}), frozenset({"eth0"}))


def test_routes_of_the_default_network_and_of_other_tables_are_not() -> None:
    elsewhere = {"cniVersion": "1.1.0", "routes": [{"dst": "0.0.0.0/0", "table": 100}, {"dst": "10.0.0.0/8"}]}
    assert unrequested([made(0), made(1, defaults=()), attachment(2, elsewhere), attachment(3, "torn")]) == []


def test_claimed_routes_are_requested() -> None:
    assert unrequested([made(0), made(1, claim=())]) == []
    assert unrequested([made(0), made(1, defaults=(4,), claim=()), made(2)]) == [("net2", 6)]
    assert unrequested([made(0), made(1, claim=("10.1.0.9",)), made(2)]) == [("net1", 6), ("net2", 6)]
    assert unrequested([made(0, claim=("10.0.0.9",)), made(1)]) == [("net1", 6)]


@given(
    st.lists(
        st.tuples(
            st.frozensets(st.sampled_from([4, 6])),
            st.none() | st.sampled_from([(), ("10.9.0.1",), ("fd09::1",), ("10.9.0.1", "fd09::1")]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_default_route_is_requested_dropped_or_reported(
    networks: list[tuple[frozenset[int], tuple[str, ...] | None]],
) -> None:
    claimant = next((index for index, (_, claim) in enumerate(networks) if claim is not None), None)
    attachments = [
        made(index, defaults=tuple(sorted(families)), claim=claim if index == claimant else None)
        for index, (families, claim) in enumerate(networks)
    ]
    moved = {family for route in claimed_routes(attachments) for family in route.gateways}
    assert unrequested(attachments) == [
        (f"net{index}", family)
        for index, (families, _) in enumerate(networks)
        for family in sorted(families - moved)
        if index
    ]
