"""vlan, ipvlan and what they share: which interface they rest on, and what becomes of it when that can't be.

Where the kernel has no such kind, another takes its place, so that all but the kind itself is put to the test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import ipvlan, vlan
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node
from tests.support.plugins.native_harness import (
    BOTH,
    answer,
    call,
    card,
    cut_everywhere,
    data_of,
    encoded,
    ip,
    is_refused,
    kernel_has,
    late,
    names,
    needs,
    outcome,
    reference_outcome,
    shown,
    works_or_names_its_module,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

PLUGINS: dict[str, Any] = {"vlan": vlan, "ipvlan": ipvlan}
VLAN: dict[str, Any] = {"type": "vlan", "master": "par0", "vlanId": 7}
IPVLAN: dict[str, Any] = {"type": "ipvlan", "master": "par0"}
BASE = [VLAN, IPVLAN]

CASES: dict[str, dict[str, Any]] = {
    "vlan": VLAN,
    "vlan with mtu": VLAN | {"mtu": 1400, "dns": {"domain": "example.com"}},
    "ipvlan": IPVLAN,
    "ipvlan l3": IPVLAN | {"mode": "l3", "mtu": 1400},
    "ipvlan l3s": IPVLAN | {"mode": "l3s"},
    "ipvlan on the default route": {"type": "ipvlan"},
}
STATIC: dict[str, Any] = {"addresses": [{"address": "10.77.0.5/24", "gateway": "10.77.0.1"}]}


def furnish(netns: str = "") -> None:
    """Give the node a card with the default route, and the container its own."""
    card()
    ip("addr add 192.0.2.5/24 dev par0")
    ip("route add default via 192.0.2.1")
    if netns:
        ip("link add in0 mtu 1410 type veth peer name in1", netns)
        ip("link set in0 up", netns)
        ip("link set in1 up", netns)


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish(path)
        yield path


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function: a kind of interface, or macvlan in its place if the kernel does not support it."""

    def chosen(name: str) -> str:
        if kernel_has(name):
            return name
        plugin, private_mode = PLUGINS[name], {"IFLA_MACVLAN_MODE": "private"}
        checked = plugin._data
        monkeypatch.setattr(plugin, "TYPE", "macvlan")
        monkeypatch.setattr(plugin, "_data", lambda config: checked(config) and private_mode)
        return "macvlan"

    return chosen


@pytest.mark.parametrize(("mode", "number"), [("", 0), ("l2", 0), ("l3", 1), ("l3s", 2)])
def test_pyroute2_reads_the_mode_of_an_ipvlan(mode: str, number: int) -> None:
    data = ipvlan._data(msgspec.convert(IPVLAN | {"mode": mode}, ipvlan.Ipvlan))
    assert data_of("ipvlan", data).get_attr("IFLA_IPVLAN_MODE") == number


@pytest.mark.parametrize("number", [0, 7, 4094])
def test_pyroute2_reads_the_id_of_a_vlan(number: int) -> None:
    data = vlan._data(msgspec.convert(VLAN | {"vlanId": number}, vlan.Vlan))
    assert data_of("vlan", data).get_attr("IFLA_VLAN_ID") == number


@pytest.mark.skipif(not (REFERENCE / "vlan").exists(), reason="the reference plugins are not installed")
@pytest.mark.parametrize(
    "config", [pytest.param(each, id=name, marks=needs(each["type"])) for name, each in CASES.items()]
)
def test_a_native_interface_is_like_the_reference_plugins(config: dict[str, Any]) -> None:
    mine = outcome(PLUGINS[config["type"]], config, STATIC, furnish)
    assert differences(mine, reference_outcome(config, STATIC, furnish)) == []


@pytest.mark.parametrize("config", CASES.values(), ids=[*CASES])
@pytest.mark.parametrize("place", [{}, {"linkInContainer": True, "master": "in0"}], ids=["node", "container"])
def test_it_rests_on_the_interface_that_was_named(
    netns: str, kind: Callable[[str], str], config: dict[str, Any], place: dict[str, Any]
) -> None:
    kind(config["type"])
    config = config | place
    plugin = PLUGINS[config["type"]]
    result = plugin.add(call(config, netns), BOTH)
    seen = shown("addr show net1", netns)[0]
    if place:
        assert seen["link"] == "in0"
    else:
        assert seen["link_index"] == shown("link show par0")[0]["ifindex"]
    assert seen["mtu"] == config.get("mtu", 1410 if place else 1450)
    assert {each["local"] for each in seen["addr_info"] if each["scope"] == "global"} == {"10.77.0.5", "fd77::5"}
    assert encoded(result)["interfaces"] == [{"name": "net1", "mac": seen["address"], "sandbox": netns}]
    plugin.check(call(config, netns, prev_result=result))


