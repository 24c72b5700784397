"""A container's filter rules equal the reference plugins', and each side deletes the other's rules."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeworker.kernel.nftables.client import Nftables
from nodeworker.kernel.rtnetlink.socket import NetlinkError
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import ptp
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node, view
from tests.support.plugins.native_harness import answer, call, encoded, is_refused

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed"),
    pytest.mark.skipif(not shutil.which("iptables-restore"), reason="iptables is not installed"),
]

PLUGINS: dict[str, Any] = {"bridge": bridge, "ptp": ptp}
STATIC = {
    "type": "static",
    "addresses": [
        {"address": "10.77.0.5/24", "gateway": "10.77.0.1"},
        {"address": "fd77::5/64", "gateway": "fd77::1"},
    ],
}
IPAM = answer("10.77.0.5/24", "fd77::5/64", gateways=("10.77.0.1", "fd77::1"))
MASQUERADED: dict[str, Any] = {"type": "bridge", "bridge": "br0", "ipMasq": True, "ipam": STATIC}
WIRED: dict[str, Any] = {"type": "ptp", "ipMasq": True, "ipam": STATIC}
BY_NFTABLES = WIRED | {"ipMasqBackend": "nftables"}
CONFINED: dict[str, Any] = {"type": "bridge", "bridge": "br0", "macspoofchk": True}
KINDS = {"bridge": MASQUERADED, "ptp": WIRED, "confined": CONFINED}

MASQUERADE_AS_NFT_DOES = """
add table inet cni_plugins_masquerade \\
    { comment "Masquerading for plugins from github.com/containernetworking/plugins" ; }
add chain inet cni_plugins_masquerade masq_checks \\
    { comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet" ; }
add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority 100 ; }
flush chain inet cni_plugins_masquerade postrouting
add rule inet cni_plugins_masquerade postrouting ip daddr == 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr == ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
"""
RULE_AS_NFT_DOES = (  # with the hashes that the reference plugin's own tests expect
    "add rule inet cni_plugins_masquerade masq_checks {ip} saddr == {address} {ip} daddr != {network} masquerade "
    'comment "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one"\n'
)


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        yield path


def use_older_iptables(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have ``iptables`` be the program for the older of the kernel's filters, by links in *folder*."""
    for name in ("iptables", "iptables-restore", "ip6tables", "ip6tables-restore"):
        legacy = shutil.which(name.replace("tables", "tables-legacy"))
        assert legacy
        (folder / name).symlink_to(legacy)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def rules(netns: str) -> Any:
    return view(netns)["node"]["filters"]


