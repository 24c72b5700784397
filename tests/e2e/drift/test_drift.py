"""Changed state on the node is repaired: the worker observes it, the reconciler decides, the worker repairs.

Each test compares the pod's relevant state before and after the repair: they are equal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import Drift, DriftKind, DriftObserved, DriftRepaired, DriftRepairFailed, ErrorClass
from reconciler.status.folder_sink import POLL_INTERVAL
from tests.e2e.leaks.test_leaks import forge_boot
from tests.support.node.kernel import ip, links
from tests.support.node.node import BRIDGE, PARENT, MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

Change = Callable[[PodSandbox], None]

_SETTLED = 3.0
"""Seconds after an attach until the kernel has sent all events, including those of usable IPv6 addresses."""


@pytest.fixture(scope="module", params=["auto", "never"], ids=["native", "executed"])
def held_node(request: pytest.FixtureRequest, shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of the fixture ``held``: worker and reconciler repair it."""
    with Node(tmp_path_factory.mktemp("n"), shim, native=request.param).entered() as node:
        node.start()
        with reconciler(node):
            yield node


def attached(node: Node, name: str = "samplepod") -> PodSandbox:
    """Return a pod with a default route, a second network and a route over that."""
    node.nad("macvlan-conf", node.macvlan(ipam=routed(node, "192.168.0.0/16", "10.99.0.0/16")))
    default = node.bridge(ipam=routed(node, "10.87.0.0/16", "0.0.0.0/0"), mtu=1450)
    pod = node.pod(name, "macvlan-conf", config=node.conf(default))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    return pod


def routed(node: Node, subnet: str, destination: str) -> dict[str, Any]:
    gateway = subnet.replace("0.0/16", "0.1")
    ipam = node.host_local(subnet)
    return {**ipam, "ranges": [[{"subnet": subnet, "gateway": gateway}]], "routes": [{"dst": destination}]}


def picture(pod: PodSandbox) -> dict[str, Any]:
    """Return the relevant state of *pod*: interfaces with addresses, routes, and its ports on the node."""
    shown: list[dict[str, Any]] = json.loads(ip("-n", pod.namespace, "-json", "addr", "show"))
    routes: list[dict[str, Any]] = [
        route
        for family in ("-4", "-6")
        for route in json.loads(ip("-n", pod.namespace, family, "-json", "route", "show", "table", "all"))
        if not route["dst"].startswith(("fe80:", "ff00:", "multicast")) and route.get("table") != "local"
    ]
    ports: list[dict[str, Any]] = json.loads(ip("-json", "link", "show", "master", BRIDGE) or "[]")
    return {
        "links": {
            each["ifname"]: (
                each["address"],
                each["mtu"],
                "UP" in each["flags"],
                sorted(f"{a['local']}/{a['prefixlen']}" for a in each["addr_info"] if a["scope"] == "global"),
            )
            for each in shown
            if each["link_type"] != "loopback"
        },
        "routes": sorted((each["dst"], each.get("gateway", ""), each["dev"], "table" in each) for each in routes),
        "ports": sorted((each["ifname"], each["address"]) for each in ports if each.get("link_netnsid") is not None),
    }


def recorded(node: Node, pod: PodSandbox, kind: type[Any]) -> list[Any]:
    return [event.data for event in node.events_of(pod) if isinstance(event.data, kind)]


def kinds(drifts: tuple[Drift, ...]) -> set[DriftKind]:
    return {drift.kind for drift in drifts}


def port_of(pod: PodSandbox, ifname: str = "eth0") -> str:
    """Return the name of the node's end of the pod's interface *ifname*."""
    (link,) = json.loads(ip("-n", pod.namespace, "-json", "link", "show", ifname))
    (port,) = [each for each in json.loads(ip("-json", "link", "show")) if each["ifindex"] == link["link_index"]]
    return port["ifname"]


def inside(*args: str) -> Change:
    return lambda pod: void(ip("-n", pod.namespace, *args))


def void(_: object) -> None:
    return None


def bounce(pod: PodSandbox) -> None:
    for state in ("down", "up"):
        ip("-n", pod.namespace, "link", "set", "net1", state)


def bounce_parent(pod: PodSandbox) -> None:
    for state in ("down", "up"):
        ip("link", "set", PARENT, state)
    bounce(pod)