@pytest.mark.parametrize("config", CASES.values(), ids=[*CASES])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(kind: Callable[[str], str], config: dict[str, Any]) -> None:
    kind(config["type"])
    cut_everywhere(PLUGINS[config["type"]], config, BOTH, furnish)


@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_a_del_succeeds_on_anything_that_is_gone(kind: Callable[[str], str], config: dict[str, Any]) -> None:
    kind(config["type"])
    late(PLUGINS[config["type"]], config, BOTH, furnish)


@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_a_del_succeeds_when_the_card_is_gone(netns: str, kind: Callable[[str], str], config: dict[str, Any]) -> None:
    kind(config["type"])
    plugin = PLUGINS[config["type"]]
    result = plugin.add(call(config, netns), BOTH)
    ip("link del par0")
    with pytest.raises(NativeError, match=r"par0 is missing on this node|interface net1 is gone"):
        plugin.check(call(config, netns, prev_result=result))
    plugin.delete(call(config, netns))


REFUSALS: list[tuple[dict[str, Any], Any, str]] = [
    (VLAN | {"master": "eth9"}, BOTH, "the master interface eth9 is missing on this node"),
    (VLAN | {"master": "in0"}, BOTH, "the master interface in0 is missing on this node"),
    (VLAN | {"linkInContainer": True}, BOTH, "the master interface par0 is missing in the container"),
    (VLAN | {"master": ""}, BOTH, "has no master, which a VLAN needs: set master"),
    (VLAN | {"vlanId": 4095}, BOTH, "vlanId 4095 is not between 0 and 4094"),
    (VLAN | {"vlanId": -1}, BOTH, "Expected `int` >= 0"),
    (VLAN | {"mtu": 1451}, BOTH, "mtu 1451 is more than the 1450 of par0"),
    (VLAN | {"mtu": 1411, "linkInContainer": True, "master": "in0"}, BOTH, "more than the 1410 of in0"),
    (VLAN, None, "add ipam to net"),
    (VLAN, answer(), "assigned no address to net1"),
    (IPVLAN | {"master": "eth9"}, BOTH, "the master interface eth9 is missing on this node"),
    (IPVLAN | {"linkInContainer": True}, BOTH, "the master interface par0 is missing in the container"),
    ({"type": "ipvlan", "linkInContainer": True}, BOTH, "there is no default route in the container"),
    (IPVLAN | {"mode": "l4"}, BOTH, "ipvlan has no mode 'l4': use l2, l3 or l3s"),
    (IPVLAN, None, "add ipam to net, or a plugin before it"),
]


@pytest.mark.parametrize(
    ("config", "ipam", "words"), REFUSALS, ids=[f"{c['type']}: {words}" for c, _, words in REFUSALS]
)
def test_an_impossible_add_is_refused_with_a_reason(netns: str, config: dict[str, Any], ipam: Any, words: str) -> None:
    is_refused(PLUGINS[config["type"]], call(config, netns), ipam, words)
    assert "net1" not in names(netns)


@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_a_foreign_interface_is_left_unchanged(netns: str, kind: Callable[[str], str], config: dict[str, Any]) -> None:
    kind(config["type"])
    ip("link add net1 link in0 type macvlan mode vepa", netns)
    with pytest.raises(NativeError, match="has another interface net1 already"):
        PLUGINS[config["type"]].add(call(config, netns), BOTH)
    assert "net1" in names(netns)


@needs("vlan")
def test_a_vlan_has_one_interface_on_a_card(netns: str) -> None:
    vlan.add(call(VLAN, netns), BOTH)
    with container() as other:
        is_refused(vlan, call(VLAN, other), BOTH, "VLAN 7 of par0 has an interface elsewhere")


