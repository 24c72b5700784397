"""Flushed rules of the packet filter are reported, detected by an inspection, and restored as they were."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from events.fold import SandboxKey
from events.schema import ContainerId, Drift, DriftKind, IfName, Phase
from nodeworker.drift.differences import differences
from nodeworker.drift.expected import ExpectedLink
from nodeworker.drift.repair.in_place import repair_in_place
from nodeworker.drift.snapshot import take_snapshot
from nodeworker.drift.watch.filter_events import FilterEvents
from nodeworker.kernel.nftables.client import Chain, Nftables, Rule
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.native.kinds.tuning import tuning
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Interface, Result
from tests.integration.nodeworker.drift.test_bridge_vlan_drift import wanted
from tests.integration.nodeworker.plugins.native.filter.test_filters import (
    BY_NFTABLES,
    CONFINED,
    IPAM,
    MASQUERADED,
    PLUGINS,
    WIRED,
    pytestmark,
    rules,
    use_older_iptables,
)
from tests.support.plugins.kernel_view import REFERENCE, container, execute, node
from tests.support.plugins.kernel_view import differences as changes
from tests.support.plugins.native_harness import answer, call
from tests.support.plugins.without_netfilter import known, without_netfilter

__all__ = ["pytestmark"]

NAMED = {"name": "net"}
BOTH = MASQUERADED | {"macspoofchk": True}
MASQUERADE, FILTER = DriftKind.MASQUERADE_MISSING, DriftKind.FILTER_MISSING
KINDS: dict[str, tuple[dict[str, Any], list[DriftKind]]] = {
    "bridge": (MASQUERADED, [MASQUERADE]),
    "ptp": (WIRED, [MASQUERADE]),
    "bridge by nftables": (MASQUERADED | {"ipMasqBackend": "nftables"}, [MASQUERADE]),
    "ptp by nftables": (BY_NFTABLES, [MASQUERADE]),
    "bridge by iptables": (MASQUERADED | {"ipMasqBackend": "iptables"}, [MASQUERADE]),
    "confined": (CONFINED, [FILTER]),
    "both": (BOTH, [FILTER, MASQUERADE]),
}
OTHER = answer("10.77.0.6/24", "fd77::6/64", gateways=("10.77.0.1", "fd77::1"))
SOME = Interface(name="net1", mac="02:00:00:00:00:01", sandbox="/run/netns/box")
TABLE = "inet cni_plugins_masquerade"


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        yield path


def attached(config: dict[str, Any], netns: str) -> ExpectedLink:
    """Create the interface; return its expected state by the ledger."""
    given = IPAM if "ipam" in config else None
    made = PLUGINS[config["type"]].add(call(config | NAMED, netns, container_id="box"), given)
    (link,) = wanted(config | NAMED, made)
    return link


def drifts(netns: str, link: ExpectedLink, book: RulesetCache | None = None) -> tuple[Drift, ...]:
    return differences((link,), take_snapshot(netns, (link,), Phase.CHECK, cache=book).snapshot, {})


def put_right(netns: str, link: ExpectedLink) -> None:
    seen = take_snapshot(netns, (link,), Phase.CHECK).snapshot
    assert repair_in_place(netns, (link,), seen, differences((link,), seen, {})) == []


def nft(words: str) -> None:
    subprocess.run(["nft", *words.split()], check=True)


def passing() -> list[str]:
    """Return the senders that the filters accept."""
    shown = subprocess.run(["nft", "list", "table", "bridge", "nat"], check=True, capture_output=True, text=True)
    return re.findall(r"ether saddr (\S+) return", shown.stdout)


@pytest.mark.parametrize("name", KINDS)
def test_flushed_rules_are_detected_and_restored(netns: str, name: str) -> None:
    config, kinds = KINDS[name]
    link = attached(config, netns)
    assert drifts(netns, link) == ()
    made = rules(netns)
    nft("flush ruleset")
    descriptions = {
        MASQUERADE: "masquerading of 10.77.0.5, fd77::5",
        FILTER: f"only {link.mac} as sender",
    }
    assert [(each.kind, each.expected, each.found) for each in drifts(netns, link)] == [
        (kind, descriptions[kind], "") for kind in kinds
    ]
    put_right(netns, link)
    assert drifts(netns, link) == ()
    assert changes(made, rules(netns)) == []


@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("ptp by nftables", f"delete table {TABLE}", ""),
        ("ptp by nftables", f"flush chain {TABLE} masq_checks", ""),
        ("ptp by nftables", f"flush chain {TABLE} postrouting", "2 of 2 rules of nftables, to which nothing leads"),
        ("bridge by iptables", "flush chain ip nat POSTROUTING", "5 of 6 rules of iptables"),
        ("bridge by iptables", "flush table ip6 nat", "3 of 6 rules of iptables"),
        ("ptp", "flush table ip nat", "3 of 6 rules of iptables"),
        ("confined", "flush chain bridge nat PREROUTING", "3 of 4 rules"),
        ("confined", "flush chain bridge nat cni-br-iface-box-net1-mac", "2 of 4 rules"),
    ],
)
def test_partly_flushed_rules_are_detected_and_restored(netns: str, name: str, words: str, found: str) -> None:
    config, _ = KINDS[name]
    link = attached(config, netns)
    made = rules(netns)
    nft(words)
    assert [each.found for each in drifts(netns, link)] == [found]
    put_right(netns, link)
    assert drifts(netns, link) == ()
    assert changes(made, rules(netns)) == []


def test_rules_in_xtables_are_found(netns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_older_iptables(monkeypatch, tmp_path)
    link = attached(WIRED, netns)
    assert drifts(netns, link) == ()
    subprocess.run(["iptables-legacy", "-t", "nat", "-F"], check=True)
    assert [each.found for each in drifts(netns, link)] == ["3 of 6 rules of iptables"]
    put_right(netns, link)
    assert drifts(netns, link) == ()


def test_rules_of_either_backend_suffice(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/var/empty")
        link = attached(WIRED, netns)
    assert drifts(netns, link) == ()


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
def test_restored_mac_filter_uses_the_recorded_address(netns: str, tmp_path: Path, native: bool) -> None:
    if not (native or (REFERENCE / "tuning").exists()):
        pytest.skip("the reference plugins are not installed")
    config = CONFINED | NAMED
    change = {"name": "net", "type": "tuning", "dataDir": str(tmp_path), "mac": SOME.mac}
    if native:
        first = bridge.add(call(config, netns, container_id="box"), None)
        last = tuning.add(call(change, netns, container_id="box", prev_result=first), None)
    else:
        version = {"cniVersion": "1.0.0"}
        printed = execute("bridge", "ADD", version | config, netns, "net1", CNI_CONTAINERID="box")
        change |= version | {"prevResult": printed}
        later = execute("tuning", "ADD", change, netns, "net1", CNI_CONTAINERID="box")
        first, last = (results.decode(json.dumps(each), "1.0.0") for each in (printed, later))
    (before,) = [each.mac for each in first.interfaces if each.sandbox]
    (link,) = wanted(config, last)
    assert (link.mac, passing()) == (SOME.mac, [before])
    assert before != SOME.mac
    assert drifts(netns, link) == ()
    nft("flush ruleset")
    put_right(netns, link)
    assert (drifts(netns, link), passing()) == ((), [SOME.mac])


def test_executed_plugins_have_no_expected_rules() -> None:
    (link,) = wanted(BOTH | NAMED, native=False)
    assert link.rules is None


def test_ruleset_is_read_once_until_it_changes(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link, book, read = attached(BY_NFTABLES, netns), RulesetCache(), Counter[str]()

    def counted(nft: Nftables, chain: Chain, original: Callable[..., list[Rule]] = Nftables.rules) -> list[Rule]:
        read[chain.name] += 1
        return original(nft, chain)

    monkeypatch.setattr(Nftables, "rules", counted)
    for _ in range(10):
        assert drifts(netns, link, book) == ()
    assert read == {"masq_checks": 1, "postrouting": 1}
    nft("add table ip somebodys")
    for _ in range(10):
        assert drifts(netns, link, book) == ()
    assert read == {"masq_checks": 2, "postrouting": 2}
    nft(f"flush chain {TABLE} masq_checks")
    assert [each.kind for each in drifts(netns, link, book)] == [MASQUERADE]


def key(name: str) -> SandboxKey:
    return SandboxKey(ContainerId(name), IfName("eth0"))


async def is_heard(went: asyncio.Event) -> bool:
    """Return whether a removal of rules is reported within a second."""
    try:
        await asyncio.wait_for(went.wait(), 1)
    except TimeoutError:
        return False
    went.clear()
    return True


FLUSHES = {
    "ptp": ("flush ruleset", "flush table ip nat", "flush chain ip nat POSTROUTING"),
    "ptp by nftables": ("flush ruleset", f"delete table {TABLE}", f"flush chain {TABLE} postrouting"),
    "confined": ("flush ruleset", "delete table bridge nat", "flush chain bridge nat PREROUTING"),
}


@pytest.mark.parametrize(("name", "words"), [(name, words) for name in FLUSHES for words in FLUSHES[name]])
async def test_removal_of_watched_rules_is_reported(netns: str, name: str, words: str) -> None:
    config, _ = KINDS[name]
    went = asyncio.Event()
    with FilterEvents(went.set) as monitor:
        link = attached(config, netns)
        assert link.rules
        monitor.watch(key("box"), (link.rules,))
        nft(words)
        assert await is_heard(went)
        put_right(netns, link)
        monitor.watch(key("box"), ())
        nft(words)
        assert not await is_heard(went)
        put_right(netns, link)
        monitor.watch(key("box"), (link.rules,))
        nft(words)
        assert await is_heard(went)


@pytest.mark.parametrize("name", FLUSHES)
async def test_other_rules_are_not_reported(netns: str, name: str) -> None:
    config, _ = KINDS[name]
    link, went = attached(config, netns), asyncio.Event()
    assert link.rules
    with FilterEvents(went.set) as monitor, container() as other:
        monitor.watch(key("box"), (link.rules,))
        PLUGINS[config["type"]].add(
            call(config | NAMED, other, container_id="other"), OTHER if "ipam" in config else None
        )
        PLUGINS[config["type"]].delete(call(config | NAMED, other, container_id="other"))
        nft("add table ip somebodys { chain postrouting { accept; }; }")
        nft("delete table ip somebodys")
        nft("add table ip nat { chain KUBE-SERVICES { accept; }; }")
        nft("flush chain ip nat KUBE-SERVICES")
        assert not await is_heard(went)
        assert drifts(netns, link) == ()


@pytest.mark.skipif(not known, reason="this machine's system calls are not known to the tests")
def test_missing_netfilter_is_logged_once() -> None:
    (link,) = wanted(CONFINED | NAMED, Result(cni_version="1.0.0", interfaces=(SOME,)))
    rules = link.rules
    assert rules

    async def listen() -> None:
        with FilterEvents(lambda: None) as monitor:
            for watched in ((rules,), (), (rules,)):
                monitor.watch(key("box"), watched)

    with capture_logs() as said:
        without_netfilter(lambda: asyncio.run(listen()))
    assert [each["event"] for each in said] == ["packet_filter_not_heard"]
