"""Tuning: equal to the reference plugin's but for the intended differences; also after interruptions."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import Phase
from nodeworker.kernel.layouts import ifinfmsg, tuntap
from nodeworker.kernel.namespaces import Namespace
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kinds.tuning import tuning
from nodeworker.plugins.native.kit.endpoints import open_endpoints
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import REFERENCE, container, differences, execute, node, view
from tests.support.plugins.native_harness import call, cut_everywhere, encoded, ip, shown

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
like_reference = pytest.mark.skipif(
    not (REFERENCE / "tuning").exists(), reason="Debian's containernetworking-plugins are not installed"
)

MAC = "02:00:5e:10:00:07"
INFINIBAND = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1"
OLD_MAC = "02:00:00:00:00:02"

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, ""),
    "parameters": ({"sysctl": {"net.ipv4.conf.net1.arp_filter": "1", "net/core/somaxconn": "777"}}, ""),
    "parameters of the interface": ({"sysctl": {"net.ipv6.conf.IFNAME.accept_ra": "2"}}, ""),
    "a list of numbers": ({"sysctl": {"net.ipv4.ip_local_port_range": "2000 3000"}}, ""),
    "a default that reaches the interface": ({"sysctl": {"net.ipv4.conf.default.arp_filter": "1"}}, ""),
    "mac": ({"mac": MAC}, ""),
    "mac of the runtime": ({"mac": "02:00:00:00:00:99", "runtimeConfig": {"mac": MAC}}, "IgnoreUnknown=1;MAC=x"),
    "mac in CNI_ARGS": ({"mac": "02:00:00:00:00:99"}, f"IgnoreUnknown=1;MAC={MAC};K8S_POD_NAME=p"),
    "mac in args": ({"runtimeConfig": {"mac": "x"}, "args": {"cni": {"mac": MAC, "labels": []}}}, ""),
    "no mac in args": ({"mac": MAC, "args": {"cni": {"mac": ""}}}, "IgnoreUnknown=1;MAC=02:00:00:00:00:99"),
    "promiscuous": ({"promisc": True}, ""),
    "promiscuous but for args": ({"promisc": True, "args": {"cni": {"promisc": False}}}, ""),
    "mtu": ({"mtu": 1400}, ""),
    "mtu in args": ({"mtu": 1400, "args": {"cni": {"mtu": 1300, "promisc": True}}}, ""),
    "all multicast": ({"allmulti": True}, ""),
    "not all multicast": ({"allmulti": False}, ""),
    "all at once": (
        {
            "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"},
            "args": {"cni": {"sysctl": {"net.ipv4.conf.net1.arp_filter": "0", "net.ipv4.tcp_syncookies": "0"}}},
            "mac": MAC,
            "promisc": True,
            "mtu": 1400,
            "allmulti": True,
        },
        "",
    ),
}


def furnish(netns: str) -> None:
    ip(f"link add net1 address {OLD_MAC} type veth peer name other", netns)
    ip("link set other up", netns)
    ip("link set net1 up", netns)
    ip("addr add 10.77.0.5/24 dev net1", netns)
    ip("addr add fd77::5/64 dev net1 nodad", netns)


def result(netns: str) -> Result:
    return results.decode(
        json.dumps(
            {
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "veth1", "mac": "02:00:00:00:00:01"},
                    {"name": "net1", "mac": OLD_MAC, "mtu": 1500, "sandbox": netns},
                ],
                "ips": [{"address": "10.77.0.5/24", "interface": 1}, {"address": "fd77::5/64", "interface": 1}],
            }
        ),
        "1.0.0",
    )


def network(notes: Path, config: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": str(notes)} | config


def asked(netns: str, notes: Path, config: dict[str, Any], **more: Any) -> Call:
    return call(network(notes, config), netns, **({"prev_result": result(netns)} | more))


def note(notes: Path) -> Any:
    file = notes / "sandbox_net1.json"
    return json.loads(file.read_text()) if file.exists() else None


def pairs(args: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in args.split(";") if pair)


def without_mtu(printed: Any) -> Any:
    """The reference of 1.1.1 knows no MTU in a result, and loses it."""
    return printed | {"interfaces": [{k: v for k, v in each.items() if k != "mtu"} for each in printed["interfaces"]]}


def natively(notes: Path, config: dict[str, Any], args: str) -> list[Any]:
    with node(), container() as netns:
        furnish(netns)
        wanted = asked(netns, notes, config, args=pairs(args))
        assert tuning.unsupported(wanted.config) == ""
        changed = encoded(tuning.add(wanted, None))
        attached = [view(netns, {"dns": {}} | without_mtu(changed)), note(notes)]
        tuning.check(asked(netns, notes, config, args=pairs(args), prev_result=results.decode(json.dumps(changed), "")))
        tuning.delete(wanted)
        return [*attached, view(netns), note(notes)]


def by_reference(notes: Path, config: dict[str, Any], args: str) -> list[Any]:
    with node(), container() as netns:
        furnish(netns)
        config = network(notes, config) | {"prevResult": encoded(result(netns))}
        changed = execute("tuning", "ADD", config, netns, "net1", CNI_ARGS=args)
        attached = [view(netns, changed), note(notes)]
        execute("tuning", "DEL", config, netns, "net1", CNI_ARGS=args)
        return [*attached, view(netns), note(notes)]


@like_reference
@pytest.mark.parametrize(("config", "args"), CASES.values(), ids=[*CASES])
def test_tuning_equals_the_reference_plugins(tmp_path: Path, config: dict[str, Any], args: str) -> None:
    if "sysctl" in config.get("args", {}).get("cni", {}):
        config = {"sysctl": {}} | config
    mine, theirs = natively(tmp_path / "mine", config, args), by_reference(tmp_path / "theirs", config, args)
    assert differences(mine, theirs) == []


@pytest.mark.parametrize("name", ["parameters of the interface", "all at once"])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(tmp_path: Path, name: str) -> None:
    config = network(tmp_path, CASES[name][0] | {"txQLen": 77})
    cut_everywhere(tuning, config, None, furnish, prev_result=result("/run/netns/any"))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish(path)
        yield path


def link(netns: str) -> dict[str, Any]:
    return shown("link show net1", netns)[0]


EVERYTHING = CASES["all at once"][0] | {"txQLen": 77}


@like_reference
@pytest.mark.parametrize("native_first", [True, False])
def test_each_plugin_undoes_the_changes_of_the_other(netns: str, tmp_path: Path, native_first: bool) -> None:
    before = link(netns)
    config = {key: value for key, value in EVERYTHING.items() if key != "txQLen"}
    wanted = asked(netns, tmp_path, config)
    executed = network(tmp_path, config) | {"prevResult": encoded(result(netns))}
    if native_first:
        tuning.add(wanted, None)
        assert link(netns) != before
        execute("tuning", "DEL", executed, netns, "net1")
    else:
        execute("tuning", "ADD", executed, netns, "net1")
        tuning.check(wanted)
        tuning.delete(wanted)
    assert link(netns) == before
    assert os.listdir(tmp_path) == []


def test_a_repeated_add_does_not_take_its_own_change_for_the_original(netns: str, tmp_path: Path) -> None:
    before = link(netns)
    wanted = asked(netns, tmp_path, EVERYTHING)
    for _ in range(3):
        tuning.add(wanted, None)
    found = link(netns)
    assert (found["address"], found["mtu"], found["txqlen"], found["promiscuity"]) == (MAC, 1400, 77, 1)
    assert note(tmp_path) == {"mac": OLD_MAC, "promisc": False, "mtu": 1500, "allmulti": False, "txQLen": 1000}
    tuning.delete(wanted)
    assert link(netns) == before


def test_two_tunings_in_one_chain_are_both_undone(netns: str, tmp_path: Path) -> None:
    before = link(netns)
    first, second = asked(netns, tmp_path, {"mac": MAC, "mtu": 1400}), asked(netns, tmp_path, {"mtu": 1300})
    tuning.add(first, None)
    tuning.add(second, None)
    assert note(tmp_path) == {"mac": OLD_MAC, "mtu": 1500}
    tuning.delete(second)
    tuning.delete(first)
    assert link(netns) == before


def test_the_result_changes_only_the_tuned_interface(netns: str, tmp_path: Path) -> None:
    twin = json.loads(results.encode(result(netns), "1.0.0"))
    twin["interfaces"][0]["name"] = "net1"
    previous = results.decode(json.dumps(twin), "1.0.0")
    on_node, inside = tuning.add(asked(netns, tmp_path, EVERYTHING, prev_result=previous), None).interfaces
    assert (on_node.mac, inside.mac, inside.mtu) == ("02:00:00:00:00:01", MAC, 1400)
    spelled = asked(netns, tmp_path, {"mac": "02-00-5E-10-00-07"})
    assert tuning.add(spelled, None).interfaces[1].mac == MAC
    tuning.check(asked(netns, tmp_path, {"mac": "02-00-5E-10-00-07", "promisc": True}))


def test_the_new_mac_address_is_announced_to_neighbours(netns: str, tmp_path: Path) -> None:
    with Namespace(netns, Phase.ADD) as opened:
        wire = opened.run_inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)))
    with wire:
        wire.bind(("other", 0))
        wire.settimeout(10)
        tuning.add(asked(netns, tmp_path, {"mac": MAC}), None)
        mac = bytes.fromhex(MAC.replace(":", ""))
        target = socket.inet_pton(socket.AF_INET6, "fd77::5")
        while True:
            frame = wire.recv(2048)
            if frame[54] == 136 and frame[62:78] == target and frame[78:86] == b"\x02\x01" + mac:
                break


def test_del_succeeds_on_anything_that_is_gone_and_leaves_no_note(netns: str, tmp_path: Path) -> None:
    wanted = asked(netns, tmp_path, EVERYTHING)
    tuning.delete(wanted)
    for gone in (wanted, call(wanted.config, ""), call(wanted.config, "/run/netns/plumbline-test-gone")):
        tuning.add(wanted, None)
        tuning.delete(gone)
        assert os.listdir(tmp_path) == []
    tuning.add(wanted, None)
    ip("link del net1", netns)
    tuning.delete(wanted)
    tuning.delete(wanted)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mtu": "large"}', b"\xff\xfe"])
def test_an_unreadable_note_does_not_fail_the_del(netns: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "sandbox_net1.json"
    file.write_bytes(content)
    wanted = asked(netns, tmp_path, {"mtu": 1400})
    tuning.delete(wanted)
    assert os.listdir(tmp_path) == []
    file.write_bytes(content)
    tuning.add(wanted, None)
    assert note(tmp_path) == {"mtu": 1500}


def test_a_failed_restore_does_not_fail_the_del(netns: str, tmp_path: Path) -> None:
    (tmp_path / "sandbox_net1.json").write_text(json.dumps({"mac": "ff:ff:ff:ff:ff:ff", "mtu": 1300}))
    tuning.delete(asked(netns, tmp_path, EVERYTHING))
    assert link(netns)["mtu"] == 1300
    assert link(netns)["address"] == OLD_MAC
    assert os.listdir(tmp_path) == []


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"sysctl": {"kernel.hostname": "x"}}, "'kernel.hostname' is not a network parameter"),
    ({"sysctl": {"net": "x"}}, "'net' is not a network parameter"),
    ({"sysctl": {"net.ipv4.conf.IFNAME.nothing": "1"}}, r"can't set /proc/sys/net/ipv4/conf/net1/nothing to '1'"),
    ({"sysctl": {"net.ipv4.ip_forward": "much"}}, "ip_forward to 'much': Invalid argument"),
    ({"mtu": 7}, "can't set MTU 7 of net1: "),
]
NO_MACS: list[tuple[dict[str, Any], str]] = [
    ({"mac": "02:00"}, 'mac of net1: "02:00" is not a hardware address'),
    ({"mac": "ff:ff:ff:ff:ff:ff"}, "mac of net1: .* is a multicast address"),
    ({"args": {"cni": {"mac": "00-00-00-00-00-00"}}}, "args.cni.mac of net1: .* is all zero"),
    ({"runtimeConfig": {"mac": 7}}, "runtimeConfig.mac of net1 is 7, which is not a string"),
    ({"mac": INFINIBAND}, r"mac of net1: .* has 20 bytes, as on InfiniBand, and an address of net1 has 6, as on Eth"),
]


@pytest.mark.parametrize(("config", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_an_impossible_add_is_refused_with_a_reason(
    netns: str, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    before = link(netns)
    with pytest.raises(NativeError, match=words) as caught:
        tuning.add(asked(netns, tmp_path, config), None)
    assert caught.value.code == 999
    tuning.delete(asked(netns, tmp_path, {}))
    assert link(netns) == before
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("config", "words"), NO_MACS, ids=[words for _, words in NO_MACS])
def test_an_address_that_the_link_can_not_have_is_refused_before_a_change(
    netns: str, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    before, parameters = link(netns), {"net.ipv4.conf.net1.arp_filter": "1"}
    with pytest.raises(NativeError, match=words) as caught:
        tuning.add(asked(netns, tmp_path, config | {"sysctl": parameters}), None)
    assert caught.value.code == 7
    assert link(netns) == before
    assert os.listdir(tmp_path) == []
    tuning.check(asked(netns, tmp_path, {"sysctl": {"net.ipv4.conf.net1.arp_filter": "0"}}))


_ARPHRD_TUNNEL6 = 769
"""Its addresses have 16 bytes."""
_TUNSETLINK = 0x400454CD


def make_device_of(link_type: int, name: str) -> None:
    with open(tuntap.TUNDEV, "r+b", buffering=0) as device:
        fcntl.ioctl(device, tuntap.TUNSETIFF, struct.pack("16sH22x", name.encode(), ifinfmsg.IFT_TUN))
        fcntl.ioctl(device, _TUNSETLINK, link_type)
        fcntl.ioctl(device, tuntap.TUNSETPERSIST, 1)


def test_the_length_of_an_address_is_compared_with_that_of_the_link(netns: str, tmp_path: Path) -> None:
    ip("link del net1", netns)
    with open_endpoints(call({}, netns), Phase.ADD) as ends:
        ends.netns.run_inside(lambda: make_device_of(_ARPHRD_TUNNEL6, "net1"))
    with pytest.raises(NativeError, match=r"has 6 bytes, as on Ethernet, and an address of net1 has 16: ask for one"):
        tuning.add(asked(netns, tmp_path, {"mac": MAC}), None)


def test_it_needs_an_interface_that_another_plugin_has_made(netns: str, tmp_path: Path) -> None:
    with pytest.raises(NativeError, match="prevResult is missing"):
        tuning.add(asked(netns, tmp_path, EVERYTHING, prev_result=None), None)
    ip("link del net1", netns)
    with pytest.raises(NativeError, match="the container has no interface net1"):
        tuning.add(asked(netns, tmp_path, {"mtu": 1400}), None)
    with pytest.raises(NativeError, match="is not a file name"):
        tuning.delete(asked(netns, tmp_path, {}, ifname="../net1"))


def test_a_folder_that_can_not_be_used_is_an_error_that_names_it(netns: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NativeError, match=f"can't note the state of net1 in {tmp_path}/file/notes/sandbox_net1.json"):
        tuning.add(asked(netns, tmp_path / "file" / "notes", {"mtu": 1400}), None)
    assert link(netns)["mtu"] == 1500


@pytest.mark.parametrize(
    ("text", "keys", "words"),
    [
        ("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n", ["net.ipv4.conf.IFNAME.arp_filter"], ""),
        ("^net\\.core\\.\n ^net\\.ipv4\\. \n", ["net.core.somaxconn", "net.ipv4.tcp_syncookies"], ""),
        ("^net\\.core\\.\n", ["net.core.somaxconn", "net.ipv4.tcp_syncookies"], "net.ipv4.tcp_syncookies may not be"),
        ("", ["net.core.somaxconn"], "net.core.somaxconn may not be set: add it to "),
        ("net.core.*\n(", ["net.core.somaxconn"], "can't be used, so no parameter can be set"),
        ("net.core.[[:alpha:]]*", ["net.core.somaxconn"], "can't be used, so no parameter can be set"),
        ("(", [], ""),
        (None, ["net.core.somaxconn"], ""),
    ],
)
def test_the_allowlist_of_parameters_applies(
    netns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, keys: list[str], words: str
) -> None:
    allowlist = tmp_path / "allowlist.conf"
    if text is not None:
        allowlist.write_text(text)
    monkeypatch.setattr(tuning, "ALLOWLIST", str(allowlist))
    wanted = asked(netns, tmp_path, {"sysctl": dict.fromkeys(keys, "1")})
    if not words:
        tuning.add(wanted, None)
        return
    with pytest.raises(NativeError, match=words):
        tuning.add(wanted, None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("link set net1 address 02:00:00:00:00:99", f"mac 02:00:00:00:00:99 instead of {MAC}"),
        ("link set net1 mtu 1200", "mtu 1200 instead of 1400"),
        ("link set net1 promisc off", "promisc False instead of True"),
        ("link set net1 allmulticast off", "allmulti False instead of True"),
        ("link set net1 txqueuelen 5", "tx_queue 5 instead of 77"),
        ("link del net1", "/proc/sys/net/ipv4/conf/net1/arp_filter: No such file|has no interface net1"),
    ],
)
def test_check_reports_properties_that_differ_from_the_request(
    netns: str, tmp_path: Path, damage: str, words: str
) -> None:
    wanted = asked(netns, tmp_path, EVERYTHING)
    tuning.add(wanted, None)
    tuning.check(wanted)
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        tuning.check(wanted)


def test_check_reports_a_changed_parameter_and_promiscuous_mode(netns: str, tmp_path: Path) -> None:
    wanted = asked(netns, tmp_path, {"sysctl": {"net.ipv4.ip_local_port_range": "2000 3000"}})
    tuning.add(wanted, None)
    tuning.check(wanted)
    with pytest.raises(NativeError, match=r"ip_local_port_range is '2000\\t3000', not '2000 4000'"):
        tuning.check(asked(netns, tmp_path, {"sysctl": {"net.ipv4.ip_local_port_range": "2000 4000"}}))
    ip("link set net1 promisc on", netns)
    with pytest.raises(NativeError, match="promisc True instead of False"):
        tuning.check(wanted)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (EVERYTHING, ""),
        ({"tso": False}, "tso"),
        ({"MTU": 1400}, "MTU"),
        ({"mtu": -1}, "mtu"),
        ({"sysctl": {"net.core.somaxconn": 7}}, "sysctl"),
        ({"dataDir": "notes"}, "dataDir is not an absolute path"),
        ({"ipam": {"type": "static"}}, "ipam"),
        ({"args": {"cni": {"MTU": 1400}}}, "MTU"),
        ({"args": {"cni": {"mtu": "1400"}}}, "args.cni"),
        ({"args": {"cni": {"sysctls": {}, "ips": ["10.1.1.1"]}}}, ""),
    ],
)
def test_options_of_the_reference_plugin_only_are_not_native(config: dict[str, Any], what: str) -> None:
    reason = tuning.unsupported(network(Path("/run/notes"), config))
    assert (what in reason) if what else reason == ""
