"""Differences between the recorded state and the kernel's, as values."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, DriftKind, IfName, NetworkName, NodeName, PlannedAttachment
from nodeworker.drift.differences import Snapshot, differences
from nodeworker.drift.expected import ExpectedLink, expected_links
from nodeworker.kernel.layouts import ifaddrmsg, ifinfmsg
from nodeworker.kernel.rtnetlink.addresses import Assigned
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.routes import Route

RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/box"}],
    "ips": [{"interface": 0, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
    "routes": [{"dst": "10.9.0.0/16"}],
}
MACVLAN = {"type": "macvlan", "master": "uplink0"}
LINK = Link(
    index=2,
    name="net1",
    kind="macvlan",
    mac="02:00:00:00:00:01",
    mtu=1500,
    flags=ifinfmsg.IFF_UP,
    master=0,
    parent=7,
    parent_netnsid=0,
    operstate=6,
    queue_length=0,
    data={},
)
UPLINK = replace(LINK, index=7, name="uplink0", kind="veth")


def wanted(
    config: Mapping[str, Any] = MACVLAN,
    result: Mapping[str, Any] | None = RESULT,
    policy: str = "repair",
    cni_version: str = "1.0.0",
    chained: tuple[Mapping[str, Any], ...] = (),
    mtus: tuple[int, ...] = (),
    **plan: Any,
) -> tuple[ExpectedLink, ...]:
    attachment = Attachment(
        plan=PlannedAttachment(
            network=NetworkName("ns/net"),
            ifname=IfName("net1"),
            cni_name="net",
            cni_version=cni_version,
            plugins=tuple(map(json.dumps, (config, *chained))),
            **plan,
        ),
        phase=AttachmentPhase.ATTACHED,
        result="" if result is None else json.dumps(result),
        mtus=mtus,
    )
    box = Sandbox(
        key=SandboxKey(ContainerId("box"), IfName("eth0")),
        node=NodeName("node-1"),
        phase=SandboxPhase.ATTACHED,
        attachments=(attachment,),
    )
    return expected_links(box, lambda _: policy)


def assigned(text: str, flags: int = ifaddrmsg.IFA_F_PERMANENT, scope: int = 0) -> Assigned:
    return Assigned(index=2, address=ipaddress.ip_interface(text), flags=flags, scope=scope)


def route(destination: str, gateway: str = "", index: int = 2, source: str = "") -> Route:
    via, own = (ipaddress.ip_address(each) if each else None for each in (gateway, source))
    return Route(destination=ipaddress.ip_network(destination), index=index, gateway=via, source=own)


SOUND = Snapshot(
    links={"net1": LINK},
    addresses=(assigned("10.0.0.2/24"),),
    routes=(route("10.0.0.0/24"), route("10.9.0.0/16", "10.0.0.1")),
    parents={"uplink0": UPLINK},
)


def kinds(links: tuple[ExpectedLink, ...], seen: Snapshot, mtu: int = 1500) -> list[DriftKind]:
    return [drift.kind for drift in differences(links, seen, {"net1": mtu})]


def test_recorded_state_has_no_drift() -> None:
    assert kinds(wanted(), SOUND) == []


@pytest.mark.parametrize(
    ("changes", "drift"),
    [
        ({"links": {}}, DriftKind.LINK_MISSING),
        ({"links": {"net1": replace(LINK, flags=0)}}, DriftKind.LINK_DOWN),
        ({"links": {"net1": replace(LINK, mtu=1400)}}, DriftKind.MTU_CHANGED),
        ({"links": {"net1": replace(LINK, mac="02:00:00:00:00:02")}}, DriftKind.MAC_CHANGED),
        ({"addresses": (*SOUND.addresses, assigned("10.1.0.2/24"))}, DriftKind.ADDRESS_FOREIGN),
        ({"addresses": (*SOUND.addresses, assigned("2001:db8::9/64"))}, DriftKind.ADDRESS_FOREIGN),
        ({"addresses": ()}, DriftKind.ADDRESS_MISSING),
        ({"routes": SOUND.routes[:1]}, DriftKind.ROUTE_MISSING),
        ({"routes": SOUND.routes[1:]}, DriftKind.ROUTE_MISSING),
        ({"routes": (SOUND.routes[0], route("10.9.0.0/16", "10.0.0.9"))}, DriftKind.ROUTE_MISSING),
        ({"routes": (SOUND.routes[0], route("10.9.0.0/16", "10.0.0.1", index=3))}, DriftKind.ROUTE_MISSING),
        ({"parents": {}}, DriftKind.PARENT_MISSING),
        ({"parents": {"uplink0": replace(UPLINK, flags=0)}}, DriftKind.PARENT_DOWN),
    ],
)
def test_each_change_is_one_drift(changes: dict[str, Any], drift: DriftKind) -> None:
    assert kinds(wanted(), replace(SOUND, **changes)) == [drift]


BOND = replace(LINK, index=9, name="bond0", kind="bond", parent=0)
MEMBER = replace(LINK, master=BOND.index)


@pytest.mark.parametrize("kind", ["bond", "team"])
def test_member_of_a_bond_has_the_bonds_mac_address_and_mtu(kind: str) -> None:
    changed = replace(MEMBER, mac="02:00:00:00:00:02", mtu=9000)
    bond = replace(BOND, kind=kind)
    assert kinds(wanted(), replace(SOUND, links={"net1": changed, "bond0": bond})) == []
    assert kinds(wanted(), replace(SOUND, links={"net1": replace(changed, flags=0), "bond0": bond})) == [
        DriftKind.LINK_DOWN
    ]


@pytest.mark.parametrize("kind", ["bridge", "vrf"])
def test_port_of_another_kind_keeps_its_mac_address_and_mtu(kind: str) -> None:
    seen = {"net1": replace(MEMBER, mac="02:00:00:00:00:02", mtu=9000), "master": replace(BOND, kind=kind)}
    assert kinds(wanted(), replace(SOUND, links=seen)) == [DriftKind.MAC_CHANGED, DriftKind.MTU_CHANGED]


def test_bond_may_take_the_mac_address_of_another_member() -> None:
    links = {"net1": replace(BOND, name="net1", index=LINK.index, mac="02:00:00:00:00:03")}
    seen = replace(SOUND, links=links, parents={})
    assert kinds(wanted({"type": "bond"}), seen) == []
    assert kinds(wanted({"type": "bond"}), replace(seen, links={"net1": replace(links["net1"], mtu=9000)})) == [
        DriftKind.MTU_CHANGED
    ]


@pytest.mark.parametrize(
    "extra", [assigned("fe80::1/64", scope=253), assigned("2001:db8::1/64", flags=0)], ids=["link-local", "advertised"]
)
def test_state_made_by_the_kernel_is_no_drift(extra: Assigned) -> None:
    assert kinds(wanted(), replace(SOUND, addresses=(*SOUND.addresses, extra))) == []


def test_any_address_is_allowed_without_recorded_ones() -> None:
    links = wanted(result={**RESULT, "ips": [], "routes": []})
    assert kinds(links, replace(SOUND, routes=())) == []


def test_unrecorded_state_is_not_compared() -> None:
    assert wanted(result=None) == ()
    assert kinds(wanted({"type": "macvlan"}), replace(SOUND, parents={})) == []
    assert kinds(wanted(), SOUND, mtu=0) == []


def test_interface_missing_in_the_result_is_no_drift() -> None:
    """A plugin need not create an interface. Results before 0.3.0 list none, though their plugins created one."""
    silent = {key: value for key, value in RESULT.items() if key != "interfaces"}
    assert wanted(result=silent) == ()
    (old,) = wanted(result={"ip4": {"ip": "10.0.0.2/24"}}, cni_version="0.2.0")
    assert [str(address) for address in old.addresses] == ["10.0.0.2/24"]


def test_network_with_policy_off_is_not_compared() -> None:
    assert wanted(policy="off") == ()


def test_configured_mtu_wins_over_the_first_seen() -> None:
    assert kinds(wanted({**MACVLAN, "mtu": 1400}), SOUND, mtu=1500) == [DriftKind.MTU_CHANGED]


@pytest.mark.parametrize(
    ("mtus", "chained", "known"),
    [
        ((1400,), (), 1400),
        ((1400, 0), ({"type": "portmap"},), 1400),
        ((1400, 1300), ({"type": "tuning", "mtu": 1300},), 1300),
        ((1400, 0), ({"type": "tuning", "mtu": 1300},), 1300),
        ((1400, 0), ({"type": "tuning", "mtu": 1300, "args": {"cni": {"mtu": 1200}}},), 1200),
        ((1400, 0), ({"type": "somebodys"},), 0),
        ((1400, 0), ({"type": "somebodys", "mtu": 1300},), 1300),
        ((1400, 0), (), 0),
        ((), (), 0),
    ],
)
def test_mtu_is_that_of_the_last_plugin_that_sets_one(
    mtus: tuple[int, ...], chained: tuple[Mapping[str, Any], ...], known: int
) -> None:
    (link,) = wanted(mtus=mtus, chained=chained)
    assert link.mtu == known


def test_mtu_drift_changes_when_the_parent_has_room() -> None:
    small = replace(SOUND, links={"net1": replace(LINK, mtu=1400)})
    (drift,) = differences(wanted(mtus=(1500,)), replace(small, parents={"uplink0": replace(UPLINK, mtu=1400)}), {})
    assert (drift.expected, drift.found) == ("1500", "1400, as uplink0 has 1400")
    (drift,) = differences(wanted(mtus=(1500,)), small, {})
    assert (drift.expected, drift.found) == ("1500", "1400")


def test_mtu_of_the_result_wins() -> None:
    with_mtu = {**RESULT, "cniVersion": "1.1.0", "interfaces": [RESULT["interfaces"][0] | {"mtu": 1234}]}
    (link,) = wanted({**MACVLAN, "mtu": 1400}, with_mtu, cni_version="1.1.0", mtus=(1300,))
    assert link.mtu == 1234


def test_absent_device_without_driver_is_no_drift() -> None:
    result = {**RESULT, "interfaces": [{"name": "net1", "sandbox": "/run/netns/box"}]}
    assert kinds(wanted({"type": "sriov"}, result, device="0000:01:00.1"), replace(SOUND, links={})) == []


def test_a_port_is_compared_at_both_ends() -> None:
    bridge, port = replace(UPLINK, index=9, name="br0"), replace(LINK, index=10, name="veth1", master=9)
    links = wanted({"type": "bridge", "bridge": "br0"})
    seen = replace(SOUND, parents={"br0": bridge}, ports={"net1": port})
    assert kinds(links, seen) == []
    assert kinds(links, replace(seen, ports={"net1": replace(port, master=0)})) == [DriftKind.PORT_DETACHED]
    assert kinds(links, replace(seen, ports={"net1": replace(port, flags=0)})) == [DriftKind.LINK_DOWN]
    assert kinds(links, replace(seen, ports={})) == [DriftKind.PORT_DETACHED]


def test_ptp_route_to_the_gateway_replaces_the_network() -> None:
    links = wanted({"type": "ptp"})
    ways = (
        route("10.0.0.1/32", source="10.0.0.2"),
        route("10.0.0.0/24", "10.0.0.1", source="10.0.0.2"),
        route("10.9.0.0/16", "10.0.0.1"),
    )
    assert kinds(links, replace(SOUND, routes=ways)) == []
    assert kinds(links, replace(SOUND, routes=ways[1:])) == [DriftKind.ROUTE_MISSING]
    assert kinds(links, replace(SOUND, routes=(replace(ways[0], source=None), *ways[1:]))) == [DriftKind.ROUTE_MISSING]
