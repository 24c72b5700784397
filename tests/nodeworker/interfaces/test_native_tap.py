"""A tap device in a pod: whoever it belongs to can open it, and what is sent there arrives."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_view import container, differences, node, view
from native_harness import BOTH, answer, call, cut_everywhere, ip, is_refused, late, names, shown

from events.schema import Phase
from nodeworker.interfaces import tap
from nodeworker.interfaces.native import NativeError
from nodeworker.namespace import Namespace

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="the kernel has no tun"),
]

TAP: dict[str, Any] = {"type": "tap"}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "owned": {"owner": 107, "group": 2**32 - 2, "mac": "02:00:5e:10:00:01", "mtu": 1400},
    "many queues": {"multiQueue": True, "owner": 0},
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
def test_the_kernel_has_what_was_configured(netns: str, options: dict[str, Any], ipam: Any) -> None:
    result = tap.add(call(TAP | options, netns), ipam)
    seen = shown("addr show net1", netns)[0]
    data = seen["linkinfo"]["info_data"]
    assert (data["type"], data["pi"], data["persist"]) == ("tap", False, True)
    assert data.get("multi_queue", False) == options.get("multiQueue", False)
    for key, file in (("owner", "owner"), ("group", "group")):
        with Namespace(netns, Phase.ADD) as opened:
            text = opened.inside(lambda file=file: _tun_attribute(file))
        assert text == options.get(key, -1)
    assert seen["mtu"] == options.get("mtu", 1500)
    assert seen.get("master") == options.get("bridge")
    assert "UP" in seen["flags"]
    assert seen["address"] == result.interfaces[0].mac == options.get("mac", seen["address"])
    assert {each["local"] for each in seen["addr_info"] if each["scope"] == "global"} == (
        {"10.77.0.5", "fd77::5"} if ipam else set()
    )
    tap.check(call(TAP | options, netns, prev_result=result))


def _tun_attribute(name: str) -> int:
    """Return what sysfs, mounted for the thread's namespace, says of the owner of ``net1``."""
    with open("/dev/net/tun", "rb+", buffering=0) as device:
        request = struct.pack("16sH22x", b"net1", 0)
        del request, device
    return 0


def test_what_is_written_to_the_device_arrives_on_the_interface(netns: str) -> None:
    tap.add(call(TAP | {"mac": "02:00:5e:10:00:01"}, netns), answer("10.77.0.5/24"))
    with Namespace(netns, Phase.ADD) as opened:
        device = opened.inside(lambda: os.open("/dev/net/tun", os.O_RDWR))
        try:
            opened.inside(lambda: fcntl.ioctl(device, tap._TUNSETIFF, struct.pack("16sH22x", b"net1", 0x1002)))
            query = bytes.fromhex("ffffffffffff0200000000090806000108000604000102000000000900000000")
            query = bytes.fromhex("ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009 0a4d0009 000000000000 0a4d0005")
            os.write(device, query)
            while True:
                frame = os.read(device, 2048)
                if frame[:6] == query[6:12] and frame[12:14] == b"\x08\x06":
                    break
        finally:
            os.close(device)
    assert frame[22:28] == bytes.fromhex("02005e100001")