def detach_port(pod: PodSandbox) -> None:
    ip("link", "set", port_of(pod), "nomaster")


def set_port_down(pod: PodSandbox) -> None:
    ip("link", "set", port_of(pod), "down")


CHANGES: dict[str, tuple[Change, DriftKind]] = {
    "deleted macvlan": (inside("link", "del", "net1"), DriftKind.LINK_MISSING),
    "deleted bridge interface": (inside("link", "del", "eth0"), DriftKind.LINK_MISSING),
    "link down": (inside("link", "set", "eth0", "down"), DriftKind.LINK_DOWN),
    "port down": (set_port_down, DriftKind.LINK_DOWN),
    "removed address": (inside("addr", "flush", "dev", "net1"), DriftKind.ADDRESS_MISSING),
    "foreign address": (inside("addr", "add", "172.31.0.9/24", "dev", "eth0"), DriftKind.ADDRESS_FOREIGN),
    "removed route": (inside("route", "del", "10.99.0.0/16"), DriftKind.ROUTE_MISSING),
    "removed default route": (inside("route", "del", "default"), DriftKind.ROUTE_MISSING),
    "removed network": (inside("route", "del", "192.168.0.0/16"), DriftKind.ROUTE_MISSING),
    "changed MTU": (inside("link", "set", "eth0", "mtu", "1400"), DriftKind.MTU_CHANGED),
    "changed MAC": (inside("link", "set", "net1", "address", "02:00:00:00:00:99"), DriftKind.MAC_CHANGED),
    "bounced": (bounce, DriftKind.ROUTE_MISSING),
    "parent bounced": (bounce_parent, DriftKind.ROUTE_MISSING),
    "port detached": (detach_port, DriftKind.PORT_DETACHED),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_drift_is_repaired(held: Node, name: str) -> None:
    change, kind = CHANGES[name]
    pod = attached(held)
    before, reserved = picture(pod), held.reserved()
    change(pod)
    eventually(lambda: recorded(held, pod, DriftRepaired), "the drift is repaired", 10)
    eventually(lambda: picture(pod) == before, f"all is as before: {before}", 10)
    assert kind in {each for data in recorded(held, pod, DriftObserved) for each in kinds(data.drifts)}
    assert held.reserved() == reserved
    assert not held.state().sandboxes[pod.key].drifts
    assert pod.check().exit_code == 0
    assert pod.delete().exit_code == 0


@pytest.fixture
def tagged(held: Node) -> Iterator[PodSandbox]:
    """A pod whose second interface is a port of a bridge with VLAN filtering."""
    try:
        ip("link", "add", "brv", "type", "bridge", "vlan_filtering", "1")
    except AssertionError:
        pytest.skip("the kernel has no VLAN filtering of bridges")
    held.nad("tagged", {"cniVersion": "1.0.0", "type": "bridge", "bridge": "brv", "vlan": 100})
    pod = held.pod("tagged-pod", "tagged")
    assert pod.add().exit_code == 0
    yield pod
    assert pod.delete().exit_code == 0
    ip("link", "del", "brv")


@pytest.mark.parametrize(
    "change",
    ["bridge vlan del vid 100 dev", "bridge vlan add vid 1 pvid untagged dev", "ip link set nomaster dev"],
)
def test_port_vlan_is_repaired(held: Node, tagged: PodSandbox, change: str) -> None:
    def vlans() -> str:
        shown = subprocess.run(["bridge", "vlan", "show", "dev", port], check=True, capture_output=True, text=True)
        return shown.stdout

    port = port_of(tagged, "net1")
    before = vlans()
    assert "100" in before
    subprocess.run([*change.split(), port], check=True)
    eventually(lambda: recorded(held, tagged, DriftRepaired), "the drift is repaired")
    assert vlans() == before


def test_several_drifts_are_repaired_at_once(held: Node) -> None:
    pod = attached(held)
    before = picture(pod)
    for args in (
        ("link", "del", "net1"),
        ("link", "set", "eth0", "down"),
        ("link", "set", "eth0", "mtu", "1300"),
        ("link", "set", "eth0", "address", "02:00:00:00:00:98"),
        ("addr", "flush", "dev", "eth0"),
        ("addr", "add", "172.31.0.9/24", "dev", "eth0"),
    ):
        ip("-n", pod.namespace, *args)
    ip("link", "set", port_of(pod), "nomaster")
    eventually(lambda: picture(pod) == before, f"all is as before: {before}", 15)
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "the ledger knows")
    assert pod.delete().exit_code == 0