@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_check_sees_another_card_and_another_kind(
    netns: str, kind: Callable[[str], str], config: dict[str, Any]
) -> None:
    kind(config["type"])
    plugin = PLUGINS[config["type"]]
    asked = call(config, netns, prev_result=plugin.add(call(config, netns), BOTH))
    plugin.check(asked)
    ip("link set par0 name par9")
    ip("link set wpar0 name wpar9")
    card()
    with pytest.raises(NativeError, match="net1 no longer has the parent par0"):
        plugin.check(asked)
    ip("link del net1", netns)
    ip("link add net1 type bridge", netns)
    with pytest.raises(NativeError, match="net1 is a bridge, not the"):
        plugin.check(asked)


def test_check_sees_another_mtu_of_a_vlan(netns: str, kind: Callable[[str], str]) -> None:
    kind("vlan")
    config = VLAN | {"mtu": 1400}
    asked = call(config, netns, prev_result=vlan.add(call(config, netns), BOTH))
    ip("link set net1 mtu 1300", netns)
    with pytest.raises(NativeError, match="has mtu 1300, not 1400"):
        vlan.check(asked)


CHAINED = answer(
    "10.77.0.5/24",
    gateways=("10.77.0.1",),
    routes=[{"dst": "10.88.0.0/16"}],
    interfaces=[{"name": "par0", "mac": "02:00:00:00:00:01"}],
)


def test_an_ipvlan_takes_over_from_the_plugin_before(netns: str, kind: Callable[[str], str]) -> None:
    kind("ipvlan")
    config = {"type": "ipvlan", "dns": {"domain": "example.com"}}
    asked = call(config, netns, prev_result=CHAINED)
    result = encoded(ipvlan.add(asked, None))
    seen = shown("addr show net1", netns)[0]
    assert seen["link_index"] == shown("link show par0")[0]["ifindex"]
    assert result == {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": seen["address"], "sandbox": netns}],
        "ips": [{"interface": 0, "address": "10.77.0.5/24", "gateway": "10.77.0.1"}],
        "routes": [{"dst": "10.88.0.0/16"}],
        "dns": {"domain": "example.com"},
    }
    ipvlan.check(call(config, netns, prev_result=ipvlan.add(asked, None)))
    ipvlan.delete(asked)
    assert encoded(ipvlan.add(asked, answer("10.99.0.5/24")))["ips"] == [{"interface": 0, "address": "10.99.0.5/24"}]


@pytest.mark.parametrize("interfaces", [[], [{"name": ""}], [{"name": "par0"}, {"name": "wpar0"}]], ids=[0, 1, 2])
def test_an_ipvlan_needs_one_interface_of_the_plugin_before(netns: str, interfaces: list[Any]) -> None:
    before = answer("10.77.0.5/24", interfaces=interfaces)
    is_refused(ipvlan, call({"type": "ipvlan"}, netns, prev_result=before), None, "instead of one: set master")


@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_a_missing_kernel_module_is_named(netns: str, config: dict[str, Any]) -> None:
    works_or_names_its_module(PLUGINS[config["type"]], config["type"], call(config, netns), BOTH)


@pytest.mark.skipif(not (REFERENCE / "vlan").exists(), reason="the reference plugins are not installed")
@pytest.mark.parametrize("config", BASE, ids=["vlan", "ipvlan"])
def test_a_missing_kernel_module_fails_as_in_the_reference_plugin(netns: str, config: dict[str, Any]) -> None:
    theirs = {"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "static"} | STATIC} | config
    if kernel_has(config["type"]):
        execute(config["type"], "ADD", theirs, netns, "net1")
    else:
        with pytest.raises(AssertionError, match=r'"code": 999'):
            execute(config["type"], "ADD", theirs, netns, "net1")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (VLAN | {"ipam": {"type": "static"}, "linkInContainer": True}, ""),
        (VLAN, "no ipam"),
        (VLAN | {"vlanID": 7}, "vlanID"),
        (VLAN | {"mtu": 2**32}, "mtu"),
        (IPVLAN, ""),
        (IPVLAN | {"mtu": "1400"}, "mtu"),
        (IPVLAN | {"flag": "vepa"}, "flag"),
    ],
)
def test_options_of_the_reference_plugin_only_are_not_native(config: dict[str, Any], reason: str) -> None:
    said = PLUGINS[config["type"]].unsupported({"cniVersion": "1.0.0", "name": "net"} | config)
    assert (reason in said, bool(said)) == (True, bool(reason))
