"""A removal returns when the interfaces are out of use; it does not wait for the kernel's cleanup."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from events.schema import Phase
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import links, removal
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.removal import Remover
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"plumbline-test-{os.urandom(4).hex()}"
    names = [name, f"{name}-out"]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside, outside = names
        ip(inside, f"link add net0 type veth peer name peer0 netns {outside}")
        ip(outside, "link add br0 type bridge")
        ip(outside, "link set peer0 master br0 up")
        for name in ("net1", "net2"):
            ip(inside, f"link add {name} type bridge")
        for name in ("net0", "net1", "net2"):
            ip(inside, f"link set {name} up")
        yield f"/run/netns/{inside}"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=True)


def ip(netns: str, words: str) -> str:
    return subprocess.run(["ip", "-n", netns, *words.split()], check=True, capture_output=True, text=True).stdout


def remove(netns: str, *names: str) -> None:
    with Remover.in_namespace(netns, Phase.DEL) as remover:
        remover.remove(names)


def names(netns: str) -> list[str]:
    with Netlink.in_namespace(netns, Phase.DEL) as netlink:
        return [link.name for link in links.list_all(netlink)]


@pytest.mark.parametrize(
    "gone", [["net0"], ["net1"], ["net0", "net1", "net2"], ["net2", "missing", "net0"], ["missing"]]
)
def test_only_the_named_interfaces_are_removed(netns: str, gone: list[str]) -> None:
    remove(netns, *gone)
    assert names(netns) == [each for each in ("lo", "net0", "net1", "net2") if each not in gone]


def test_a_removed_veth_end_removes_its_peer_from_the_bridge(netns: str) -> None:
    outside = f"{netns.rpartition('/')[2]}-out"
    assert "peer0" in ip(outside, "link show master br0")
    remove(netns, "net0", "net1")
    assert ip(outside, "link show master br0") == ""
    assert "peer0" not in ip(outside, "link show")


def test_names_are_free_again_at_once(netns: str) -> None:
    with Netlink.in_namespace(netns, Phase.ADD) as netlink:
        for _ in range(20):
            remove(netns, "net1", "net2")
            netlink.do(links.create("net1", "bridge"), links.create("net2", "bridge"))
    assert set(names(netns)) == {"lo", "net0", "net1", "net2"}


def test_a_removal_returns_before_the_kernel_has_finished(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held up is the thread in the system call, and only that one."""
    returned = threading.Event()
    send = Netlink._send

    def slow(self: Netlink, requests: tuple[Request, ...]) -> int:
        first = send(self, requests)
        if threading.current_thread().name == "removal":
            returned.wait(10)
        return first

    monkeypatch.setattr(Netlink, "_send", slow)
    remove(netns, "net1", "net2")
    assert [each.name for each in threading.enumerate() if each.name == "removal"] == ["removal"]
    returned.set()
    assert names(netns) == ["lo", "net0"]


def test_calls_under_way_are_bounded(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_slots", threading.BoundedSemaphore(1))
    remove(netns, "net1")
    remove(netns, "net2")
    assert names(netns) == ["lo", "net0"]
    with removal._slots:  # it is free when the last call has returned
        assert removal._slots.acquire(blocking=False) is False


def test_an_undeletable_interface_does_not_keep_the_others(netns: str) -> None:
    with pytest.raises(NetlinkError) as caught:
        remove(netns, "net1", "lo", "net0", "net2")
    assert caught.value.errno == errno.EOPNOTSUPP
    remove(netns, "net0", "net1", "net2")
    assert names(netns) == ["lo"]


def test_a_failed_call_raises_in_each_waiting_caller(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Netlink._send

    def failing(self: Netlink, requests: tuple[Request, ...]) -> int:
        if threading.current_thread().name == "removal":
            raise OSError(errno.ENOMEM, "no memory")
        return send(self, requests)

    monkeypatch.setattr(Netlink, "_send", failing)
    with pytest.raises(OSError, match="no memory"):
        remove(netns, "net1")


def test_lost_notifications_are_compensated(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Netlink._receive
    lost: list[int] = []

    def overrun(self: Netlink) -> object:
        if isinstance(self, Remover) and self._sequence > 3 and not lost:
            lost.append(1)
            raise OSError(errno.ENOBUFS, "no buffer space")
        return receive(self)

    monkeypatch.setattr(Netlink, "_receive", overrun)
    remove(netns, "net0", "net1", "net2")
    assert lost
    assert names(netns) == ["lo"]


def test_nothing_is_left_open(netns: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Namespace(netns, Phase.DEL) as container, Remover.within(container) as remover:
        remover.remove(["net0", "net1", "net2"])
    assert set(os.listdir("/proc/self/fd")) == before
    until = time.monotonic() + 10
    while any(each.name == "removal" for each in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.001)