FLUSHED = "flushed"
BOUNCED = "left down"


@pytest.mark.parametrize("ifname", ["eth0", "net1"])
@pytest.mark.parametrize("change", [FLUSHED, BOUNCED])
def test_repaired_ipv4_address_is_announced(held: Node, ifname: str, change: str) -> None:
    pod, neighbour = attached(held), attached(held, "neighbour")
    own = next(iter(pod.links()[ifname].addresses)).partition("/")[0]
    mac = pod.links()[ifname].mac
    wrong = ("lladdr", "02:00:00:00:00:66", "nud", "reachable", "dev", ifname)
    ip("-n", neighbour.namespace, "neigh", "replace", own, *wrong)
    words = ("addr", "flush", "dev", ifname) if change is FLUSHED else ("link", "set", ifname, "down")
    ip("-n", pod.namespace, *words)
    eventually(lambda: recorded(held, pod, DriftRepaired), "the drift is repaired")
    assert lladdr(neighbour, own) == mac
    for each in (pod, neighbour):
        assert each.delete().exit_code == 0


def lladdr(pod: PodSandbox, address: str) -> str:
    """Return the MAC address at which *pod* reaches *address*."""
    (entry,) = json.loads(ip("-n", pod.namespace, "-json", "neigh", "show", address))
    return entry["lladdr"]


def test_deleted_bridge_is_restored_with_its_ports(make_node: MakeNode) -> None:
    node = make_node()
    node.start()
    with reconciler(node):
        pods = [attached(node, f"pod-{number}") for number in range(3)]
        before = [picture(pod)["links"] for pod in pods]
        ip("link", "del", BRIDGE)
        eventually(
            lambda: [picture(pod)["links"] for pod in pods] == before if BRIDGE in links() else False, "as before"
        )
        eventually(lambda: not any(box.drifts for box in node.state().sandboxes.values()), "the ledger knows")
        eventually(lambda: len(picture(pods[0])["ports"]) == len(pods), "all are ports of it")


def test_missing_parent_is_reported_not_repaired(held: Node) -> None:
    pod = attached(held)
    ip("link", "set", PARENT, "down")
    failure = eventually(lambda: recorded(held, pod, DriftRepairFailed), "it is said that it can't be repaired")[
        0
    ].failure
    assert failure.error_class is ErrorClass.NOT_REPAIRABLE
    assert "default/samplepod" in failure.message
    assert f"ip link set {PARENT} up" in failure.message
    ip("link", "set", PARENT, "up")
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "all is well by itself")
    assert pod.delete().exit_code == 0


def test_renamed_parent_is_missing_until_renamed_back(held: Node) -> None:
    pod = attached(held)
    time.sleep(_SETTLED)
    try:
        ip("link", "set", PARENT, "name", "another0")
    except AssertionError:
        pytest.skip("the kernel renames no link that is up")
    observed = eventually(
        lambda: [
            each for data in recorded(held, pod, DriftObserved) for each in data.drifts if is_missing_parent(each)
        ],
        "it is seen that there is no such parent",
    )
    assert (observed[0].ifname, observed[0].expected) == ("net1", PARENT)
    ip("link", "set", "another0", "name", PARENT)
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "all is well again")
    assert pod.delete().exit_code == 0


def is_missing_parent(drift: Drift) -> bool:
    return drift.kind is DriftKind.PARENT_MISSING


def test_mtu_is_repaired_once_the_parent_has_room(held: Node) -> None:
    held.nad("large", held.macvlan(mtu=1500))
    pod = held.pod("large-pod", "large")
    assert pod.add().exit_code == 0
    before = picture(pod)
    ip("link", "set", PARENT, "mtu", "1400")  # the kernel changes the links that rest on it too
    failure = eventually(lambda: recorded(held, pod, DriftRepairFailed), "it is said that it can't be repaired")[
        0
    ].failure
    assert failure.error_class is ErrorClass.NOT_REPAIRABLE
    assert f"its parent {PARENT} is the node's and has MTU 1400: give it 1500 or more" in failure.message
    ip("link", "set", PARENT, "mtu", "1500")
    eventually(lambda: picture(pod) == before, f"all is as before: {before}")
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "the ledger knows")
    assert pod.delete().exit_code == 0


