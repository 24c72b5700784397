"""Make the values that events have: plans, results and failures."""

from __future__ import annotations

import json

from events.schema import (
    ContainerId,
    Drift,
    DriftKind,
    ErrorClass,
    Failure,
    IfName,
    Leak,
    LeakId,
    LeakKind,
    NetworkName,
    Phase,
    PlannedAttachment,
    Pod,
)

ETH0 = IfName("eth0")
ETH1 = IfName("eth1")
NETWORKS = ("k8s-pod-network", "default/storage", "default/video")
SECRET = "hunter2"
"""In configurations of the runtime and of plugins: no program may print it."""
PLUGIN_PATH = "/opt/cni/bin"


def pod_of(sandbox: ContainerId) -> Pod:
    return Pod("telecom", f"upf-{sandbox[-6:]}", f"7c0c9a4e-0000-4000-8000-{sandbox[-12:]}")


def netns_of(sandbox: ContainerId) -> str:
    return f"/run/netns/{sandbox}"


def planned(index: int, ifname: IfName = ETH0, network: str | None = None) -> PlannedAttachment:
    """Return attachment *index* of a plan; the first is the default network, and has the interface name *ifname*."""
    network = NETWORKS[index] if network is None else network
    name = network.rpartition("/")[2]
    plugin: dict[str, object] = {
        "cniVersion": "1.1.0",
        "name": name,
        "type": "bridge" if index == 0 else "macvlan",
        "master": "eno1",
        "mode": "bridge",
        "ipam": {"type": "rest", "ranges": [[{"subnet": f"10.{index}.0.0/24"}]], "password": SECRET},
    }
    return PlannedAttachment(
        network=NetworkName(network),
        ifname=ifname if index == 0 else IfName(f"net{index}"),
        cni_name=name,
        cni_version="1.1.0",
        plugins=(json.dumps(plugin),),
        cni_args="IgnoreUnknown=1;K8S_POD_NAMESPACE=telecom",
        default=index == 0,
    )


def result(ifname: str, sandbox: str, index: int) -> str:
    """Return the CNI result of attachment *index*. Its address follows from the letters of *sandbox*."""
    number = sum(sandbox.encode()) % 250
    return json.dumps(
        {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": f"br{index}", "mac": "02:00:00:00:00:01"},
                {"name": ifname, "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": f"/run/netns/{sandbox}"},
            ],
            "ips": [{"address": f"10.{index}.0.{number}/24", "gateway": f"10.{index}.0.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}] if index == 0 else [],
            "dns": {},
        }
    )


def failure_of(
    phase: Phase,
    network: str,
    plugin: str = "bridge",
    *,
    ifname: str = "",
    error_class: ErrorClass = ErrorClass.PLUGIN_FAILED,
) -> Failure:
    return Failure(
        error_class=error_class,
        phase=phase,
        message=f"network {network}: plugin {plugin} failed: no free address",
        code=100,
        network=network,
        ifname=ifname,
        plugin_type=plugin,
    )


def plugin_of(plan: PlannedAttachment) -> str:
    return json.loads(plan.plugins[0])["type"]


DRIFT = Drift(kind=DriftKind.LINK_DOWN, network=planned(0).network, ifname=ETH0)
LEAK = Leak(id=LeakId("address/10.0.0.2"), kind=LeakKind.ADDRESS_UNOWNED, what="10.0.0.2")
FAILURE = Failure(error_class=ErrorClass.PLUGIN_FAILED, phase=Phase.ADD, message="no", code=100)
