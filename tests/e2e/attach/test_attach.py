"""What pods and runtimes get when nothing goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from events.schema import AttachPlanned, GcCompleted, InterfaceAttached
from tests.support.node.kernel import ping
from tests.support.node.node import ADD_EVENTS, DEL_EVENTS, Node, addresses_of
from tests.support.waiting import eventually


@pytest.fixture
def node(shared_node: Node) -> Node:
    return shared_node


def test_pod_has_two_interfaces_and_the_runtime_the_default_result(node: Node) -> None:
    pod = node.samplepod()
    answer = pod.add()
    assert answer.exit_code == 0, answer
    (default, _) = (e.data for e in node.events_of(pod) if isinstance(e.data, InterfaceAttached))
    assert answer.stdout == default.result
    assert addresses_of(answer.json) == pod.links()["eth0"].addresses
    assert set(pod.links()) == {"eth0", "net1"}
    node.assert_attached(pod)
    assert node.event_types(pod) == ADD_EVENTS
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)
    assert node.event_types(pod) == (*ADD_EVENTS, *DEL_EVENTS)


def test_pod_without_annotation_has_only_the_default_network(node: Node) -> None:
    pod = node.pod("plain")
    assert pod.add().exit_code == 0
    assert set(pod.links()) == {"eth0"}
    node.assert_attached(pod)


def test_sandbox_without_a_pod_has_the_default_network(node: Node) -> None:
    pod = node.pod("any")
    answer = pod.add(CNI_ARGS="")
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)


def test_one_network_can_be_attached_twice(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan())
    pod = node.pod("twice", "macvlan-conf,macvlan-conf")
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    links = pod.links()
    assert set(links) == {"eth0", "net1", "net2"}
    assert links["net1"].addresses != links["net2"].addresses


def test_interfaces_are_named_as_requested(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan())
    pod = node.pod("named", "macvlan-conf@left,macvlan-conf,default/macvlan-conf@right")
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    assert set(pod.links()) == {"eth0", "left", "net2", "right"}


def test_addresses_and_mac_are_those_of_the_annotation(node: Node) -> None:
    static = node.macvlan("1.0.0", capabilities={"ips": True, "mac": True}, ipam={"type": "static"})
    node.nad("macvlan-static", static)
    mac = "02:42:0a:01:01:0b"
    pod = node.pod("addressed", [{"name": "macvlan-static", "ips": ["10.1.1.11/24", "fd00::b/64"], "mac": mac}])
    answer = pod.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    assert pod.links()["net1"] == (mac, {"10.1.1.11/24", "fd00::b/64"})


def test_pod_has_forty_interfaces(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan())
    pod = node.pod("many", ",".join(["macvlan-conf"] * 40))
    assert pod.add().exit_code == 0
    node.assert_attached(pod)
    assert set(pod.links()) == {"eth0", *(f"net{number}" for number in range(1, 41))}
    assert len({address for link in pod.links().values() for address in link.addresses}) == 41
    assert pod.check().exit_code == 0
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


@pytest.mark.parametrize("ipam", [{}, None, {"type": ""}], ids=["empty", "null", "without type"])
def test_network_without_ipam_has_no_address(node: Node, ipam: dict[str, str] | None) -> None:
    """As KubeVirt's documents write a network of layer 2."""
    config = {"name": "l2", "cniVersion": "0.3.1", "type": "bridge", "bridge": "plumb0", "vlan": 0, "ipam": ipam}
    node.nad("l2", {**config, "preserveDefaultVlan": False, "macspoofchk": False})
    pod = node.pod("vm", [{"name": "l2", "namespace": "default", "interface": "pod16477688c0e"}])
    answer = pod.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    assert pod.links()["pod16477688c0e"].addresses == set()


@pytest.mark.parametrize("more", [{}, {"only the binary accepts this": True}], ids=["native", "executed"])
def test_host_local_gives_several_addresses_of_the_annotation(node: Node, more: dict[str, bool]) -> None:
    pool = {**node.host_local("10.1.2.0/24"), "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:2::/64"}]]}
    node.nad("dual-stack", node.macvlan("1.0.0", capabilities={"ips": True}, ipam={**pool, **more}))
    pod = node.pod("dual", [{"name": "dual-stack", "ips": ["10.1.2.8/24", "fd00:2::8/64"]}])
    answer = pod.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    assert pod.links()["net1"].addresses == {"10.1.2.8/24", "fd00:2::8/64"}
    assert pod.check().exit_code == 0


def test_pods_reach_each_other_over_the_additional_network(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan())
    left, right = node.pod("left", "macvlan-conf"), node.pod("right", "macvlan-conf")
    assert left.add().exit_code == 0
    assert right.add().exit_code == 0
    (address,) = right.links()["net1"].addresses
    assert ping(left.namespace, address.split("/")[0])


