"""Pods as Multus has them, without a kernel."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.support.host.multus_state import Network, Sandbox

BOX = "0123456789abcdef" * 4
NETNS = "/run/netns/cni-6b9b1a1e"
LINKS = frozenset({"lo", "eth0", "net1", "net2"})

PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
"""What the runtime asks for."""


def result(ifname: str, address: str, mac: str, netns: str = NETNS) -> dict[str, Any]:
    return {
        "cniVersion": "0.4.0",
        "interfaces": [{"name": ifname, "mac": mac, "sandbox": netns}],
        "ips": [{"version": "4", "interface": 0, "address": address}],
        "dns": {},
    }


DEFAULT = Network(
    config={
        "cniVersion": "0.4.0",
        "name": "cbr0",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": {"type": "host-local", "ranges": []}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    },
    result=result("eth0", "10.244.1.7/24", "02:00:00:00:00:07"),
)
MACVLAN = Network(
    name="default/macvlan-conf",
    config={
        "cniVersion": "0.3.1",
        "name": "macvlan-conf",
        "type": "macvlan",
        "master": "eth1",
        "capabilities": {"ips": True, "mac": True},
        "ipam": {"type": "static"},
    },
    mac="02:42:0a:01:01:0b",
    ips=("10.1.1.11/24",),
    result={**result("net1", "10.1.1.11/24", "02:42:0a:01:01:0b"), "cniVersion": "0.3.1"},
)
SRIOV = Network(
    name="sriov/vf",
    config={
        "cniVersion": "1.0.0",
        "name": "vf",
        "type": "sriov",
        "deviceID": "0000:03:02.1",
        "pciBusID": "0000:03:02.1",
        "capabilities": {"deviceID": True, "CNIDeviceInfoFile": True},
    },
    device="0000:03:02.1",
    resource="intel.com/vf",
    result={"cniVersion": "1.0.0", "interfaces": [{"name": "net2", "mac": "02:00:00:00:00:09", "sandbox": NETNS}]},
)

POD = Sandbox(
    container_id=BOX,
    pod="web",
    networks=(DEFAULT, MACVLAN, SRIOV),
    netns=NETNS,
    capability_args={"portMappings": PORTS},
)


def another(number: int, **changes: Any) -> Sandbox:
    """Return POD under another container ID and name."""
    return msgspec.structs.replace(POD, container_id=f"{number:064x}", pod=f"web-{number}", **changes)
