"""A native plugin and the reference plugin produce the same result and the same state in the kernel."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from nodeworker.plugins.native.api import Call
from nodeworker.plugins.native.jobs import without_new_mtus
from nodeworker.plugins.native.kinds import loopback, macvlan, ptp
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec import results
from tests.support.plugins.kernel_view import (
    REFERENCE,
    configure,
    container,
    differences,
    execute,
    filters_vlans,
    node,
    view,
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed"),
]

PLUGINS: dict[str, Any] = {"bridge": bridge, "loopback": loopback, "macvlan": macvlan, "ptp": ptp}

V4: dict[str, Any] = {"addresses": [{"address": "10.77.0.5/24", "gateway": "10.77.0.1"}]}
V6: dict[str, Any] = {"addresses": [{"address": "fd77::5/64", "gateway": "fd77::1"}]}
NO_GATEWAY: dict[str, Any] = {"addresses": [{"address": "10.77.0.5/24"}, {"address": "fd77::5/64"}]}
BOTH: dict[str, Any] = {
    "addresses": V4["addresses"] + V6["addresses"],
    "routes": [{"dst": "10.88.0.0/16"}, {"dst": "fd88::/64", "gw": "fd77::9"}, {"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.77.0.1"], "search": ["example.com"]},
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "loopback": ({"type": "loopback"}, {}),
    "bridge without addresses": ({"type": "bridge", "bridge": "br0"}, {}),
    "bridge": ({"type": "bridge", "bridge": "br0"}, BOTH),
    "bridge without gateway": ({"type": "bridge", "bridge": "br0", "mtu": 1400}, NO_GATEWAY),
    "bridge as gateway": ({"type": "bridge", "bridge": "br0", "isGateway": True}, BOTH),
    "bridge as gateway of its choice": ({"type": "bridge", "bridge": "br0", "isGateway": True}, NO_GATEWAY),
    "bridge as default gateway": ({"type": "bridge", "bridge": "br0", "isDefaultGateway": True}, V6),
    "hairpin as default gateway": ({"type": "bridge", "isDefaultGateway": True, "hairpinMode": True}, NO_GATEWAY),
    "promiscuous bridge": ({"type": "bridge", "bridge": "br0", "promiscMode": True}, V4),
    "bridge with dns": ({"type": "bridge", "bridge": "br0", "dns": {"domain": "example.com"}}, V4),
    "bridge with mac": ({"type": "bridge", "bridge": "br0", "runtimeConfig": {"mac": "02:00:5e:10:00:01"}}, V4),
    "existing bridge": ({"type": "bridge", "bridge": "brx", "mtu": 1400}, V4),
    "existing gateway": ({"type": "bridge", "bridge": "brx", "isGateway": True}, BOTH),
    "gateway by force": ({"type": "bridge", "bridge": "bry", "isGateway": True, "forceAddress": True}, V4),
    "bridge in a vlan": ({"type": "bridge", "bridge": "br0", "vlan": 100}, BOTH),
    "bridge in a vlan without addresses": ({"type": "bridge", "bridge": "br0", "vlan": 1}, {}),
    "bridge in a vlan that does not filter": ({"type": "bridge", "bridge": "brx", "vlan": 100}, V4),
    "gateway in a vlan": ({"type": "bridge", "bridge": "br0", "vlan": 100, "isGateway": True, "mtu": 1400}, BOTH),
    "bridge with masquerading": ({"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}, BOTH),
    "bridge that is confined": ({"type": "bridge", "bridge": "br0", "macspoofchk": True}, V4),
    "bridge that is confined without addresses": ({"type": "bridge", "bridge": "brx", "macspoofchk": True}, {}),
    "bridge with masquerading without addresses": ({"type": "bridge", "bridge": "br0", "ipMasq": True}, {}),
    "macvlan without addresses": ({"type": "macvlan", "master": "par0"}, {}),
    "macvlan": ({"type": "macvlan", "master": "par0", "dns": {"nameservers": ["10.1.1.1"]}}, BOTH),
    "macvlan private": ({"type": "macvlan", "master": "par0", "mode": "private", "mtu": 1300}, V4),
    "macvlan vepa": ({"type": "macvlan", "master": "par0", "mode": "vepa", "mac": "02:00:5e:10:00:02"}, NO_GATEWAY),
    "macvlan passthru": ({"type": "macvlan", "master": "par0", "mode": "passthru"}, V6),
    "macvlan on the default route": ({"type": "macvlan"}, V4),
    "ptp": ({"type": "ptp"}, BOTH),
    "ptp with mtu": ({"type": "ptp", "mtu": 1400, "dns": {"nameservers": ["10.1.1.1"]}}, V4),
    "ptp with masquerading": ({"type": "ptp", "ipMasq": True}, BOTH),
    "ptp of IPv6": ({"type": "ptp"}, V6),
}


@pytest.fixture(params=CASES.values(), ids=[*CASES])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    config, ipam = request.param
    base = {"cniVersion": "1.0.0", "name": "net"} | config
    return base | ({"ipam": {"type": "static"} | ipam} if ipam else {}), ipam


def furnish() -> None:
    """Give the node a card with a default route, a bridge with a port, and a bridge with an address."""
    configure(
        "link add par0 type veth peer name par1",
        "link set par0 up",
        "link set par1 up",
        "addr add 192.0.2.5/24 dev par0",
        "route add default via 192.0.2.1",
        "link add brx type bridge",
        "link add prt0 address 02:00:00:00:00:01 type veth peer name prt1",
        "link set prt0 master brx up",
        "link set prt1 up",
        "addr add 10.77.0.1/24 dev brx",
        "link add bry type bridge",
        "addr add 10.99.0.1/24 dev bry",
    )


def assigned(ipam: dict[str, Any]) -> results.Result:
    """Return what the static IPAM plugin answers."""
    ips = [each | {"address": each["address"]} for each in ipam["addresses"]]
    return results.decode(json.dumps({"cniVersion": "1.0.0"} | ipam | {"ips": ips}), "1.0.0")


def by_reference(config: dict[str, Any]) -> list[dict[str, Any]]:
    with node(), container() as netns:
        furnish()
        result = execute(config["type"], "ADD", config, netns, "net1")
        attached = view(netns, result)
        execute(config["type"], "DEL", config, netns, "net1")
        return [attached, view(netns)]


def natively(config: dict[str, Any], ipam: dict[str, Any]) -> list[dict[str, Any]]:
    plugin = PLUGINS[config["type"]]
    assert plugin.unsupported(config) == ""
    with node(), container() as netns:
        furnish()
        call = Call(container_id="sandbox", netns=netns, ifname="net1", config=config)
        result = plugin.add(call, assigned(ipam) if ipam else None)
        attached = view(netns, {"dns": {}} | json.loads(results.encode(without_new_mtus(result, None), "1.0.0")))
        plugin.delete(call)
        return [attached, view(netns)]


def test_a_native_interface_is_like_the_reference_plugins(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config, ipam = case
    if config.get("vlan") and not filters_vlans():
        pytest.skip("the kernel has no VLAN filtering of bridges")
    mine, theirs = natively(config, ipam), by_reference(config)
    assert differences(mine, theirs) == []
