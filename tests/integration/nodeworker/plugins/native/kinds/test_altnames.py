"""An interface of the node is the same by whichever of its names a network knows it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from msgspec.structs import replace

from events.fold import SandboxKey
from events.schema import ContainerId, IfName
from nodeworker.drift.watch.kernel_events import KernelEvents, Listener, NodeLink
from nodeworker.drift.watch.subscriptions import Subscriptions
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import ipvlan, macvlan, vlan
from nodeworker.plugins.native.kinds.bridge import bridge
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import BOTH, call, card, ip, kernel_has
from tests.support.waiting import BOUND

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ALTNAMES = ["other0", "eno1-of-the-second-card"]
"""The second is longer than a first name may be."""
PLUGINS: dict[str, Any] = {"bridge": bridge, "ipvlan": ipvlan, "macvlan": macvlan, "vlan": vlan}
CONFIGS: dict[str, dict[str, Any]] = {
    "bridge": {"type": "bridge", "isGateway": True},
    "ipvlan": {"type": "ipvlan"},
    "macvlan": {"type": "macvlan"},
    "vlan": {"type": "vlan", "vlanId": 7, "ipam": {"type": "static"}},
}


@pytest.mark.parametrize("altname", ALTNAMES)
@pytest.mark.parametrize("kind", PLUGINS)
def test_an_attachment_lives_by_an_alternative_name(kind: str, altname: str) -> None:
    if not kernel_has(kind):
        pytest.skip(f"the kernel has no {kind}")
    plugin = PLUGINS[kind]
    with node(), container() as netns:
        if kind == "bridge":
            ip("link add par0 type bridge")
        else:
            card("par0")
        ip(f"link property add dev par0 altname {altname}")
        config = CONFIGS[kind] | {"bridge" if kind == "bridge" else "master": altname}
        result = plugin.add(call(config, netns), BOTH)
        plugin.check(call(config, netns, prev_result=result))
        plugin.delete(call(config, netns, prev_result=result))
        plugin.delete(call(config, netns, prev_result=result))


def test_check_requires_the_recorded_bridge() -> None:
    config = {"type": "bridge", "bridge": "other0"}
    with node(), container() as netns:
        for words in ("add br0 type bridge", "property add dev br0 altname other0", "add br1 type bridge"):
            ip(f"link {words}")
        result = bridge.add(call(config, netns), BOTH)
        for words in ("property del dev br0 altname other0", "property add dev br1 altname other0"):
            ip(f"link {words}")
        with pytest.raises(NativeError, match="prevResult has no bridge other0"):
            bridge.check(call(config, netns, prev_result=result))


def test_check_finds_a_bridge_that_was_renamed_and_kept_its_name_as_another() -> None:
    config = {"type": "bridge", "bridge": "br0"}
    with node(), container() as netns:
        result = bridge.add(call(config, netns), BOTH)
        ip("link set br0 down")
        ip("link set br0 name br1")
        ip("link property add dev br1 altname br0")
        ip("link set br1 up")
        bridge.check(call(config, netns, prev_result=result))


@pytest.mark.parametrize("known_as", ["par0", ALTNAMES[1]])
async def test_a_sandbox_is_notified_when_its_parent_is_renamed(known_as: str) -> None:
    heard: asyncio.Queue[NodeLink] = asyncio.Queue()
    interest, key = Subscriptions(), SandboxKey(ContainerId("one"), IfName("eth0"))
    with node():
        ip("link add par0 type bridge")
        ip(f"link property add dev par0 altname {ALTNAMES[1]}")
        ip("link set par0 up")
        with Netlink.on_node() as netlink:
            interest.watch(key, 1, {known_as: links.find(netlink, links.by_name(known_as))}, {})
        silent = Listener(
            container_changed=lambda _: None,
            container_gone=lambda _: None,
            node_link_changed=heard.put_nowait,
            port_changed=lambda _: None,
            overflow=lambda: None,
        )

        async def concerned() -> list[SandboxKey]:
            await asyncio.sleep(0.1)
            received = [heard.get_nowait() for _ in range(heard.qsize())]
            assert received
            return [
                key
                for link in received
                for key in interest.update_link(
                    link.names, index=link.index, up=link.up, master=link.master, mtu=link.mtu, gone=link.gone
                )
            ]

        with KernelEvents(silent):
            if known_as == "par0":
                ip("link property del dev par0 altname " + ALTNAMES[1])
                assert await concerned() == []
                ip("link set par0 down")
                assert await concerned() == [key]
                ip("link set par0 name other0")
            else:
                ip("link set par0 mtu 1400")
                assert await concerned() == [key]
                ip("link property del dev par0 altname " + ALTNAMES[1])
            assert await concerned() == [key]
            ip("link add par1 type bridge")
            assert await concerned() == []


async def test_a_sandbox_is_notified_when_its_missing_parent_appears() -> None:
    heard: asyncio.Queue[NodeLink] = asyncio.Queue()
    interest, key = Subscriptions(), SandboxKey(ContainerId("one"), IfName("eth0"))
    interest.watch(key, 1, {ALTNAMES[1]: None}, {})
    with node():
        silent = Listener(
            container_changed=lambda _: None,
            container_gone=lambda _: None,
            node_link_changed=heard.put_nowait,
            port_changed=lambda _: None,
            overflow=lambda: None,
        )
        with KernelEvents(silent):
            ip("link add par0 type bridge")
            ip(f"link property add dev par0 altname {ALTNAMES[1]}")
            ip("link set par0 up")  # the kernel does not report a new name of a link that is down
            link = await asyncio.wait_for(heard.get(), BOUND)
            while ALTNAMES[1] not in link.names:
                link = await asyncio.wait_for(heard.get(), BOUND)
        with Netlink.on_node() as netlink:
            par0 = links.find(netlink, links.by_name(ALTNAMES[1]))
    assert par0 is not None
    assert (link.index, link.names) == (par0.index, ("par0", ALTNAMES[1]))
    state = {"index": link.index, "up": link.up, "master": link.master, "mtu": link.mtu, "gone": link.gone}
    assert list(interest.update_link(link.names, **state)) == [key]
    interest.watch(key, 1, {"par0": replace(par0, flags=0)}, {})
    assert list(interest.update_link(("par0",), **(state | {"up": True}))) == [key]