def as_nft_lays_out() -> str:
    """Return all rules as they are in the kernel, but for their handles."""
    words = ["nft", "--debug=netlink", "list", "ruleset"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def add(config: dict[str, Any], netns: str, ipam: Result | None = IPAM) -> Result:
    return PLUGINS[config["type"]].add(call(config, netns), ipam if "ipam" in config else None)


def delete(config: dict[str, Any], netns: str, **more: Any) -> None:
    PLUGINS[config["type"]].delete(call(config, netns, **more))


def by_reference(config: dict[str, Any], netns: str, command: str) -> Any:
    return execute(config["type"], command, {"cniVersion": "1.0.0", "name": "net"} | config, netns, "net1")


@pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed")
@pytest.mark.parametrize("config", KINDS.values(), ids=[*KINDS])
def test_each_plugin_removes_the_rules_of_the_other(config: dict[str, Any]) -> None:
    left: list[Any] = []
    for made_by_reference, undone_by_reference in ((True, True), (True, False), (False, True), (False, False)):
        with node(), container() as netns:
            by_reference(config, netns, "ADD") if made_by_reference else add(config, netns)
            made = rules(netns)
            by_reference(config, netns, "DEL") if undone_by_reference else delete(config, netns)
            left.append((made, rules(netns)))
    made, after = left[0]
    assert made != after
    assert [each for each in left if each != left[0]] == []


@pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed")
def test_several_addresses_are_masqueraded_alike_and_leave_nothing() -> None:
    addresses = ("10.77.0.5/24", "10.77.0.6/24", "10.78.0.5/23", "fd77::5/64")
    config = MASQUERADED | {"ipam": {"type": "static", "addresses": [{"address": each} for each in addresses]}}
    with node(), container() as netns:
        result = encoded(add(config, netns, answer(*addresses)))
        mine = view(netns, {"dns": {}} | result)
        delete(config, netns)
        assert "CNI-" not in json.dumps(rules(netns))
    with node(), container() as netns:
        assert differences(mine, view(netns, by_reference(config, netns, "ADD"))) == []
        delete(config, netns)
        assert "CNI-" not in json.dumps(rules(netns))


@pytest.mark.parametrize("networks", [("10.77.0.5/24", "fd77::5/64"), ("10.77.0.5/23", "10.77.0.5/32", "fd77::5/61")])
def test_masquerading_by_nftables_is_what_nft_makes(netns: str, networks: tuple[str, ...]) -> None:
    gateways = tuple("10.77.0.1" if "." in each else "fd77::1" for each in networks)
    asked = call(BY_NFTABLES | {"name": "unit-test"}, netns, container_id="one", ifname="eth0")
    ptp.add(asked, answer(*networks, gateways=gateways))
    mine, laid_out = rules(netns), as_nft_lays_out()
    wanted = [
        RULE_AS_NFT_DOES.format(ip="ip" if "." in each else "ip6", address=each.split("/")[0], network=each)
        for each in networks
    ]
    with node(), container() as other:
        script = MASQUERADE_AS_NFT_DOES.replace("\\\n", "") + "".join(wanted)
        subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        assert differences(mine, rules(other)) == []
        assert laid_out == as_nft_lays_out()


@pytest.mark.parametrize("config", [*KINDS.values(), BY_NFTABLES], ids=[*KINDS, "nftables"])
def test_rules_go_also_when_all_else_is_gone(config: dict[str, Any]) -> None:
    with node(), container() as still:
        before = rules(still)
        with container() as netns:
            result = add(config, netns)
            assert "sandbox" in json.dumps(rules(still))
        delete(config, netns, prev_result=result)
        assert "sandbox" not in json.dumps(rules(still))
        delete(config, "", prev_result=result)
        delete(config, "")
        assert len(rules(still)) >= len(before)


@pytest.mark.parametrize("config", [*KINDS.values(), BY_NFTABLES], ids=[*KINDS, "nftables"])
def test_check_reports_flushed_rules(netns: str, config: dict[str, Any]) -> None:
    asked = call(config, netns, prev_result=add(config, netns))
    PLUGINS[config["type"]].check(asked)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with pytest.raises(NativeError, match=r"no longer masqueraded|is gone"):
        PLUGINS[config["type"]].check(asked)
    add(config, netns)
    PLUGINS[config["type"]].check(asked)


def test_without_iptables_the_choice_is_nftables_or_an_error(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/var/empty")
        is_refused(ptp, call(WIRED | {"ipMasqBackend": "iptables"}, netns), IPAM, "install iptables")
        add(WIRED, netns)
    assert "cni_plugins_masquerade" in json.dumps(rules(netns))
    delete(WIRED, netns)
    assert "sandbox" not in json.dumps(rules(netns))


@pytest.mark.parametrize("config", KINDS.values(), ids=[*KINDS])
def test_del_succeeds_on_a_kernel_without_nftables(config: dict[str, Any]) -> None:
    def refused(*_: Any) -> Any:
        raise NetlinkError(errno.EINVAL, os.strerror(errno.EINVAL))  # as nfnetlink says it of a subsystem that it lacks

    with node(), container() as netns:
        result = add(config, netns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Nftables, "dump", refused)
            patch.setattr(Nftables, "ask", refused)
            delete(config, netns, prev_result=result)
            collect(config)
        assert "CNI-" not in json.dumps(rules(netns))


def test_iptables_legacy_is_used_where_installed(netns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_older_iptables(monkeypatch, tmp_path)
    add(WIRED, netns)
    add(WIRED, netns)
    listed = ["iptables-legacy", "-t", "nat", "-S", "POSTROUTING"]
    shown = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    assert shown.count('-s 10.77.0.5/32 -m comment --comment "name: \\"net\\" id: \\"sandbox\\"" -j CNI-') == 1
    delete(WIRED, netns)
    shown = subprocess.run(["iptables-legacy", "-t", "nat", "-S"], check=True, capture_output=True, text=True).stdout
    assert "CNI-" not in shown


def test_a_frame_with_another_address_does_not_pass(netns: str) -> None:
    add(CONFINED, netns)
    ip = ["ip", "-n", netns.rpartition("/")[2]]
    subprocess.run(["ip", "addr", "add", "10.77.0.1/24", "dev", "br0"], check=True)
    subprocess.run([*ip, "addr", "add", "10.77.0.5/24", "dev", "net1"], check=True)
    ping = ["ip", "netns", "exec", netns.rpartition("/")[2], "ping", "-c", "1", "-W", "1", "10.77.0.1"]
    assert subprocess.run(ping, check=False, capture_output=True).returncode == 0
    subprocess.run([*ip, "link", "set", "net1", "address", "02:00:00:00:00:99"], check=True)
    subprocess.run(["ip", "neigh", "flush", "all"], check=True)
    assert subprocess.run(ping, check=False, capture_output=True).returncode != 0


def add_for(config: dict[str, Any], netns: str, container_id: str, ifname: str, number: int) -> None:
    given = answer(f"10.77.0.{number}/24", f"fd77::{number}/64", gateways=("10.77.0.1", "fd77::1"))
    PLUGINS[config["type"]].add(call(config, netns, container_id=container_id, ifname=ifname), given)


def collect(config: dict[str, Any], *valid: tuple[str, str]) -> None:
    PLUGINS[config["type"]].collect(call(config, "", container_id="", ifname=""), valid)


COLLECTED = {
    f"{config['type']} by {backend}": config | {"ipMasqBackend": backend}
    for config in (MASQUERADED, WIRED)
    for backend in ("iptables", "nftables")
}


@pytest.mark.parametrize("config", COLLECTED.values(), ids=[*COLLECTED])
def test_gc_deletes_only_masquerading_of_removed_interfaces(config: dict[str, Any]) -> None:
    other = config | {"name": "other"}
    with node(), container() as still:
        add_for(config, still, "kept", "net1", 5)
        add_for(other, still, "gone", "net2", 6)
        before = rules(still)
        with container() as netns:
            add_for(config, netns, "gone", "net1", 7)
        assert rules(still) != before
        collect(config, ("kept", "net1"))
        assert rules(still) == before
        collect(config)
        assert "10.77.0.6" in json.dumps(rules(still))
        assert "10.77.0.5" not in json.dumps(rules(still))
        collect(other)
        assert "10.77.0.6" not in json.dumps(rules(still))


def test_gc_leaves_rules_of_a_network_without_masquerading_unchanged(netns: str) -> None:
    add(MASQUERADED, netns)
    before = rules(netns)
    collect(MASQUERADED | {"ipMasq": False})
    collect({key: value for key, value in MASQUERADED.items() if key != "ipam"})
    assert rules(netns) == before


def confine(netns: str, container_id: str, ifname: str, name: str = "net") -> None:
    bridge.add(call(CONFINED | {"name": name}, netns, container_id=container_id, ifname=ifname), None)


def confined(netns: str) -> set[str]:
    """Return the owners of the filters on MAC addresses."""
    return set(re.findall(r"cni-br-iface-([\w-]+?)(?:-mac)?\"", json.dumps(rules(netns))))


def test_gc_deletes_only_filters_of_removed_ports() -> None:
    with node(), container() as still:
        confine(still, "kept-1", "net1")
        confine(still, "another-networks", "net2", "other")
        before = as_nft_lays_out()
        with container() as netns:
            confine(netns, "gone", "net1")
            confine(netns, "gone", "net-2")
        confine(still, "no-longer-valid", "net3")
        assert confined(still) == {
            "kept-1-net1",
            "another-networks-net2",
            "gone-net1",
            "gone-net-2",
            "no-longer-valid-net3",
        }
        collect(CONFINED, ("kept-1", "net1"))
        assert as_nft_lays_out() == before
        collect(CONFINED, ("kept-1", "net1"))
        collect(CONFINED | {"macspoofchk": False})
        assert as_nft_lays_out() == before
        collect(CONFINED)
        assert confined(still) == {"another-networks-net2"}


@pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed")
def test_gc_deletes_a_reference_filter_once_its_port_is_gone(netns: str) -> None:
    by_reference(CONFINED, netns, "ADD")
    before = as_nft_lays_out()
    collect(CONFINED)
    assert as_nft_lays_out() == before
    subprocess.run(["ip", "-n", netns.rpartition("/")[2], "link", "del", "net1"], check=True)
    collect(CONFINED, ("sandbox", "net1"))
    assert as_nft_lays_out() == before
    collect(CONFINED)
    assert confined(netns) == set()


def test_gc_leaves_similar_foreign_rules_unchanged(netns: str) -> None:
    confine(netns, "gone", "net1")
    subprocess.run(["ip", "-n", netns.rpartition("/")[2], "link", "del", "net1"], check=True)
    script = """
add rule bridge nat PREROUTING iifname "nobody0" drop comment "somebodys-gone-net1"
add rule bridge nat PREROUTING iifname != "nobody0" accept comment "macspoofchk-a-b"
add rule bridge nat PREROUTING ether saddr 02:00:00:00:00:01 accept comment "macspoofchk-a-c"
add chain bridge nat cni-br-iface-somebodys-net1
"""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
    collect(CONFINED)
    left = json.dumps(rules(netns))
    assert [word in left for word in ("somebodys-gone-net1", "macspoofchk-a-b", "macspoofchk-a-c")] == [True] * 3
    assert confined(netns) == {"somebodys-net1"}


def test_gc_succeeds_without_filters(netns: str) -> None:
    before = rules(netns)
    collect(CONFINED)
    assert rules(netns) == before