def test_chain_runs_in_order_and_back(node: Node) -> None:
    chain = {
        "cniVersion": "1.0.0",
        "name": "default",
        "plugins": [
            {key: value for key, value in node.bridge().items() if key not in ("cniVersion", "name")},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.proxy_arp": "1"}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False},
        ],
    }
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    pod = node.pod("chained", config=node.conf(chain, runtimeConfig={"portMappings": [mapping]}))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    node.assert_attached(pod)
    sysctl = ["ip", "netns", "exec", pod.namespace, "cat", "/proc/sys/net/ipv4/conf/eth0/proxy_arp"]
    assert subprocess.check_output(sysctl) == b"1\n"
    assert "--dport 8080" in rules()
    assert pod.delete().exit_code == 0
    assert "--dport 8080" not in rules()
    runs = [run.type for event in node.events_of(pod) for run in getattr(event.data, "runs", ())]
    assert runs == ["bridge", "tuning", "portmap", "portmap", "tuning", "bridge"]


def rules() -> str:
    return subprocess.check_output(["iptables-save", "-t", "nat"], text=True)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_every_version_of_the_specification_is_supported(node: Node, version: str) -> None:
    node.nad("macvlan-conf", node.macvlan(version))
    pod = node.pod("versioned", "macvlan-conf", node.conf(node.bridge(version), version=version))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert answer.json["cniVersion"] == version
    assert ("ip4" in answer.json) is (version in {"0.1.0", "0.2.0"})
    node.assert_attached(pod)
    assert pod.delete().exit_code == 0


@pytest.mark.parametrize("delegate", ["0.2.0", "0.3.1", "1.0.0"])
def test_result_is_in_the_version_of_the_runtime(node: Node, delegate: str) -> None:
    pod = node.pod("translated", config=node.conf(node.bridge(delegate), version="1.1.0"))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert answer.json["cniVersion"] == "1.1.0"
    assert addresses_of(answer.json) == pod.links()["eth0"].addresses
    assert pod.delete().exit_code == 0


def test_check_accepts_the_interface_of_the_add(node: Node) -> None:
    node.nad("macvlan-conf", node.macvlan("1.0.0"))
    pod = node.pod("checked", "macvlan-conf")
    assert pod.add().exit_code == 0
    before = node.events()
    assert pod.check() == (0, "", "")
    assert node.events() == before  # a question is no event


def test_version_needs_no_worker(node: Node) -> None:
    node.kill()
    answer = node.runtime.call("VERSION", {}, '{"cniVersion":"1.0.0"}').answer()
    assert answer.exit_code == 0
    assert answer.json["supportedVersions"] == ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    node.start()


def test_status_is_that_of_the_default_plugins(node: Node) -> None:
    node.plugin("moody", 'echo \'{"cniVersion":"1.1.0","code":51,"msg":"the uplink is down"}\'; exit 1')
    assert status(node, node.conf(version="1.1.0")) == (0, "", "")
    moody = {"cniVersion": "1.1.0", "name": "default", "type": "moody"}
    answer = node.runtime.call("STATUS", {"CNI_PATH": ""}, node.conf(moody, version="1.1.0")).answer()
    assert answer.code == 51
    assert answer.msg == "moody is not ready to serve default: the uplink is down"
    too_old = node.runtime.call("STATUS", {"CNI_PATH": ""}, node.conf(version="1.0.0")).answer()
    assert too_old.code == 1


def status(node: Node, conf: object) -> tuple[int, str, str]:
    assert isinstance(conf, dict)
    return node.runtime.call("STATUS", {"CNI_PATH": "/usr/lib/cni"}, conf).answer()


def test_status_reports_a_stopped_ledger(node: Node) -> None:
    node.server.stop()

    def is_down() -> bool:
        answer = node.runtime.call("STATUS", {"CNI_PATH": ""}, node.conf(version="1.1.0")).answer()
        return answer.code == 50 and "is nats-server running?" in answer.msg

    eventually(is_down, "STATUS reports that the ledger is down")
    node.server.start()
    eventually(lambda: status(node, node.conf(version="1.1.0"))[0] == 0, "STATUS reports that the ledger is up")


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_detaches_sandboxes_unknown_to_the_runtime(node: Node, key: str) -> None:
    conf = node.conf(version="1.1.0")
    node.nad("macvlan-conf", node.macvlan())
    stale, live = node.pod("stale", "macvlan-conf", conf), node.pod("live", "macvlan-conf", conf)
    assert stale.add().exit_code == 0
    assert live.add().exit_code == 0
    valid = [{"containerID": live.container_id, "ifname": "eth0"}]
    answer = node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, {**conf, key: valid}).answer()
    assert answer == (0, "", "")
    node.assert_detached(stale)
    node.assert_attached(live)
    done = [s.event.data for s in node.events() if isinstance(s.event.data, GcCompleted)][-1]
    assert done.detached == (tuple(stale.key),)


