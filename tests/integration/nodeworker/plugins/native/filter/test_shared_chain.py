"""Interfaces of one container on the same network are masqueraded each for itself, though they share a chain."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import DriftKind, Phase
from nodeworker.drift import filter_rules as known_rules
from nodeworker.drift.expected_rules import ExpectedRules, rules_of
from nodeworker.kernel.layouts import nftsocket
from nodeworker.kernel.nftables.client import Chain, Nftables
from nodeworker.kernel.nftables.expressions import sought
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec.results import Result
from tests.integration.nodeworker.plugins.native.filter.test_filters import pytestmark, rules, use_older_iptables
from tests.support.plugins.kernel_view import REFERENCE, container, execute, executed, node
from tests.support.plugins.native_harness import answer, call, ip

__all__ = ["pytestmark"]

SHARED: dict[str, Any] = {
    "type": "bridge",
    "bridge": "br0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "static"},
}
BACKENDS = ("iptables", "nftables")
NET1 = ("10.77.0.5/24", "fd77::5/64")
NET2 = ("10.77.0.6/24", "fd77::6/64")
ELSEWHERE = ("10.78.0.6/23",)
OUTSIDE = "192.0.2.2"
by_reference = pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="no reference plugins are installed")


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        yield path


def by(backend: str) -> dict[str, Any]:
    return SHARED | {"ipMasqBackend": backend}


def add(config: dict[str, Any], netns: str, ifname: str, addresses: tuple[str, ...]) -> Result:
    return bridge.add(call(config, netns, ifname=ifname), answer(*addresses))


def both(config: dict[str, Any], netns: str) -> tuple[Result, Result]:
    return add(config, netns, "net1", NET1), add(config, netns, "net2", NET2)


def delete(config: dict[str, Any], netns: str, ifname: str, result: Result | None = None) -> None:
    bridge.delete(call(config, netns, ifname=ifname, prev_result=result))


def static(addresses: tuple[str, ...]) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": [{"address": each} for each in addresses]}
    return {"cniVersion": "1.0.0", "name": "net"} | SHARED | {"ipam": ipam}


def masqueraded(config: dict[str, Any], ifname: str, addresses: tuple[str, ...]) -> ExpectedRules:
    found = rules_of(
        config | {"name": "net"}, "sandbox", ifname, [ipaddress.ip_interface(each) for each in addresses], ""
    )
    assert found
    return found


def lost(config: dict[str, Any]) -> dict[str, str]:
    """Return the remaining rules of each interface whose rules are incomplete."""
    wanted = [masqueraded(config, "net1", NET1), masqueraded(config, "net2", NET2)]
    found = known_rules.missing_rules(wanted, Phase.CHECK, RulesetCache())
    return {ifname: left[DriftKind.MASQUERADE_MISSING] for ifname, left in found.items()}


def listed(program: str = "iptables") -> list[str]:
    words = [program, "-t", "nat", "-S"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line for line in shown.splitlines() if "CNI-" in line]


def sources() -> list[str]:
    """Return whose packets are led to the chain."""
    return [line.split()[3] for line in listed() if line.startswith("-A POSTROUTING")]


def reaches_outside(netns: str, address: str) -> bool:
    """Return whether a host answers that has a route to the node but none to *address*."""
    name = netns.rpartition("/")[2]
    ping = ["ip", "netns", "exec", name, "ping", "-c", "1", "-W", "1", "-I", address, OUTSIDE]
    return subprocess.run(ping, check=False, capture_output=True).returncode == 0


@pytest.fixture
def outside(netns: str) -> Iterator[None]:
    with container() as path:
        ip(f"link add out0 type veth peer name eth0 netns {path.rpartition('/')[2]}")
        for words, where in (("out0", ""), ("eth0", path)):
            ip(f"link set {words} up", where)
        ip("addr add 192.0.2.1/24 dev out0")
        ip(f"addr add {OUTSIDE}/24 dev eth0", path)
        yield


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_interface_has_its_masquerading_until_its_own_del(netns: str, backend: str) -> None:
    config = by(backend)
    first, second = both(config, netns)
    ip("route add default via 10.77.0.1", netns)
    assert [reaches_outside(netns, each) for each in ("10.77.0.5", "10.77.0.6")] == [True, True]
    for ifname, result in (("net1", first), ("net2", second)):
        bridge.check(call(config, netns, ifname=ifname, prev_result=result))
    delete(config, netns, "net1", first)
    ip("route replace default via 10.77.0.1", netns)
    assert reaches_outside(netns, "10.77.0.6")
    bridge.check(call(config, netns, ifname="net2", prev_result=second))
    delete(config, netns, "net2", second)
    assert "sandbox" not in str(rules(netns))


@by_reference
def test_both_have_the_rules_that_the_reference_plugin_makes() -> None:
    made: list[Any] = []
    for native in (True, False):
        with node(), container() as netns:
            for ifname, addresses in (("net1", NET1), ("net2", NET2)):
                if native:
                    add(SHARED, netns, ifname, addresses)
                else:
                    execute("bridge", "ADD", static(addresses), netns, ifname)
            made.append(rules(netns))
    assert made[0] == made[1]


@by_reference
def test_only_the_reference_plugin_deletes_rules_of_other_interfaces(netns: str) -> None:
    results = {
        ifname: execute("bridge", "ADD", static(addresses), netns, ifname)
        for ifname, addresses in (("net1", NET1), ("net2", NET2))
    }
    whole = listed()
    refused = executed("bridge", "DEL", static(NET2) | {"prevResult": results["net2"]}, netns, "net2")
    assert "CHAIN_DEL failed" in refused.stdout
    assert lost(SHARED)["net1"] != ""
    known_rules.restore(masqueraded(SHARED, "net1", NET1), DriftKind.MASQUERADE_MISSING, "")
    assert "net1" not in lost(SHARED)
    execute("bridge", "ADD", static(NET2), netns, "net2")
    assert sorted(listed()) == sorted(whole)
    delete(SHARED, netns, "net2", answer(*NET2))
    assert listed() == [line for line in whole if "10.77.0.6" not in line]
    delete(SHARED, netns, "net1", answer(*NET1))
    assert listed() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_add_leaves_other_rules_unchanged(netns: str, backend: str) -> None:
    config = by(backend)
    both(config, netns)
    delete(config, netns, "net2")
    assert set(lost(config)) == {"net2"}
    add(config, netns, "net2", NET2)
    add(config, netns, "net2", NET2)
    assert lost(config) == {}
    delete(config, netns, "net1")
    delete(config, netns, "net2")
    assert "sandbox" not in str(rules(netns))


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_succeeds_when_the_namespace_is_gone(backend: str) -> None:
    config = by(backend)
    with node(), container() as still:
        with container() as netns:
            first, second = both(config, netns)
        delete(config, netns, "net1", first)
        delete(config, "", "net2", second)
        assert "sandbox" not in str(rules(still))


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
def test_rules_are_compared_by_their_matches(
    netns: str, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if program == "iptables-legacy":
        use_older_iptables(monkeypatch, tmp_path)
    config = by("iptables")
    results = both(config, netns)
    assert lost(config) == {}
    whole = sorted(listed(program))
    (entrance,) = [line for line in whole if "10.77.0.5" in line]
    words = ["*nat", entrance.replace("-A", "-D", 1), entrance.replace("10.77.0.5", "10.77.0.99"), "COMMIT", ""]
    subprocess.run([f"{program}-restore", "--noflush"], input="\n".join(words), text=True, check=True)
    assert lost(config) == {"net1": "5 of 6 rules of iptables"}
    with pytest.raises(NativeError, match="no longer masqueraded"):
        bridge.check(call(config, netns, ifname="net1", prev_result=results[0]))
    bridge.check(call(config, netns, ifname="net2", prev_result=results[1]))
    known_rules.restore(masqueraded(config, "net1", NET1), DriftKind.MASQUERADE_MISSING, "")
    assert lost(config) == {}
    assert sorted(line for line in listed(program) if "10.77.0.99" not in line) == whole
    delete(config, netns, "net1", results[0])
    assert set(lost(config)) == {"net1"}
    delete(config, netns, "net2", results[1])
    assert listed(program) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_rules_of_both_come_back(netns: str, backend: str) -> None:
    config = by(backend)
    both(config, netns)
    whole = rules(netns)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert lost(config) == {"net1": "", "net2": ""}
    for ifname, addresses in (("net1", NET1), ("net2", NET2)):
        known_rules.restore(masqueraded(config, ifname, addresses), DriftKind.MASQUERADE_MISSING, "")
    assert lost(config) == {}
    assert rules(netns) == whole


def test_exceptions_of_all_interfaces_precede_masquerading(netns: str) -> None:
    config = by("iptables") | {"isGateway": False}
    wanted = [masqueraded(config, "net1", NET1[:1]), masqueraded(config, "net2", ELSEWHERE)]
    first, _ = add(config, netns, "net1", NET1[:1]), add(config, netns, "net2", ELSEWHERE)
    excepted = [line.split()[2:4] for line in listed() if line.startswith("-A CNI-")]
    assert excepted == [["-d", "10.77.0.0/24"], ["-d", "10.78.0.0/23"], ["!", "-d"]]
    assert known_rules.missing_rules(wanted, Phase.CHECK, RulesetCache()) == {}
    delete(config, netns, "net1", first)
    excepted = [line.split()[2:4] for line in listed() if line.startswith("-A CNI-")]
    assert excepted == [["-d", "10.78.0.0/23"], ["!", "-d"]]
    assert sources() == ["10.78.0.6/32"]
    assert known_rules.missing_rules(wanted[1:], Phase.CHECK, RulesetCache()) == {}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("ip saddr 10.1.2.3", ("10.1.2.3/32", True, False)),
        ("ip daddr 10.1.0.0/16", ("10.1.0.0/16", False, False)),
        ("ip daddr != 10.1.16.0/20", ("10.1.16.0/20", False, True)),
        ('iifname "lo" ip saddr 10.1.2.0/24', ("10.1.2.0/24", True, False)),
        ("ip saddr 10.1.2.3 ip daddr 10.1.2.4", None),
        ("@nh,96,64 0x0a0102030a010204", None),
        ("ip saddr { 10.1.2.3, 10.1.2.4 }", None),
        ("tcp dport 80", None),
        ("ip6 saddr fd77::5", ("fd77::5/128", True, False)),
        ("ip6 daddr != fd77::/61", ("fd77::/61", False, True)),
        ("ip6 saddr fd77::5 ip6 daddr fd77::6", None),
    ],
)
def test_a_rules_match_is_decoded_from_the_kernel(words: str, wanted: tuple[str, bool, bool] | None) -> None:
    version = 6 if "ip6" in words else 4
    family = "ip6" if version == 6 else "ip"
    with node(), Nftables.on_node() as nft:
        script = f"table {family} some {{ chain one {{ {words} accept; }}; }}"
        subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        (there,) = nft.rules(Chain(nftsocket.NFPROTO_IPV6 if version == 6 else nftsocket.NFPROTO_IPV4, "some", "one"))
    found = sought(version, there.expressions)
    assert (found and (str(found.network), found.source, found.elsewhere)) == wanted
