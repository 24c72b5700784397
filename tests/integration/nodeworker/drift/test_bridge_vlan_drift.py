"""A bridge port that lost a VLAN of its network is detected and repaired."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, DriftKind, IfName, NetworkName, NodeName, Phase, PlannedAttachment
from nodeworker.drift.differences import Snapshot, differences
from nodeworker.drift.expected import ExpectedLink, expected_links
from nodeworker.drift.repair.in_place import repair_in_place
from nodeworker.drift.snapshot import take_snapshot
from nodeworker.drift.watch.kernel_events import KernelEvents, Listener
from nodeworker.drift.watch.subscriptions import Subscriptions
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec.results import Interface, Result
from tests.integration.nodeworker.plugins.native.kinds.test_bridge_vlans import (
    PVID_UNTAGGED,
    filtering_bridge,
    needs_vlans,
)
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import answer, call, encoded, ip
from tests.support.waiting import BOUND

IN_VLAN: dict[str, Any] = {"type": "bridge", "bridge": "br0", "vlan": 100, "preserveDefaultVlan": False}
IN_TRUNK: dict[str, Any] = {"type": "bridge", "bridge": "br0", "vlanTrunk": [{"minID": 5, "maxID": 6}]}
INSIDE = replace(filtering_bridge(), index=2, name="net1", kind="veth", data={})
PORT = replace(INSIDE, index=10, name="veth1", master=filtering_bridge().index)
RESULT = Result(cni_version="1.0.0", interfaces=(Interface(name="net1", sandbox="/run/netns/box"),))


def wanted(config: Mapping[str, Any], result: Result = RESULT, *, native: bool = True) -> tuple[ExpectedLink, ...]:
    plan = PlannedAttachment(
        network=NetworkName("ns/net"),
        ifname=IfName("net1"),
        cni_name="net",
        cni_version="1.0.0",
        plugins=(json.dumps(config),),
        native=(native,),
    )
    attachment = Attachment(plan=plan, phase=AttachmentPhase.ATTACHED, result=json.dumps(encoded(result)))
    key = SandboxKey(ContainerId("box"), IfName("eth0"))
    box = Sandbox(key=key, node=NodeName("n"), phase=SandboxPhase.ATTACHED, attachments=(attachment,))
    return expected_links(box, lambda _: "repair")


def seen(vlans: Mapping[int, int]) -> Snapshot:
    parents = {"br0": filtering_bridge()}
    return Snapshot(links={"net1": INSIDE}, ports={"net1": PORT}, parents=parents, vlans={"net1": vlans})


def kinds(links: tuple[ExpectedLink, ...], seen: Snapshot) -> list[DriftKind]:
    return [drift.kind for drift in differences(links, seen, {})]


@pytest.mark.parametrize(
    ("config", "native", "vlans", "drifts"),
    [
        (IN_VLAN, True, {100: PVID_UNTAGGED}, False),
        (IN_VLAN, True, {100: PVID_UNTAGGED, 7: 0}, False),
        (IN_VLAN, True, {100: PVID_UNTAGGED, 1: 4}, True),
        (IN_VLAN, False, {100: PVID_UNTAGGED, 1: 4}, False),
        (IN_VLAN, False, {1: PVID_UNTAGGED}, True),
        (IN_VLAN, True, {}, True),
        (IN_TRUNK, True, {5: 0, 6: 0, 1: PVID_UNTAGGED}, False),
        (IN_TRUNK, True, {5: 0, 1: PVID_UNTAGGED}, True),
        (IN_TRUNK, False, {}, False),
        ({"type": "bridge", "bridge": "br0"}, True, {}, False),
        ({"type": "bridge", "bridge": "br0", "vlan": "x"}, False, {}, False),
    ],
)
def test_port_vlans_are_compared_with_the_network(
    config: dict[str, Any], native: bool, vlans: dict[int, int], drifts: bool
) -> None:
    found = kinds(wanted(config, native=native), seen(vlans))
    assert found == ([DriftKind.VLANS_CHANGED] if drifts else [])


def test_vlan_drift_names_expected_and_found() -> None:
    (drift,) = differences(wanted(IN_VLAN), seen({1: PVID_UNTAGGED, 7: 0, 8: 0}), {})
    assert (drift.expected, drift.found) == ("VLAN 100 untagged, and not the bridge's own", "VLAN 1 untagged, 7-8")
    (drift,) = differences(wanted(IN_TRUNK), seen({}), {})
    assert (drift.expected, drift.found) == ("VLAN 5-6", "no VLAN")


def test_detached_port_is_one_drift_without_vlan_drift() -> None:
    detached = replace(seen({}), ports={"net1": replace(PORT, master=0)})
    assert kinds(wanted(IN_VLAN), detached) == [DriftKind.PORT_DETACHED]


def test_bridge_event_of_a_port_concerns_its_sandbox() -> None:
    interest = Subscriptions()
    one, other = (SandboxKey(ContainerId(name), IfName("eth0")) for name in ("one", "other"))
    interest.watch(one, 1, {}, {"veth1": PORT}, frozenset({10}))
    interest.watch(other, 2, {}, {"veth2": replace(PORT, index=11)})
    assert [list(interest.of_vlan_port(index)) for index in (10, 11, 12)] == [[one], [], []]
    interest.watch(one, 1, {}, {"veth1": replace(PORT, index=13)}, frozenset({13}))
    assert [list(interest.of_vlan_port(index)) for index in (10, 13)] == [[], [one]]
    interest.forget(one)
    assert list(interest.of_vlan_port(13)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
async def test_bridge_port_event_is_received() -> None:
    heard: asyncio.Queue[int] = asyncio.Queue()
    with node():
        for words in ("add br0 type bridge", "add a0 type veth peer name a1", "set a0 master br0", "set a0 up"):
            ip(f"link {words}")
        with Netlink.on_node() as netlink:
            port = links.find(netlink, links.by_name("a0"))
        assert port is not None
        silent = Listener(
            container_changed=lambda _: None,
            container_gone=lambda _: None,
            node_link_changed=lambda _: None,
            port_changed=heard.put_nowait,
            overflow=lambda: None,
        )
        with KernelEvents(silent):
            ip("link set a0 type bridge_slave hairpin on")
            assert await asyncio.wait_for(heard.get(), BOUND) == port.index


@needs_vlans
@pytest.mark.parametrize("config", [IN_VLAN, IN_TRUNK | {"preserveDefaultVlan": False}])
@pytest.mark.parametrize("change", ["vlan del vid 100", "vlan del vid 5", "vlan add vid 1 pvid untagged", "nomaster"])
def test_port_vlans_are_repaired(config: dict[str, Any], change: str) -> None:
    with node(), container() as netns:
        made = bridge.add(call(config, netns), answer("10.77.0.5/24"))
        port = made.interfaces[1].name
        (link,) = wanted(config, made)
        whole = take_snapshot(netns, (link,), Phase.CHECK).snapshot
        assert [each.kind for each in differences((link,), whole, {})] == []
        if change == "nomaster":
            subprocess.run(["ip", "link", "set", port, "nomaster"], check=True)
        else:
            vlan, command, *more = change.split()
            subprocess.run(["bridge", vlan, command, "dev", port, *more], check=False)
        spoiled = take_snapshot(netns, (link,), Phase.CHECK).snapshot
        drifts = differences((link,), spoiled, {})
        assert repair_in_place(netns, (link,), spoiled, drifts) == []
        assert take_snapshot(netns, (link,), Phase.CHECK).snapshot.vlans == whole.vlans


@needs_vlans
def test_vlan_dump_equals_output_of_bridge() -> None:
    with node(), container() as netns:
        made = bridge.add(call(IN_VLAN, netns), answer("10.77.0.5/24"))
        (link,) = wanted(IN_VLAN, made)
        shown = json.loads(subprocess.run(["bridge", "-j", "vlan"], check=True, capture_output=True).stdout)
        port = next(each for each in shown if each["ifname"] == made.interfaces[1].name)
        assert {each["vlan"] for each in port["vlans"]} == set(
            take_snapshot(netns, (link,), Phase.CHECK).snapshot.vlans["net1"]
        )
