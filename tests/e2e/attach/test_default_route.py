"""``default-route`` through the entry point, with the real plugins: the routes that a pod has, and has not."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import pytest

from events.schema import AttachCompleted, AttachFailed, AttachWarning, ErrorClass, InterfaceAttached, WarningKind
from reconciler.status.text import pod_status
from tests.support.node.kernel import ip
from tests.support.node.node import ADD_EVENTS, MakeNode, Node
from tests.support.node.runtime import PodSandbox

ETH0_V4 = "via 10.87.0.1 dev eth0"
ETH0_V6 = "via fd87::1 dev eth0"
NET1_V4 = "via 192.168.0.1 dev net1"
NET1_V6 = "via fd68::1 dev net1"


def dual_stack(node: Node, v4: str, v6: str, *, routes: bool = False) -> dict[str, Any]:
    """Return the IPAM section for one address of each family; *routes*: with a default route of each."""
    to = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] if routes else []
    return {
        "type": "host-local",
        "dataDir": str(node.addresses),
        "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
        "routes": to,
    }


def pod_of(node: Node, networks: Any, *, version: str = "1.0.0", name: str = "routed") -> PodSandbox:
    """Return a pod on a default network that brings default routes of both families.

    Network ``quiet`` brings none, ``loud`` brings both, ``loud-v4`` one, ``point`` is made by ptp and brings both.
    """
    default = node.bridge(
        version, isDefaultGateway=True, ipam=dual_stack(node, "10.87.0.0/16", "fd87::/64"), forceAddress=False
    )
    quiet = dual_stack(node, "192.168.0.0/16", "fd68::/64")
    loud = dual_stack(node, "192.168.0.0/16", "fd68::/64", routes=True)
    node.nad("quiet", node.macvlan(version, ipam=quiet))
    node.nad("loud", node.macvlan(version, ipam=loud))
    node.nad("loud-v4", node.macvlan(version, ipam={**loud, "routes": loud["routes"][:1]}))
    node.nad(
        "point",
        {"cniVersion": version, "type": "ptp", "ipam": dual_stack(node, "10.9.0.0/24", "fd09::/64", routes=True)},
    )
    pod = node.pod(name, networks, node.conf(default, version=version))
    for scope in ("all", "default"):  # duplicate address detection takes plugins two seconds
        ip("netns", "exec", pod.namespace, "sysctl", "-qw", f"net.ipv6.conf.{scope}.accept_dad=0")
    return pod


def defaults(pod: PodSandbox, family: int) -> list[str]:
    """Return the default routes in the pod, as ``ip route`` has them."""
    shown: list[dict[str, Any]] = json.loads(ip("-n", pod.namespace, f"-{family}", "-json", "route", "show", "default"))
    return sorted(f"via {each['gateway']} dev {each['dev']}" for each in shown)


def warnings(node: Node, pod: PodSandbox) -> tuple[AttachWarning, ...]:
    (outcome,) = (event.data for event in node.events_of(pod) if isinstance(event.data, AttachCompleted))
    return outcome.warnings


def claim(network: str, *gateways: str) -> dict[str, Any]:
    return {"name": network, "default-route": list(gateways)}


@pytest.fixture
def node(shared_node: Node) -> Node:
    return shared_node


def test_without_a_claim_the_plugins_routes_stay(node: Node) -> None:
    pod = pod_of(node, "quiet")
    assert pod.add().exit_code == 0
    assert (defaults(pod, 4), defaults(pod, 6)) == ([ETH0_V4], [ETH0_V6])


def test_claim_moves_one_family_and_leaves_the_other(node: Node) -> None:
    v4, v6 = pod_of(node, [claim("quiet", "192.168.0.1")]), pod_of(node, [claim("quiet", "fd68::1")], name="six")
    assert v4.add().exit_code == 0
    assert (defaults(v4, 4), defaults(v4, 6)) == ([NET1_V4], [ETH0_V6])
    assert v6.add().exit_code == 0
    assert (defaults(v6, 4), defaults(v6, 6)) == ([ETH0_V4], [NET1_V6])


@pytest.mark.parametrize(
    ("network", "gateways"),
    [("quiet", ("192.168.0.1", "fd68::1")), ("loud", ("192.168.0.9", "fe80::1")), ("point", ("10.9.0.1", "fd09::1"))],
)
def test_claim_to_both_families_moves_both(node: Node, network: str, gateways: tuple[str, str]) -> None:
    pod = pod_of(node, [{"name": "loud"}, claim(network, *gateways), {"name": "loud-v4"}])
    answer = pod.add()
    assert answer.exit_code == 0, answer
    v4, v6 = gateways
    assert (defaults(pod, 4), defaults(pod, 6)) == ([f"via {v4} dev net2"], [f"via {v6} dev net2"])
    assert pod.check().exit_code == 0
    node.assert_attached(pod)


def test_each_family_may_have_its_own_network(node: Node) -> None:
    pod = pod_of(node, [claim("quiet", "192.168.0.1"), claim("quiet", "fd68::1")])
    assert pod.add().exit_code == 0
    assert (defaults(pod, 4), defaults(pod, 6)) == ([NET1_V4], [NET1_V6.replace("net1", "net2")])
    assert pod.check().exit_code == 0


def test_empty_list_keeps_the_routes_of_the_network(node: Node) -> None:
    pod = pod_of(node, [claim("loud-v4")])
    assert pod.add().exit_code == 0
    assert (defaults(pod, 4), defaults(pod, 6)) == ([NET1_V4], [ETH0_V6])
    assert pod.check().exit_code == 0


def test_empty_list_on_a_network_without_routes_moves_nothing_and_warns(node: Node) -> None:
    pod = pod_of(node, [claim("quiet")])
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert (defaults(pod, 4), defaults(pod, 6)) == ([ETH0_V4], [ETH0_V6])
    (warning,) = warnings(node, pod)
    assert (warning.kind, warning.network, warning.ifname) == (
        WarningKind.DEFAULT_ROUTE_ABSENT,
        "default/quiet",
        "net1",
    )
    assert warning.message == (
        "pod default/routed: default-route of network default/quiet (net1) names no gateway, and the network's plugins "
        "created no default route, so the pod keeps its routes; name a gateway, or remove the key"
    )
    assert pod.check().exit_code == 0
    assert pod.delete().exit_code == 0
    node.assert_detached(pod)


@pytest.mark.parametrize("executed", [False, True])
def test_unrequested_default_route_is_kept_and_warned_about(make_node: MakeNode, executed: bool) -> None:
    node = make_node()
    node.start(executed=executed)
    pod = pod_of(node, "loud-v4")
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert defaults(pod, 4) == [ETH0_V4, NET1_V4]  # as the reference leaves them
    assert ip("-n", pod.namespace, "route", "get", "192.0.2.1").split()[:5][-1] == "net1"
    (warning,) = warnings(node, pod)
    assert (warning.kind, warning.network, warning.ifname) == (
        WarningKind.DEFAULT_ROUTE_TAKEN,
        "default/loud-v4",
        "net1",
    )
    assert warning.message == (
        "pod default/routed: network default/loud-v4 (net1) brought a default route of IPv4 that no default-route "
        f"requests, and the pod uses the first of: {NET1_V4}, {ETH0_V4}; remove it from the network's configuration, "
        "or set default-route in the pod's annotation"
    )
    (line,) = (line for line in node.log.read_text().splitlines() if "attached_with_warning" in line)
    assert "default/routed" in line
    status = pod_status([node.state().sandboxes[pod.key]])
    assert status is not None
    assert [element.get("default", False) for element in json.loads(status.text)] == [True, False]
    assert pod.check().exit_code == 0
    node.assert_attached(pod)


def test_default_route_in_a_table_of_its_own_is_no_warning(node: Node) -> None:
    pod = pod_of(node, "by-source")
    loud = node.macvlan("1.0.0", ipam=dual_stack(node, "192.168.0.0/16", "fd68::/64", routes=True))
    del loud["cniVersion"]
    node.nad("by-source", {"cniVersion": "1.0.0", "plugins": [loud, {"type": "sbr"}]})
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert (defaults(pod, 4), defaults(pod, 6)) == ([ETH0_V4], [ETH0_V6])
    assert warnings(node, pod) == ()


def test_unrequested_default_route_can_be_refused(make_node: MakeNode) -> None:
    node = make_node(unrequestedDefaultRoute="refuse")
    node.start()
    asked = pod_of(node, [claim("loud-v4")])
    assert asked.add().exit_code == 0
    pod = pod_of(node, "quiet,loud", name="taking")
    answer = pod.add()
    assert answer.code == 104
    assert answer.msg.startswith(
        "pod default/taking: network default/loud (net2) brought a default route of IPv4 that no default-route requests"
    )
    assert "worker.unrequestedDefaultRoute refuses it: remove it from the network's configuration, or " in answer.msg
    assert [failure.error_class for failure in node.failures(pod)] == [ErrorClass.ROUTE_FAILED]
    node.assert_detached(pod)


def test_default_network_may_claim_the_default_route(node: Node) -> None:
    pod = pod_of(node, "quiet")
    manifest = node.manifests / "pod-routed.json"
    content = json.loads(manifest.read_text())
    content["metadata"]["annotations"]["v1.multus-cni.io/default-network"] = json.dumps(
        [{**claim("loud", "192.168.0.1"), "namespace": "default"}]
    )
    manifest.write_text(json.dumps(content))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert defaults(pod, 4) == ["via 192.168.0.1 dev eth0"]
    assert defaults(pod, 6) == ["via fd68::1 dev eth0"]


def test_runtime_gets_the_default_result_unchanged(node: Node) -> None:
    pod = pod_of(node, [claim("quiet", "192.168.0.1")])
    answer = pod.add()
    (default, _) = (event.data for event in node.events_of(pod) if isinstance(event.data, InterfaceAttached))
    assert answer.stdout == default.result
    assert {"dst": "0.0.0.0/0", "gw": "10.87.0.1"} in answer.json["routes"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_every_version_of_the_specification_can_be_routed(node: Node, version: str) -> None:
    pod = pod_of(node, [claim("loud", "192.168.0.1")], version=version)
    answer = pod.add()
    assert answer.exit_code == 0, answer
    assert defaults(pod, 4) == [NET1_V4]
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


@pytest.mark.parametrize("family", [4, 6])
def test_check_passes_until_the_route_is_deleted(node: Node, family: int) -> None:
    pod = pod_of(node, [claim("quiet", "192.168.0.1", "fd68::1")])
    assert pod.add().exit_code == 0
    assert pod.check() == (0, "", "")
    ip("-n", pod.namespace, f"-{family}", "route", "del", "default")
    answer = pod.check()
    assert answer.code == 104
    assert f"IPv{family} needs exactly one" in answer.msg
    assert "pod default/routed" in answer.msg
    assert "default/quiet" in answer.msg
    assert pod.delete() == (0, "", "")


def test_unreachable_gateway_leaves_nothing(node: Node) -> None:
    pod = pod_of(node, [claim("quiet", "203.0.113.1")])
    answer = pod.add()
    assert answer.code == 104
    for words in ("pod default/routed", "default/quiet", "IPv4 via 203.0.113.1", "net1 has 192.168.", "name a gateway"):
        assert words in answer.msg
    node.assert_detached(pod)
    (failure,) = node.failures(pod)
    assert (failure.error_class, failure.network, failure.ifname) == (ErrorClass.ROUTE_FAILED, "default/quiet", "net1")
    assert node.event_types(pod) == (*ADD_EVENTS[:-1], "InterfaceDetached", "InterfaceDetached", "AttachFailed")
    (outcome,) = (event.data for event in node.events_of(pod) if isinstance(event.data, AttachFailed))
    assert outcome.left == ()
    assert pod.delete() == (0, "", "")


def test_contradictory_claims_are_refused_first(node: Node) -> None:
    pod = pod_of(node, [claim("quiet", "192.168.0.1"), claim("loud")])
    answer = pod.add()
    assert answer.code == 7
    assert "default-route is on 2 networks" in answer.msg
    assert "AttachPlanned" not in node.event_types(pod)


def test_plugins_get_their_final_routes(node: Node) -> None:
    """CHECK and DEL of a plugin that made a default route must not look for it where it was."""
    script = (
        'import json, os, sys; conf = json.load(sys.stdin); command = os.environ["CNI_COMMAND"]; '
        'path = sys.argv[1] + "." + os.environ["CNI_IFNAME"] + "." + command; '
        'open(path, "w").write(json.dumps(conf["prevResult"])); '
        'command == "ADD" and print(json.dumps(conf["prevResult"]))'
    )
    node.plugin("witness", f"exec {sys.executable} -c '{script}' \"$0\"")
    pod = pod_of(node, [claim("seen", "192.168.0.1")])
    single = node.macvlan("1.0.0", ipam=dual_stack(node, "192.168.0.0/16", "fd68::/64", routes=True))
    node.nad("seen", chained(single))
    pod.config = node.conf(chained(json.loads(json.dumps(pod.config))["delegates"][0]))
    assert pod.add().exit_code == 0
    assert pod.check() == (0, "", "")
    assert pod.delete() == (0, "", "")

    def routes_passed(ifname: str, command: str) -> list[dict[str, str]]:
        return json.loads((node.bin / f"witness.{ifname}.{command}").read_text()).get("routes", [])

    assert routes_passed("eth0", "ADD") == [{"dst": "0.0.0.0/0", "gw": "10.87.0.1"}, {"dst": "::/0", "gw": "fd87::1"}]
    assert routes_passed("net1", "ADD") == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    for command in ("CHECK", "DEL"):
        assert routes_passed("eth0", command) == [{"dst": "::/0", "gw": "fd87::1"}]
        assert routes_passed("net1", command) == [{"dst": "::/0"}, {"dst": "0.0.0.0/0", "gw": "192.168.0.1"}]


def chained(config: dict[str, Any]) -> dict[str, Any]:
    """Return *config* as a chain whose last plugin is ``witness``."""
    plugin = {key: value for key, value in config.items() if key not in {"cniVersion", "name"}}
    common = {key: value for key, value in config.items() if key in {"cniVersion", "name"}}
    return {"name": "seen", **common, "plugins": [plugin, {"type": "witness"}]}


@pytest.mark.parametrize(
    ("native", "fault"),
    [
        ("never", "before:InterfaceAttached:2"),
        ("never", "after:InterfaceAttached:2"),
        ("auto", "before:AttachCompleted:1"),
    ],
)
@pytest.mark.parametrize("gateways", [(), ("192.168.0.1", "fd68::1")])
def test_claim_survives_the_worker(make_node: MakeNode, native: str, fault: str, gateways: tuple[str, ...]) -> None:
    node = make_node(native=native)
    node.start(fault)
    pod = pod_of(node, [claim("loud", *gateways)])
    call = pod.call("ADD")
    assert node.ended() == -signal.SIGKILL
    node.start()
    answer = call.answer()
    assert answer.exit_code == 0, answer
    assert (defaults(pod, 4), defaults(pod, 6)) == ([NET1_V4], [NET1_V6])
    assert pod.check() == (0, "", "")
    assert node.event_types(pod).count("InterfaceAttached") == 2
    assert pod.delete() == (0, "", "")
    node.assert_detached(pod)


def test_worker_killed_in_a_rollback_leaves_nothing(make_node: MakeNode) -> None:
    node = make_node()
    node.start("before:AttachFailed:1")
    pod = pod_of(node, [claim("quiet", "203.0.113.1")])
    call = pod.call("ADD")
    assert node.ended() == -signal.SIGKILL
    node.start()
    assert call.answer().exit_code == 1
    node.assert_detached(pod)