def test_gc_with_a_null_list_detaches_every_sandbox(node: Node) -> None:
    """CRI-O sends null for a network without pods."""
    conf = node.conf(version="1.1.0")
    stale = node.pod("stale", config=conf)
    assert stale.add().exit_code == 0
    request = {**conf, "cni.dev/valid-attachments": None, "cni.dev/attachments": None}
    assert node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request).answer() == (0, "", "")
    node.assert_detached(stale)


@pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
def test_gc_removes_masquerading_without_a_ledger_entry(node: Node) -> None:
    """A pod of before Plumbline that got no DEL."""
    conf = node.conf(node.bridge("1.1.0", ipMasq=True), version="1.1.0")
    before, live = node.pod("before"), node.pod("live", config=conf)
    stdin = json.dumps(node.bridge("1.0.0", ipMasq=True))
    plugin = ["/usr/lib/cni/bridge"]
    env = {**before.env, "CNI_COMMAND": "ADD", "PATH": os.environ["PATH"]}
    subprocess.run(plugin, env=env, input=stdin, text=True, check=True, capture_output=True)
    assert live.add().exit_code == 0
    before.end()
    assert before.container_id in nat()
    valid = [{"containerID": live.container_id, "ifname": "eth0"}]
    request = {**conf, "cni.dev/valid-attachments": valid}
    assert node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request).answer() == (0, "", "")
    assert before.container_id not in nat()
    assert live.container_id in nat()
    assert live.delete().exit_code == 0
    assert live.container_id not in nat()


def nat() -> str:
    """Return the node's rules for addresses."""
    return subprocess.run(["iptables", "-t", "nat", "-S"], check=True, capture_output=True, text=True).stdout


def test_gc_without_a_list_frees_nothing(node: Node) -> None:
    pod = node.pod("live", config=node.conf(version="1.1.0"))
    assert pod.add().exit_code == 0
    answer = node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, node.conf(version="1.1.0")).answer()
    assert answer == (0, "", "")
    node.assert_attached(pod)


def test_gc_of_another_network_detaches_nothing(node: Node) -> None:
    pod = node.pod("live", config=node.conf(version="1.1.0"))
    assert pod.add().exit_code == 0
    other = {**node.conf(version="1.1.0"), "name": "other", "cni.dev/valid-attachments": []}
    assert node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, other).answer() == (0, "", "")
    node.assert_attached(pod)


def test_gc_gives_secondary_plugins_their_own_interfaces(node: Node) -> None:
    calls = node.bin / "calls"
    node.plugin(
        "collector",
        f'[ $CNI_COMMAND = GC ] && cat >> {calls} || echo \'{{"cniVersion":"1.1.0","ips":[]}}\'',
    )
    node.nad("collected", {"cniVersion": "1.1.0", "type": "collector"})
    conf = node.conf(version="1.1.0")
    pod = node.pod("live", "collected", conf)
    assert pod.add().exit_code == 0
    valid = [{"containerID": pod.container_id, "ifname": "eth0"}]
    request = {**conf, "cni.dev/valid-attachments": valid}
    assert node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request).answer() == (0, "", "")
    assert json.loads(calls.read_text())["cni.dev/valid-attachments"] == [
        {"containerID": pod.container_id, "ifname": "net1"}
    ]


def test_container_that_reuses_its_id_is_attached_again(node: Node) -> None:
    pod = node.samplepod()
    for _ in range(2):
        assert pod.add().exit_code == 0
        node.assert_attached(pod)
        assert pod.delete().exit_code == 0
        node.assert_detached(pod)


def test_one_container_can_have_several_interfaces_from_the_runtime(node: Node) -> None:
    pod = node.pod("multi")
    assert pod.add().exit_code == 0
    assert pod.add(CNI_IFNAME="eth1").exit_code == 0
    assert set(pod.links()) == {"eth0", "eth1"}
    assert pod.delete().exit_code == 0
    assert set(pod.links()) == {"eth1"}
    assert pod.delete(CNI_IFNAME="eth1").exit_code == 0


def test_plan_records_the_plugin_folders(node: Node) -> None:
    pod = node.pod("planned")
    assert pod.add().exit_code == 0
    (planned,) = (e.data for e in node.events_of(pod) if isinstance(e.data, AttachPlanned))
    assert planned.path == f"{node.bin}:/usr/lib/cni"
