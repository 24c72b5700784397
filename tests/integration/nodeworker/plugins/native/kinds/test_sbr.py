"""Source based routing: equal to the reference plugin's for any earlier state and after any interruption."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from nodeworker.kernel.rtnetlink import message, policy_rules
from nodeworker.kernel.rtnetlink.policy_rules import Rule
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kinds import sbr
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node, view
from tests.support.plugins.native_harness import call, cut_everywhere, encoded, ip, shown

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
like_reference = pytest.mark.skipif(
    not (REFERENCE / "sbr").exists(), reason="Debian's containernetworking-plugins are not installed"
)

CONFIG: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "type": "sbr"}

V4 = ("10.77.0.5/24", "10.77.0.1")
V4_TOO = ("10.77.0.6/24", "10.77.0.1")
V4_ELSEWHERE = ("10.78.0.5/24", "10.78.0.1")
V6 = ("fd77::5/64", "fd77::1")


def made(*addresses: tuple[str, str]) -> Callable[[str], None]:
    """Return what makes net1 with *addresses*, beside an eth0 that has the default routes."""

    def furnish(netns: str) -> None:
        for name, mac in (("eth0", "02:00:00:00:00:01"), ("net1", "02:00:00:00:00:02")):
            ip(f"link add {name} address {mac} type veth peer name p{name}", netns)
            ip(f"link set p{name} up", netns)
            ip(f"link set {name} up", netns)
        ip("addr add 192.0.2.5/24 dev eth0", netns)
        ip("route add default via 192.0.2.1", netns)
        ip("-6 addr add 2001:db8::5/64 dev eth0 nodad", netns)
        ip("-6 route add default via 2001:db8::1", netns)
        for address, _ in addresses:
            ip(f"addr add {address} dev net1{' nodad' if ':' in address else ''}", netns)

    return furnish


def result(netns: str, *addresses: tuple[str, str], interface: int | None = 1) -> Result:
    return results.decode(
        json.dumps(
            {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "veth1"}, {"name": "net1", "sandbox": netns}, {"name": "net2"}],
                "ips": [
                    {"address": address}
                    | ({"gateway": gateway} if gateway else {})
                    | ({} if interface is None else {"interface": interface})
                    for address, gateway in addresses
                ],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
        ),
        "1.0.0",
    )


CASES: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "IPv4": ([V4], []),
    "IPv6": ([V6], []),
    "both": ([V4, V6], []),
    "two of one network": ([V4, V4_TOO], []),
    "two networks": ([V4, V4_ELSEWHERE], []),
    "without a gateway": ([(V4[0], ""), (V6[0], "")], []),
    "routes by gateways": (
        [V4, V6],
        [
            "route add 10.88.0.0/16 via 10.77.0.1",
            "route add 10.89.0.0/16 via 10.77.0.9 metric 50 mtu 1400 advmss 1300",
            "-6 route add fd88::/64 via fd77::9",
            "route add 10.90.0.0/16 dev net1 scope link",
        ],
    ),
    "default routes": (
        [V4, V6],
        ["route add default via 10.77.0.9 metric 7", "-6 route add default via fd77::9 metric 7"],
    ),
    "another source": ([V4, V4_ELSEWHERE], ["route add 10.91.0.0/16 dev net1 src 10.78.0.5"]),
    "a gateway that is no neighbour": ([V4], ["route add 10.92.0.0/16 via 10.93.0.1 dev net1 onlink"]),
    "tables that rules use": ([V4, V6], ["rule add from 10.1.1.1 lookup 100", "-6 rule add from fd01::1 lookup 102"]),
    "a table of others": ([V4], ["rule add from 10.1.1.1 lookup 100", "route add 10.94.0.0/16 dev eth0 table 100"]),
    "routes elsewhere": ([V4], ["route add 10.95.0.0/16 dev net1 table 50", "route add blackhole 10.96.0.0/16"]),
}


def furnished(addresses: list[tuple[str, str]], words: list[str]) -> Callable[[str], None]:
    def furnish(netns: str) -> None:
        made(*addresses)(netns)
        for each in words:
            ip(each, netns)

    return furnish


@pytest.fixture(params=CASES.values(), ids=[*CASES])
def case(request: pytest.FixtureRequest) -> tuple[list[tuple[str, str]], Callable[[str], None]]:
    addresses, words = request.param
    return addresses, furnished(addresses, words)


def natively(addresses: list[tuple[str, str]], furnish: Callable[[str], None]) -> list[Any]:
    with node(), container() as netns:
        furnish(netns)
        asked = call(CONFIG, netns, prev_result=result(netns, *addresses))
        attached = view(netns, {"dns": {}} | encoded(sbr.add(asked, None)))
        sbr.check(asked)
        sbr.delete(asked)
        return [attached, view(netns)]


def by_reference(addresses: list[tuple[str, str]], furnish: Callable[[str], None]) -> list[Any]:
    with node(), container() as netns:
        furnish(netns)
        config = CONFIG | {"prevResult": encoded(result(netns, *addresses))}
        attached = view(netns, execute("sbr", "ADD", config, netns, "net1"))
        execute("sbr", "DEL", config, netns, "net1")
        return [attached, view(netns)]


@like_reference
def test_rules_and_tables_are_like_the_reference_plugins(
    case: tuple[list[tuple[str, str]], Callable[[str], None]],
) -> None:
    assert differences(natively(*case), by_reference(*case)) == []


@pytest.mark.parametrize("name", ["two of one network", "routes by gateways", "default routes"])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(name: str) -> None:
    addresses, words = CASES[name]
    previous = result("/run/netns/any", *addresses)
    cut_everywhere(sbr, CONFIG, None, furnished(addresses, words), prev_result=previous)


@like_reference
@pytest.mark.parametrize("native_first", [True, False])
def test_each_plugin_removes_the_interface_of_the_other(native_first: bool) -> None:
    with node(), container() as netns:
        made(V4, V6)(netns)
        before = shown("-4 rule", netns), shown("-6 rule", netns)
        asked = call(CONFIG, netns, prev_result=result(netns, V4, V6))
        config = CONFIG | {"prevResult": encoded(result(netns, V4, V6))}
        if native_first:
            sbr.add(asked, None)
            execute("sbr", "DEL", config, netns, "net1")
        else:
            execute("sbr", "ADD", config, netns, "net1")
            sbr.check(asked)
            sbr.delete(asked)
        assert (shown("-4 rule", netns), shown("-6 rule", netns)) == before


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        made(V4, V6)(path)
        yield path


def asked(netns: str, *addresses: tuple[str, str], **more: Any) -> Call:
    return call(CONFIG, netns, prev_result=result(netns, *(addresses or (V4, V6)), **more))


def sources(netns: str) -> set[str]:
    return {each["src"] for family in ("-4", "-6") for each in shown(f"{family} rule", netns)} - {"all"}


def test_del_succeeds_on_anything_that_is_gone(netns: str) -> None:
    wanted = asked(netns)
    sbr.delete(wanted)
    sbr.add(wanted, None)
    ip("link del net1", netns)
    sbr.delete(wanted)
    assert sources(netns) == set()
    sbr.delete(wanted)
    sbr.delete(call(CONFIG, netns))
    sbr.delete(call(CONFIG, ""))
    sbr.delete(call(CONFIG, "/run/netns/plumbline-test-gone"))


def test_rules_of_flushed_addresses_are_deleted(netns: str) -> None:
    sbr.add(asked(netns), None)
    ip("addr flush dev net1", netns)
    sbr.delete(asked(netns))
    assert sources(netns) == set()


def test_rules_of_others_stay(netns: str) -> None:
    ip("rule add from 10.77.0.5 lookup 50", netns)
    ip("route add 10.99.0.0/16 dev eth0 table 200", netns)
    ip("rule add from 10.77.0.5 lookup 200", netns)
    before = shown("-4 rule", netns)
    sbr.add(asked(netns), None)
    assert {each.get("table") for each in shown("-4 rule", netns)} > {"50", "200", "100"}
    sbr.delete(asked(netns))
    assert shown("-4 rule", netns) == before


@pytest.mark.parametrize(("interface", "found"), [(2, set()), (None, {"10.77.0.5", "fd77::5"})])
def test_only_addresses_that_are_not_another_interfaces_get_rules(
    netns: str, interface: int | None, found: set[str]
) -> None:
    sbr.add(asked(netns, interface=interface), None)
    assert sources(netns) == found


def test_a_table_that_has_routes_and_no_rule_is_not_taken(netns: str) -> None:
    ip("route add 10.99.0.0/16 dev eth0 table 100", netns)
    sbr.add(asked(netns, V4), None)
    assert "101" in {each.get("table") for each in shown("-4 rule", netns)}


def test_tables_beyond_what_fits_the_header_work(netns: str) -> None:
    for table in range(100, 256):
        ip(f"rule add from 10.1.1.1 lookup {table}", netns)
    sbr.add(asked(netns, V4), None)
    assert [each["dst"] for each in shown("route show table 256", netns)] == ["default", "10.77.0.0/24"]
    sbr.check(asked(netns, V4))
    sbr.delete(asked(netns, V4))
    assert sources(netns) == {"10.1.1.1"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("rule del from 10.77.0.5", r"rule of net1 for source 10\.77\.0\.5 is gone"),
        ("-6 rule del from fd77::5", "rule of net1 for source fd77::5 is gone"),
        ("route del default table 100", r"table 100 of net1 has lost its route via 10\.77\.0\.1"),
        ("link del net1", "the container has no interface net1"),
    ],
)
def test_check_reports_changes_since_the_add(netns: str, damage: str, words: str) -> None:
    sbr.add(asked(netns), None)
    sbr.check(asked(netns))
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        sbr.check(asked(netns))


def test_an_impossible_add_is_refused_with_a_reason(netns: str) -> None:
    for wanted, words in (
        (call(CONFIG, netns), "prevResult is missing"),
        (call(CONFIG, netns, prev_result=Result(cni_version="1.0.0")), "assigned net1 no address"),
        (call(CONFIG, netns, prev_result=result(netns, V4, interface=None), ifname="net7"), "no interface net7"),
        (asked(netns, ("10.77.0.5/24", "10.99.0.1")), "can't route the packets of net1"),
    ):
        with pytest.raises(NativeError, match=words) as caught:
            sbr.add(wanted, None)
        assert caught.value.code == 999
    assert any(each["dst"] == "10.77.0.0/24" for each in shown("route", netns)), "the main table is as it was"


@pytest.mark.parametrize(("source", "table", "priority"), [("10.77.0.5/32", 100, 0), ("fd77::5/128", 100_000, 77)])
def test_pyroute2_decodes_our_rules(source: str, table: int, priority: int) -> None:
    rule = Rule(source=ipaddress.ip_network(source), table=table, priority=priority)
    decoded: Any = fibmsg(message.packed(policy_rules.add(rule), 1))
    decoded.decode()
    address, _, length = source.partition("/")
    assert (decoded["family"], decoded["src_len"], decoded["action"]) == (10 if ":" in source else 2, int(length), 1)
    assert decoded.get_attr("FRA_SRC") == address
    assert (decoded.get_attr("FRA_TABLE") or decoded["table"]) == table
    assert (decoded.get_attr("FRA_PRIORITY") or 0) == priority


def test_options_of_the_reference_plugin_only_are_not_native() -> None:
    assert sbr.unsupported(CONFIG) == ""
    assert "table" in sbr.unsupported(CONFIG | {"table": 7})
    assert sbr.unsupported(CONFIG | {"ipam": {"type": "static"}}) == "ipam"