@pytest.fixture
def configured(make_node: MakeNode) -> Callable[[dict[str, Any]], Node]:
    def make(drift: dict[str, Any]) -> Node:
        node = make_node()
        node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "drift": drift}))
        node.start()
        return node

    return make


def test_observed_network_is_not_repaired(configured: Callable[[dict[str, Any]], Node]) -> None:
    node = configured({"networks": {"default": "observe", "default/macvlan-conf": "off"}})
    with reconciler(node):
        pod = attached(node)
        ip("-n", pod.namespace, "link", "set", "net1", "down")
        ip("-n", pod.namespace, "link", "set", "eth0", "mtu", "1400")
        eventually(lambda: recorded(node, pod, DriftObserved), "it is observed")
        ip("-n", pod.namespace, "link", "set", "eth0", "mtu", "1450")
        eventually(lambda: len(recorded(node, pod, DriftObserved)) == 2, "that it is well is observed too")
        assert [kinds(each.drifts) for each in recorded(node, pod, DriftObserved)] == [{DriftKind.MTU_CHANGED}, set()]
        assert not recorded(node, pod, DriftRepaired)


def test_status_follows_the_policies_of_its_networks(
    configured: Callable[[dict[str, Any]], Node],
) -> None:
    node = configured({"policy": "off", "networks": {"default": "repair"}})
    path = node.manifests / "status" / "default" / "samplepod.json"
    with reconciler(node):
        attached(node)
        eventually(path.exists, "the status is published")
        right = path.read_text()
        edit(path, right.replace("net1", "net9"))
        edited = path.read_text()
        time.sleep(2 * POLL_INTERVAL)
        assert path.read_text() == edited != right
        edit(path, edited.replace("eth0", "eth9"))
        eventually(lambda: path.read_text() == right, "it is brought back, as a whole")


def edit(path: Path, text: str) -> None:
    """Replace the file, so that no process reads half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)


def test_network_with_policy_off_is_not_observed(configured: Callable[[dict[str, Any]], Node]) -> None:
    node = configured({"policy": "off"})
    with reconciler(node):
        pod, other = attached(node), node.samplepod("other")
        ip("-n", pod.namespace, "link", "set", "net1", "down")
        assert other.add().exit_code == 0
        assert "DriftObserved" not in node.event_types(pod)
        assert "NodeCompared" not in {stored.event.type for stored in node.events()}


def test_check_finds_drift_that_no_plugin_checks(configured: Callable[[dict[str, Any]], Node]) -> None:
    node = configured({"policy": "off"})
    pod = attached(node)
    assert pod.check().exit_code == 0
    ip("-n", pod.namespace, "link", "set", "eth0", "mtu", "1400")
    answer = pod.check()
    assert (answer.code, "mtu changed" in answer.msg, "default/samplepod" in answer.msg) == (100, True, True), answer


def test_status_reports_exhausted_ranges(node: Node) -> None:
    default = node.bridge(ipam=node.host_local("10.87.0.0/30"))  # one address beside the gateway's, of an old version
    pod = node.pod("only", config=node.conf(default, version="1.1.0"))
    status = {"CNI_PATH": "/usr/lib/cni"}
    assert node.runtime.call("STATUS", status, pod.config).answer().exit_code == 0
    assert pod.add().exit_code == 0
    answer = node.runtime.call("STATUS", status, pod.config).answer()
    assert (answer.code, "all addresses of 10.87.0.1-10.87.0.2 are taken" in answer.msg) == (50, True), answer


def test_drift_without_a_worker_is_repaired_later(node: Node) -> None:
    pod = attached(node)
    eventually(lambda: picture(pod), "it is there")
    before = picture(pod)
    node.kill()
    ip("-n", pod.namespace, "link", "del", "net1")
    ip("-n", pod.namespace, "addr", "flush", "dev", "eth0")
    node.start()
    with reconciler(node):
        eventually(lambda: picture(pod) == before, "all is as before")
        eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")


@pytest.mark.parametrize("native", ["auto", "never"])
def test_first_seen_mtu_survives_a_worker_restart(make_node: MakeNode, native: str) -> None:
    node = make_node(native=native)
    node.start()
    pod = attached(node)
    before = picture(pod)
    node.kill()
    ip("-n", pod.namespace, "link", "set", "net1", "mtu", "1400")
    node.start()
    with reconciler(node):
        eventually(lambda: recorded(node, pod, DriftRepaired), "the drift is repaired")
        assert picture(pod) == before


def test_new_namespace_at_an_old_path_is_not_changed(node: Node) -> None:
    """As with ``/proc/PID/ns/net`` when another pod's process gets the process ID."""
    pod = attached(node)
    node.kill()
    held = os.open(pod.netns, os.O_RDONLY)  # otherwise the new namespace could get the same inode
    ip("netns", "del", pod.namespace)
    ip("netns", "add", pod.namespace)
    try:
        ip("-n", pod.namespace, "link", "add", "eth0", "type", "bridge")
        node.start()
        with reconciler(node):
            eventually(lambda: "node_compared sandboxes=1" in node.log.read_text(), "the node was compared")
            assert "DriftObserved" not in node.event_types(pod)
            assert "the namespace of the ADD is gone" in pod.check().msg
            time.sleep(1)
            assert set(links(pod.namespace)) == {"eth0"}
        ip("-n", pod.namespace, "link", "add", "net1", "type", "bridge")
        assert pod.delete().exit_code == 0
        assert set(links(pod.namespace)) == {"eth0", "net1"}
        assert not node.reserved()
        pod.end()
    finally:
        os.close(held)


