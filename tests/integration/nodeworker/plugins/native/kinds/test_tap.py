"""A tap device in a pod: its owner can open it, and packets pass through it."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import Phase
from nodeworker.kernel.layouts import ifinfmsg, tuntap
from nodeworker.kernel.namespaces import Namespace
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import tap
from tests.support.plugins.kernel_view import container, differences, node, view
from tests.support.plugins.native_harness import BOTH, answer, call, cut_everywhere, ip, is_refused, late, names, shown

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="the kernel has no tun"),
]

TAP: dict[str, Any] = {"type": "tap"}

ARP_QUERY = bytes.fromhex(
    "ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 0a4d0009 000000000000 0a4d0005"
)
"""10.77.0.9 asks who has 10.77.0.5."""

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "owned": {"owner": 107, "group": 2**32 - 2, "mac": "02:00:5e:10:00:01", "mtu": 1400},
    "many queues": {"multiQueue": True, "owner": 2**31},
    "port": {"bridge": "br0", "mtu": 1300},
}


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        furnish(path)
        yield path


def furnish(netns: str) -> None:
    ip("link add br0 address 02:00:00:00:00:aa type bridge", netns)
    ip("link set br0 up", netns)


@pytest.mark.parametrize("options", CASES.values(), ids=[*CASES])
@pytest.mark.parametrize("ipam", [BOTH, None], ids=["addresses", "no addresses"])
def test_the_kernel_has_the_configured_interface(netns: str, options: dict[str, Any], ipam: Any) -> None:
    result = tap.add(call(TAP | options, netns), ipam)
    seen = shown("addr show net1", netns)[0]
    data = seen["linkinfo"]["info_data"]
    assert (data["type"], data["pi"], data["persist"]) == ("tap", False, True)
    assert data.get("multi_queue", False) == options.get("multiQueue", False)
    assert (data.get("user"), data.get("group")) == (options.get("owner"), options.get("group"))
    assert seen["mtu"] == options.get("mtu", 1500)
    assert seen.get("master") == options.get("bridge")
    assert "UP" in seen["flags"]
    assert seen["address"] == result.interfaces[0].mac == options.get("mac", seen["address"])
    assert {each["local"] for each in seen["addr_info"] if each["scope"] == "global"} == (
        {"10.77.0.5", "fd77::5"} if ipam else set()
    )
    tap.check(call(TAP | options, netns, prev_result=result))


def test_a_frame_written_to_the_device_arrives_on_the_interface(netns: str) -> None:
    tap.add(call(TAP | {"mac": "02:00:5e:10:00:01"}, netns), answer("10.77.0.5/24"))
    with Namespace(netns, Phase.ADD) as opened:
        device = opened.run_inside(lambda: os.open("/dev/net/tun", os.O_RDWR))
        try:
            fcntl.ioctl(device, tuntap.TUNSETIFF, tap._IFREQ.pack(b"net1", ifinfmsg.IFT_TAP | ifinfmsg.IFT_NO_PI))
            frame = b""
            while frame[:6] != ARP_QUERY[6:12]:
                os.write(device, ARP_QUERY)  # the kernel drops answers until it has noticed that the device is open
                if select.select([device], [], [], 0.05)[0]:
                    frame = os.read(device, 2048)
        finally:
            os.close(device)
    assert (frame[12:14], frame[22:28]) == (b"\x08\x06", bytes.fromhex("02005e100001"))


@pytest.mark.parametrize("options", CASES.values(), ids=[*CASES])
@pytest.mark.parametrize("ipam", [BOTH, None], ids=["addresses", "no addresses"])
def test_an_add_or_del_interrupted_anywhere_can_be_repeated(options: dict[str, Any], ipam: Any) -> None:
    cut_everywhere(tap, TAP | {"mac": "02:00:5e:10:00:07"} | options, ipam, furnish)


@pytest.mark.parametrize("stage", ["TUNSETIFF", "TUNSETOWNER", "TUNSETGROUP", "TUNSETPERSIST"])
def test_a_device_that_an_add_was_cut_over_is_gone(netns: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the open file's until it is made permanent, and that comes last."""
    ioctl, at = fcntl.ioctl, getattr(tuntap, stage)

    def cutting(device: int, request: int, *more: Any) -> Any:
        if request == at:
            raise KeyboardInterrupt
        return ioctl(device, request, *more)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", cutting)
        with pytest.raises(KeyboardInterrupt):
            tap.add(call(TAP | CASES["owned"], netns), BOTH)
    assert "net1" not in names(netns)
    tap.add(call(TAP | CASES["owned"], netns), BOTH)


