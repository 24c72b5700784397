"""A batch of requests returns the kernel's answers in order, with its own error texts."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from events.schema import Phase
from nodeworker.errors import RequestFailedError
from nodeworker.kernel.layouts import nl, rtnl
from nodeworker.kernel.rtnetlink import addresses, links, message, routes
from nodeworker.kernel.rtnetlink.message import HEADER, Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"plumbline-test-{os.urandom(4).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def netlink(netns: str) -> Iterator[Netlink]:
    with Netlink.in_namespace(netns, Phase.ADD) as opened:
        yield opened


def bridge(netlink: Netlink, name: str = "br0") -> links.Link:
    refused, answer = netlink.do_and_ask(links.create(name, "bridge", mtu=1400), links.by_name(name))
    assert refused is None
    assert answer is not None
    return links.decode(answer)


def test_it_works_in_the_namespace_that_it_was_opened_in_from_any_thread(netlink: Netlink) -> None:
    made = bridge(netlink)
    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(links.find, netlink, links.by_name("br0")).result() == made
    with Netlink.on_node() as node:
        assert links.find(node, links.by_name("br0")) is None


@pytest.mark.parametrize("path", ["/run/netns/plumbline-test-none", "/proc/thread-self/ns/net", "/proc/self/ns/mnt"])
def test_a_file_that_is_not_a_namespace_is_refused_and_closed(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RequestFailedError):
        Netlink.in_namespace(path, Phase.ADD)
    assert os.listdir("/proc/self/fd") == before


def test_the_kernels_own_words_are_in_the_error(netlink: Netlink) -> None:
    with pytest.raises(NetlinkError, match="Unknown device type") as caught:
        netlink.do(links.create("net1", "nonsense"))
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(NetlinkError, match="No such device"):
        netlink.ask(links.by_index(999))
    invalid = Request(rtnl.RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, 0, 7, 0))
    with pytest.raises(NetlinkError, match="Invalid values in header"):
        netlink.dump(invalid)


def test_an_existing_state_is_not_an_error(netlink: Netlink) -> None:
    link = bridge(netlink)
    address = ipaddress.ip_interface("10.7.0.1/24")
    route = routes.Route(destination=ipaddress.ip_network("10.8.0.0/16"), index=link.index)
    for _ in range(2):
        netlink.do(links.change(link.index, up=True), addresses.add(link.index, address), routes.add(route))
    for _ in range(2):
        netlink.do(routes.delete(route), addresses.delete(link.index, address), links.delete(link.index))
    with pytest.raises(NetlinkError, match="Unknown device type"):
        netlink.do(links.create("net1", "nonsense"))


def test_requests_after_one_that_failed_are_carried_out_too(netlink: Netlink) -> None:
    outcomes = netlink.attempt(
        links.create("br0", "bridge"), links.create("br0", "bridge"), links.create("br1", "bridge")
    )
    assert [outcome and outcome.errno for outcome in outcomes] == [None, errno.EEXIST, None]
    assert [link.name for link in links.list_all(netlink)] == ["lo", "br0", "br1"]


def test_more_requests_than_fit_one_batch_are_answered_in_order(netlink: Netlink) -> None:
    names = [f"br{number}" for number in range(100)]
    netlink.do(*(links.create(name, "bridge") for name in names))
    answers = netlink.ask_all(*(links.by_name(name) for name in reversed(names)))
    assert [links.decode(answer).name for answer in answers] == [*reversed(names)]
    assert {link.name for link in links.list_all(netlink)} == {"lo", *names}


def test_a_list_that_changes_while_it_is_read_is_read_again(netlink: Netlink, netns: str) -> None:
    names = [f"br{number}" for number in range(60)]
    netlink.do(*(links.create(name, "bridge") for name in names))
    disturbances = 1

    class Disturbed(Netlink):
        def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
            nonlocal disturbances
            yield from super()._receive()
            if disturbances:
                disturbances -= 1
                netlink.do(links.delete(bridge(netlink, "passing").index))

    with Disturbed.in_namespace(netns, Phase.ADD) as disturbed:
        assert [link.name for link in links.list_all(disturbed)] == ["lo", *names]
        assert disturbances == 0
        disturbances = 1000
        with pytest.raises(NetlinkError, match="changed all the time") as caught:
            links.list_all(disturbed)
        assert caught.value.errno == errno.EBUSY


def test_messages_of_the_containers_own_processes_are_not_believed(netlink: Netlink, netns: str) -> None:
    port = netlink._socket.getsockname()[0]
    lie = message.packed(Request(nl.NLMSG_ERROR, 0, struct.pack("=i", -errno.EPERM) + bytes(HEADER.size)), 1)
    with Netlink.in_namespace(netns, Phase.ADD) as liar:
        for sequence in range(1, 5):
            liar._socket.sendto(lie[:8] + struct.pack("=I", sequence) + lie[12:], (port, 0))
    netlink.do(links.create("br0", "bridge"))
    assert links.find(netlink, links.by_name("br0")) is not None


def test_a_closed_socket_is_gone(netns: str) -> None:
    before = os.listdir("/proc/self/fd")
    with Netlink.in_namespace(netns, Phase.ADD) as opened:
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.ask(links.by_name("lo"))


def test_default_routes_are_replaced_and_removed_by_family(netlink: Netlink) -> None:
    link = bridge(netlink)
    netlink.do(
        links.change(link.index, up=True),
        addresses.add(link.index, ipaddress.ip_interface("10.7.0.5/24")),
        addresses.add(link.index, ipaddress.ip_interface("fd77::5/64"), dad=False),
    )
    for family, everywhere, gateways in (
        (socket.AF_INET, routes.DEFAULT_V4, ("10.7.0.1", "10.7.0.2")),
        (socket.AF_INET6, routes.DEFAULT_V6, ("fd77::1", "fd77::2")),
    ):
        first, second = (
            routes.Route(
                destination=everywhere, index=link.index, gateway=ipaddress.ip_address(each), metric=7, mtu=1300
            )
            for each in gateways
        )
        assert routes.defaults(netlink, family) == []
        netlink.do(routes.add(first))
        assert routes.defaults(netlink, family) == [first]
        netlink.do(routes.replace(second))
        assert routes.defaults(netlink, family) == [second]
        netlink.do(*(routes.delete(route) for route in routes.defaults(netlink, family)))
        assert routes.defaults(netlink, family) == []


def test_groups_are_taken_away_at_once(netlink: Netlink) -> None:
    made = [bridge(netlink, name) for name in ("br0", "br1", "br2")]
    netlink.do(*(links.change(link.index, group=7) for link in made[:2]))
    netlink.do(links.delete_group(7))
    assert [link.name for link in links.list_all(netlink)] == ["lo", "br2"]
    netlink.do(links.delete_group(7))