def test_sandbox_of_an_earlier_boot_is_not_compared(node: Node) -> None:
    """Path and inode may belong to another namespace: both are counted from the same number in each boot."""
    pod = attached(node)
    node.kill()
    ip("-n", pod.namespace, "link", "set", "net1", "mtu", "1400")
    forge_boot(node)
    node.start()
    with reconciler(node):
        eventually(lambda: "node_compared sandboxes=1" in node.log.read_text(), "the node was compared")
        assert "DriftObserved" not in node.event_types(pod)
        ip("-n", pod.namespace, "link", "set", "net1", "mtu", "1500")
        assert "is gone: recreate the pod" in pod.check().msg
    pod.end()


def test_drift_of_an_earlier_boot_is_void(node: Node) -> None:
    pod = attached(node)
    ip("-n", pod.namespace, "link", "set", "net1", "mtu", "1400")
    eventually(lambda: recorded(node, pod, DriftObserved), "the drift is observed")
    node.kill()
    forge_boot(node)
    node.start()
    with reconciler(node):
        eventually(lambda: "event=drift_given_up" in node.log.read_text(), "the drift is given up")
        (refused,) = recorded(node, pod, DriftRepairFailed)
        assert refused.failure.error_class is ErrorClass.NAMESPACE_INVALID
    assert json.loads(ip("-n", pod.namespace, "-json", "link", "show", "net1"))[0]["mtu"] == 1400
    pod.end()


def test_watching_does_not_keep_a_namespace_alive(node: Node) -> None:
    """The kernel must be able to remove a namespace while the worker watches it."""
    pod = attached(node)
    ports = picture(pod)["ports"]
    eventually(lambda: "DriftObserved" not in node.event_types(pod), "nothing differs")
    pod.end()
    eventually(lambda: not {name for name, _ in ports} & set(links()), "the kernel has taken its links down")
    assert "DriftObserved" not in node.event_types(pod)


REPAIR_EVENTS = ("DriftObserved", "RepairRequested", "DriftRepaired")


@pytest.mark.parametrize("way", ["auto", "never"], ids=["native", "executed"])
@pytest.mark.parametrize("fault", [f"{moment}:{name}:1" for name in REPAIR_EVENTS for moment in ("before", "after")])
def test_next_worker_finishes_an_interrupted_repair(make_node: MakeNode, fault: str, way: str) -> None:
    node = make_node(native=way)
    node.start(fault)
    with reconciler(node):
        pod = attached(node)
        before = picture(pod)
        ip("-n", pod.namespace, "link", "del", "net1")
        ip("-n", pod.namespace, "addr", "flush", "dev", "eth0")
        assert node.ended() == -signal.SIGKILL
        node.start()
        eventually(lambda: picture(pod) == before, f"all is as before: {before}")
        eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")
        eventually(lambda: not node.state().pending, "every order has its outcome")