def test_a_del_succeeds_on_anything_that_is_gone() -> None:
    late(tap, TAP | {"bridge": "br0"}, BOTH, furnish)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"bridge": "br9"}, "br9 is missing in the container"),
    ({"bridge": "lo"}, "lo is not a bridge in the container"),
    ({"mtu": 70000}, "can't set the MAC address, MTU and bridge of net1: "),
    ({"mtu": -1}, "Expected `int` >= 0"),
    ({"owner": 2**32 - 1}, "can't create net1 as a tap device: Invalid argument"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_an_impossible_add_is_refused_with_a_reason(netns: str, options: dict[str, Any], words: str) -> None:
    is_refused(tap, call(TAP | options, netns), BOTH, words)
    assert names(netns) == {"lo", "br0"}


def test_an_address_that_it_can_not_have_is_refused(netns: str) -> None:
    for mac, words in (("01:00:5e:00:00:01", "is a multicast address"), ("tap", '"tap" is not a hardware address')):
        is_refused(tap, call(TAP | {"mac": mac}, netns), BOTH, f"mac of net1: .*{words}", code=7)
    assert names(netns) == {"lo", "br0"}


@pytest.mark.parametrize(
    "foreign", ["link add net1 type bridge", "tuntap add net1 mode tun", "tuntap add net1 mode tap"]
)
def test_a_foreign_interface_is_left_unchanged(netns: str, foreign: str) -> None:
    ip(foreign, netns)
    before = view(netns)
    with pytest.raises(NativeError, match="has another interface net1 already"):
        tap.add(call(TAP | {"owner": 107}, netns), BOTH)
    assert differences(view(netns), before) == []


DAMAGE = [
    ("link set net1 nomaster", "no longer a port of br0"),
    ("link del br0", "br0 is missing in the container"),
    ("link set net1 address 02:00:00:00:00:99", "has MAC address 02:00:00:00:00:99"),
    ("link del net1", "interface net1 is gone"),
    ("addr flush dev net1 scope global", "lost its address"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[damage for damage, _ in DAMAGE])
def test_check_reports_differences_from_the_record(netns: str, damage: str, words: str) -> None:
    asked = call(TAP | {"bridge": "br0"}, netns, prev_result=tap.add(call(TAP | {"bridge": "br0"}, netns), BOTH))
    tap.check(asked)
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        tap.check(asked)


def test_check_sees_another_owner(netns: str) -> None:
    result = tap.add(call(TAP, netns), None)
    with pytest.raises(NativeError, match="no longer the tap device of the ADD"):
        tap.check(call(TAP | {"owner": 107}, netns, prev_result=result))


def test_a_missing_kernel_module_is_named(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "_DEVICE", "/dev/net/none")
    is_refused(tap, call(TAP, netns), BOTH, "kernel does not support tap devices .*: load its module tun$")
    monkeypatch.setattr(tap, "_DEVICE", "/dev/null")
    is_refused(tap, call(TAP, netns), BOTH, "can't create net1 as a tap device: Inappropriate ioctl")


@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, ""), (CASES["owned"], ""), ({"selinuxContext": "a:b:c"}, "selinuxContext"), ({"queues": 2}, "queues")],
)
def test_options_of_the_reference_plugin_only_are_not_native(options: dict[str, Any], reason: str) -> None:
    assert reason in tap.unsupported(TAP | options)
    assert bool(tap.unsupported(TAP | options)) == bool(reason)
