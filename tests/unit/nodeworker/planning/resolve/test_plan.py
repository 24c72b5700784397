"""Plans from real requests, node configurations, pods and networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import AttachPlanned, AttachRequested, ErrorClass, Failure, IfName, RequestId
from nodeworker.errors import RequestFailedError
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.planning.resolve.plan import make_plan
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.plugins.spec.names import ifname_problem

GOLDEN = Path(__file__).parent / "golden"
CONTAINER = "5f1c9e0d7b3a4c2e8f6d1a0b9c8e7f6a5d4c3b2a1f0e9d8c7b6a5f4e3d2c1b0a"
UID = "0b5a7c1e-2f3d-4a6b-8c9d-0e1f2a3b4c5d"
ARGS = ";".join(
    (
        "IgnoreUnknown=1",
        "K8S_POD_NAMESPACE=default",
        "K8S_POD_NAME=samplepod",
        f"K8S_POD_INFRA_CONTAINER_ID={CONTAINER}",
        f"K8S_POD_UID={UID}",
    )
)
FLANNEL: dict[str, Any] = {
    "cniVersion": "0.3.1",
    "name": "cbr0",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
MACVLAN = """{
    "cniVersion": "0.3.0",
    "type": "macvlan",
    "master": "eth0",
    "mode": "bridge",
    "ipam": {
        "type": "host-local",
        "subnet": "192.168.1.0/24",
        "rangeStart": "192.168.1.200",
        "rangeEnd": "192.168.1.216",
        "routes": [{"dst": "0.0.0.0/0"}],
        "gateway": "192.168.1.1"
    }
}"""


def planned(
    annotations: Mapping[str, str] | str = "",
    nads: tuple[Nad, ...] = (),
    *,
    stdin: Mapping[str, Any] | None = None,
    args: str = ARGS,
    ifname: str = "eth0",
    uid: str = UID,
    static: bool = False,
    path: str = "/opt/cni/bin",
    config: str = "",
) -> AttachPlanned:
    """Plan an ADD of pod default/samplepod; the default network is flannel unless *stdin* or *config* has another."""
    annotations = {NETWORKS: annotations} if isinstance(annotations, str) else annotations
    given = stdin or {"delegates": [FLANNEL]}
    config = config or json.dumps({"cniVersion": "1.0.0", "name": "plumbline", "type": "plumbline", **given})
    asked = pod_of(args)
    request = AttachRequested(
        request=RequestId("r1"),
        ifname=IfName(ifname),
        netns="/var/run/netns/cni-1",
        config=config,
        args=args,
        path=path,
        pod=asked,
    )
    pod = PodObject(asked.namespace, asked.name, uid, dict(annotations), static) if asked.name else None
    networks = {NetworkRef(nad.namespace, nad.name, on_disk=nad.namespace in {"", "kube-system"}): nad for nad in nads}
    networks |= {NetworkRef("kube-system", nad.name, on_disk=True): nad for nad in nads if not nad.namespace}
    networks |= {NetworkRef(nad.namespace, nad.name): nad for nad in nads if nad.namespace}
    return make_plan(request, CONTAINER, parse_netconf(config, NodeDefaults()), pod, networks)


def refused(*args: Any, **kwargs: Any) -> Failure:
    with pytest.raises(RequestFailedError) as caught:
        planned(*args, **kwargs)
    return caught.value.failure


def nad(
    name: str, config: Mapping[str, Any] | str | None = None, *, namespace: str = "default", **annotations: str
) -> Nad:
    text = (
        config
        if isinstance(config, str)
        else json.dumps({"cniVersion": "1.0.0", "type": "macvlan"} | dict(config or {}))
    )
    return Nad(namespace, name, text, annotations)


def names(plan: AttachPlanned) -> list[tuple[str, str]]:
    return [(attachment.network, attachment.ifname) for attachment in plan.attachments]


def plugin(plan: AttachPlanned, attachment: int, index: int = 0) -> dict[str, Any]:
    return json.loads(plan.attachments[attachment].plugins[index])


@pytest.mark.parametrize(("selected", "size"), [(8, 1_000_000), (30_000, 100)])
def test_too_large_plan_is_refused(selected: int, size: int) -> None:
    large = nad("large", {"remark": "x" * size})
    assert len(planned("large", (large,)).attachments) == 2
    failure = refused(",".join(["large"] * selected), (large,))
    assert failure.error_class is ErrorClass.INVALID_CONFIG
    assert failure.message.startswith(f"the plan of its {selected + 1} attachments has ")


def test_samplepod_with_macvlan_twice_is_planned_as_recorded() -> None:
    result = planned("macvlan-conf,macvlan-conf", (Nad("default", "macvlan-conf", MACVLAN),))
    assert msgspec.json.format(msgspec.json.encode(result)).decode() + "\n" == (GOLDEN / "samplepod.json").read_text()


def test_delegates_are_attached_in_order_and_named_by_position() -> None:
    result = planned(stdin={"delegates": [FLANNEL, {"name": "storage", "type": "macvlan"}]})
    assert names(result) == [("cbr0", "eth0"), ("storage", "net1")]
    assert [a.default for a in result.attachments] == [True, False]


def test_positions_are_counted_not_unnamed_networks() -> None:
    result = planned("a@foo,b,other/a", (nad("a"), nad("b"), nad("a", namespace="other")))
    assert names(result)[1:] == [("default/a", "foo"), ("default/b", "net2"), ("other/a", "net3")]


def test_default_networks_come_before_those_of_the_annotation() -> None:
    stdin = {"clusterNetwork": "podnet", "defaultNetworks": ["sidecar", "/etc/cni/extra.conf"]}
    found = (
        nad("podnet", {"name": "pods"}, namespace=""),
        nad("sidecar", namespace="kube-system"),
        nad("/etc/cni/extra.conf", {"name": "extra"}, namespace=""),
        nad("a"),
    )
    assert names(planned("a", found, stdin=stdin)) == [
        ("pods", "eth0"),
        ("kube-system/sidecar", "net1"),
        ("extra", "net2"),
        ("default/a", "net3"),
    ]


def test_pod_in_a_system_namespace_gets_no_default_networks() -> None:
    stdin = {"clusterNetwork": "podnet", "defaultNetworks": ["sidecar"]}
    found = (nad("podnet", namespace="kube-system"), nad("sidecar", namespace="kube-system"))
    system = ARGS.replace("NAMESPACE=default", "NAMESPACE=kube-system")
    assert names(planned("", found, stdin=stdin, args=system)) == [("kube-system/podnet", "eth0")]
    named_like_one = ARGS.replace("NAME=samplepod", "NAME=kube-system")
    assert len(planned("", found, stdin=stdin, args=named_like_one).attachments) == 2


def test_sandbox_without_pod_gets_the_networks_of_the_node() -> None:
    stdin = {"clusterNetwork": "podnet", "defaultNetworks": ["sidecar"]}
    found = (nad("podnet", {"name": "podnet"}, namespace=""), nad("sidecar", {"name": "sidecar"}, namespace=""))
    assert names(planned("", found, stdin=stdin, args="")) == [("podnet", "eth0"), ("sidecar", "net1")]


def test_default_network_annotation_replaces_the_default_and_may_rename_it() -> None:
    found = (nad("fast", namespace="kube-system"), nad("a"))
    result = planned({DEFAULT_NETWORK: "fast@primary", NETWORKS: "a"}, found)
    assert names(result) == [("kube-system/fast", "primary"), ("default/a", "net1")]
    assert result.attachments[0].default
    assert result.ifname == "eth0"


def test_auxiliary_chain_is_the_last_and_takes_the_next_position() -> None:
    stdin = {"clusterNetwork": "/etc/cni/net.d/10.conf", "auxiliaryCNIChainName": "vendor"}
    chain = Nad("", "vendor", '{"cniVersion": "1.0.0", "name": "vendor", "plugins": [{"type": "passthru"}]}')
    found = (nad("a"), Nad("", "/etc/cni/net.d/10.conf", json.dumps(FLANNEL)))
    asked = '[{"name": "a", "interface": "x0"}]'
    assert names(planned(asked, found, stdin=stdin)) == [("cbr0", "eth0"), ("default/a", "x0")]
    assert names(planned(asked, (*found, chain), stdin=stdin)) == [
        ("cbr0", "eth0"),
        ("default/a", "x0"),
        ("vendor", "net2"),
    ]
    assert names(planned("", (*found, chain), stdin=stdin, args=""))[-1] == ("vendor", "net1")


def test_blank_default_network_annotation_replaces_nothing() -> None:
    assert names(planned({DEFAULT_NETWORK: " "})) == [("cbr0", "eth0")]


def test_nad_without_cni_name_gets_its_own() -> None:
    result = planned("a,b", (nad("a"), nad("b", {"name": "else"})))
    assert [a.cni_name for a in result.attachments] == ["cbr0", "a", "else"]
    assert plugin(result, 1)["name"] == "a"


@pytest.mark.parametrize(
    ("networks", "ifname", "pair"),
    [
        ("a@net2,a", "eth0", ("1 (default/a)", "2 (default/a)")),
        ("a,a@net1", "eth0", ("1 (default/a)", "2 (default/a)")),
        ("a@eth0", "eth0", ("0 (cbr0)", "1 (default/a)")),
        ("a", "net1", ("0 (cbr0)", "1 (default/a)")),
    ],
)
def test_two_attachments_of_one_name_are_refused(networks: str, ifname: str, pair: tuple[str, str]) -> None:
    failure = refused(networks, (nad("a"),), ifname=ifname)
    assert failure.error_class is ErrorClass.INVALID_ANNOTATION
    assert all(each in failure.message for each in pair)


def test_name_collision_of_node_networks_is_a_config_error() -> None:
    failure = refused(stdin={"delegates": [FLANNEL, {"name": "b", "type": "bridge"}]}, ifname="net1")
    assert failure.error_class is ErrorClass.INVALID_CONFIG


@pytest.mark.parametrize("ifname", ["", "a b", "a/b", "a:b", "..", "sixteen_bytes_xx"])
def test_impossible_name_of_the_runtime_is_refused_with_code_4(ifname: str) -> None:
    failure = refused(ifname=ifname)
    assert (failure.error_class, failure.code) == (ErrorClass.INVALID_REQUEST, 4)


@pytest.mark.parametrize("args", ["K8S_POD_NAME", "K8S_POD_NAMESPACE=shop; K8S_POD_NAME=web", "K8S_POD_UID=u1"])
def test_malformed_cni_args_are_refused_with_code_4(args: str) -> None:
    failure = refused(args=args)
    assert (failure.error_class, failure.code) == (ErrorClass.INVALID_REQUEST, 4)


@pytest.mark.parametrize(
    ("asked", "found", "static"),
    [(UID, UID, False), ("", UID, False), (UID, "", False), ("hash-of-the-file", UID, True)],
)
def test_pod_is_the_same_by_uid(asked: str, found: str, static: bool) -> None:
    result = planned(args=ARGS.replace(UID, asked), uid=found, static=static)
    assert result.pod.uid == (found or asked)  # its status is published under the cluster's UID
    assert result.attachments[0].cni_args.endswith(f";K8S_POD_UID={asked}")


@pytest.mark.parametrize(
    ("args", "published"),
    [(ARGS, True), (ARGS.replace("NAMESPACE=default", "NAMESPACE=kube-system"), False), ("IgnoreUnknown=1", False)],
)
def test_status_is_published_outside_system_namespaces(args: str, published: bool) -> None:
    assert planned(args=args).publish is published


def test_pod_of_another_uid_is_refused() -> None:
    failure = refused("a", (nad("a"),), uid="another")
    assert (failure.error_class, failure.code) == (ErrorClass.POD_CHANGED, 11)
    assert UID in failure.message
    assert "another" in failure.message


def test_missing_nad_is_named() -> None:
    failure = refused("a,elsewhere/b", (nad("a"),))
    assert (failure.error_class, failure.network) == (ErrorClass.NETWORK_NOT_FOUND, "elsewhere/b")
    assert failure.message.startswith("network elsewhere/b does not exist")


def test_configuration_file_does_not_replace_a_nad() -> None:
    on_disk = nad("podnet", {"name": "podnet"}, namespace="")
    failure = refused("kube-system/podnet", (on_disk,), stdin={"clusterNetwork": "podnet"})
    assert (failure.error_class, failure.network) == (ErrorClass.NETWORK_NOT_FOUND, "kube-system/podnet")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("{", "not JSON"),
        ('{"name": "a"}', "neither type nor plugins"),
        ('{"type": "plumbline"}', "call itself"),
        ('{"type": "macvlan", "cniVersion": "9.0.0"}', "9.0.0"),
    ],
)
def test_unusable_nad_is_refused(config: str, why: str) -> None:
    failure = refused("a", (nad("a", config),))
    assert (failure.error_class, failure.network) == (ErrorClass.INVALID_CONFIG, "default/a")
    assert failure.message.startswith("network ")
    assert why in failure.message


@pytest.mark.parametrize("delegate", [{"name": "weave1", "typo": "weave-net"}, {"name": "", "type": "weave-net"}, {}])
def test_unusable_delegate_is_refused(delegate: dict[str, Any]) -> None:
    assert refused(stdin={"delegates": [FLANNEL, delegate]}).error_class is ErrorClass.INVALID_CONFIG


ISOLATED = {"delegates": [FLANNEL], "namespaceIsolation": True}


@pytest.mark.parametrize(
    ("annotations", "extra", "forbidden"),
    [
        ({NETWORKS: "other/a"}, {}, True),
        ({NETWORKS: "kube-system/a"}, {}, True),
        ({NETWORKS: "b,other/a"}, {}, True),
        ({NETWORKS: '[{"name": "b"}, {"name": "a", "namespace": "other"}]'}, {}, True),
        ({DEFAULT_NETWORK: "other/a"}, {}, True),
        ({DEFAULT_NETWORK: '[{"name": "a", "namespace": "other"}]'}, {}, True),
        ({NETWORKS: "b"}, {}, False),
        ({NETWORKS: "default/c"}, {}, False),
        ({NETWORKS: "default/c"}, {"globalNamespaces": "other"}, True),
        ({NETWORKS: "other/a"}, {"globalNamespaces": "default, other"}, False),
        ({DEFAULT_NETWORK: "other/a"}, {"globalNamespaces": "other"}, False),
        ({DEFAULT_NETWORK: "a"}, {}, False),
        ({DEFAULT_NETWORK: "shop/b"}, {}, False),
    ],
)
def test_isolation_holds_on_every_path(annotations: dict[str, str], extra: dict[str, Any], forbidden: bool) -> None:
    found = (
        nad("a", namespace="other"),
        nad("a", namespace="kube-system"),
        nad("b", namespace="shop"),
        nad("c", namespace="default"),
    )
    args = ARGS.replace("NAMESPACE=default", "NAMESPACE=shop")
    if not forbidden:
        planned(annotations, found, stdin=ISOLATED | extra, args=args)
        return
    failure = refused(annotations, found, stdin=ISOLATED | extra, args=args)
    assert (failure.error_class, failure.code) == (ErrorClass.NETWORK_FORBIDDEN, 7)
    assert "pods of namespace shop may not use namespace " + failure.network.split("/")[0] in failure.message


def test_isolation_ignores_node_networks() -> None:
    found = (nad("podnet", namespace="kube-system"),)
    stdin = {"clusterNetwork": "podnet", "defaultNetworks": ["podnet"], "namespaceIsolation": True}
    assert len(planned("", found, stdin=stdin).attachments) == 2


CAPABLE = {
    "capabilities": {
        "ips": True,
        "mac": True,
        "infinibandGUID": True,
        "portMappings": True,
        "bandwidth": True,
        "deviceID": True,
    }
}
REQUESTS: dict[str, tuple[Any, Any]] = {
    "ips": (["10.0.0.5/24"], ["10.0.0.5/24"]),
    "mac": ("02:00:00:00:00:01", "02:00:00:00:00:01"),
    "infiniband-guid": ("c2:11:22:33:44:55:66:77", "c2:11:22:33:44:55:66:77"),
    "portMappings": (
        [{"hostPort": 53, "containerPort": 53, "protocol": "UDP"}],
        [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}],
    ),
    "bandwidth": ({"ingressRate": 1000, "ingressBurst": 0}, {"ingressRate": 1000}),
    "deviceID": ("0000:03:02.1", "0000:03:02.1"),
}


@pytest.mark.parametrize("field", REQUESTS)
def test_request_reaches_the_plugin_that_declares_the_capability(field: str) -> None:
    asked, given = REQUESTS[field]
    capability = {"infiniband-guid": "infinibandGUID"}.get(field, field)
    result = planned(json.dumps([{"name": "a", field: asked}]), (nad("a", CAPABLE),))
    assert plugin(result, 1)["runtimeConfig"] == {capability: given}
    assert all("runtimeConfig" not in plugin(result, 0, index) for index in range(2))


@pytest.mark.parametrize("field", ["infiniband-guid", "portMappings", "bandwidth", "deviceID"])
def test_request_without_capable_plugin_is_refused(field: str) -> None:
    failure = refused(json.dumps([{"name": "a", field: REQUESTS[field][0]}]), (nad("a"),))
    assert failure.error_class is ErrorClass.INVALID_ANNOTATION
    assert "declares the capability" in failure.message


def test_mac_and_ips_reach_plugins_without_capabilities_in_cni_args() -> None:
    element = {"name": "a", "mac": "02:00:00:00:00:01", "ips": ["10.0.0.5/24", "fd00::5/64"]}
    result = planned(json.dumps([element, {"name": "a"}]), (nad("a"),))
    assert result.attachments[1].cni_args.endswith(
        f";K8S_POD_UID={UID};MAC=02:00:00:00:00:01;IP=10.0.0.5/24,fd00::5/64"
    )
    assert result.attachments[2].cni_args.endswith(f";K8S_POD_UID={UID}")
    assert "runtimeConfig" not in plugin(result, 1)


def test_what_is_not_changed_reaches_the_plugin_byte_for_byte() -> None:
    delegate = '{"name":"pod","type":"x","mtu":1.4e3,"capabilities":{"c":true},"n":9007199254740993.0}'
    runtime = '{"c":{"whole":1.0,"text":"\\u0041"}}'
    net1 = '{"cniVersion":"1.0.0","type":"y","vlan":1.0,"args":{"cni":{"kept":-0}}}'
    config = (
        f'{{"cniVersion":"1.0.0","name":"p","type":"plumbline","delegates":[{delegate}],"runtimeConfig":{runtime}}}'
    )
    result = planned('[{"name": "net1", "cni-args": {"new": 1e3}}]', (nad("net1", net1),), config=config)
    (first,), (second,) = (each.plugins for each in result.attachments)
    assert first.startswith(delegate[:-1])
    assert f'"runtimeConfig":{runtime}' in first
    assert '"vlan":1.0' in second
    assert '"args":{"cni":{"kept":-0,"new":1e3}}' in second


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        ("02AA.bb00.1122", "02:aa:bb:00:11:22"),
        ("80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1",) * 2,
    ],
)
def test_every_plugin_gets_an_address_in_one_spelling(written: str, passed: str) -> None:
    result = planned(json.dumps([{"name": "a", "mac": written}]), (nad("a", CAPABLE),))
    assert plugin(result, 1)["runtimeConfig"] == {"mac": passed}
    assert result.attachments[1].cni_args.endswith(f";MAC={passed}")


def test_runtime_config_is_for_the_default_network_only() -> None:
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    stdin = {"delegates": [FLANNEL], "runtimeConfig": {"portMappings": mappings, "dns": {"servers": []}}}
    result = planned("a", (nad("a", CAPABLE),), stdin=stdin)
    assert "runtimeConfig" not in plugin(result, 0, 0)
    assert plugin(result, 0, 1)["runtimeConfig"] == {"portMappings": mappings}
    assert "runtimeConfig" not in plugin(result, 1)


def test_requests_of_the_default_network_annotation_win_over_the_runtimes() -> None:
    override = json.dumps([{"name": "fast", "ips": ["10.0.0.9"]}])
    stdin = {"delegates": [FLANNEL], "runtimeConfig": {"ips": ["10.0.0.1"], "mac": "02:00:00:00:00:02"}}
    result = planned({DEFAULT_NETWORK: override}, (nad("fast", CAPABLE, namespace="kube-system"),), stdin=stdin)
    assert plugin(result, 0)["runtimeConfig"] == {"ips": ["10.0.0.9"], "mac": "02:00:00:00:00:02"}
    assert result.attachments[0].cni_args.endswith(";IP=10.0.0.9")


def test_cni_args_of_the_pod_win_in_every_plugin() -> None:
    chain = {
        "name": "chain",
        "cniVersion": "1.0.0",
        "plugins": [{"type": "macvlan", "args": {"cni": {"a": 1, "b": 1}}}, {"type": "tuning"}],
    }
    result = planned('[{"name": "a", "cni-args": {"b": 2}}]', (nad("a", json.dumps(chain)),))
    assert plugin(result, 1, 0)["args"] == {"cni": {"a": 1, "b": 2}}
    assert plugin(result, 1, 1)["args"] == {"cni": {"b": 2}}


def test_flags_of_the_configuration_are_recorded() -> None:
    config = json.dumps({"name": "a", "disableCheck": True, "disableGC": True, "plugins": [{"type": "macvlan"}]})
    attachment = planned("a", (nad("a", config),)).attachments[1]
    assert (attachment.disable_check, attachment.disable_gc) == (True, True)


def test_default_route_is_recorded_with_the_attachment_that_claims_it() -> None:
    result = planned('[{"name": "a"}, {"name": "b", "default-route": ["10.0.0.1", "FD00:0::1"]}]', (nad("a"), nad("b")))
    assert [attachment.default_route for attachment in result.attachments] == [None, None, ("10.0.0.1", "fd00::1")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/opt/cni/bin", "/opt/cni/bin"),
        ("/usr/lib/cni", "/opt/cni/bin:/usr/lib/cni"),
        ("/usr/lib/cni:/opt/cni/bin", "/usr/lib/cni:/opt/cni/bin"),
        ("", "/opt/cni/bin"),
        (":/usr/lib/cni:", "/opt/cni/bin:/usr/lib/cni"),
    ],
)
def test_plugins_are_searched_in_the_nodes_folder_too(path: str, expected: str) -> None:
    assert planned(path=path).path == expected


@given(
    st.lists(st.none() | st.text(max_size=17) | st.sampled_from(["eth0", "net1", "net2", "a0", "b0"]), max_size=6),
    st.sampled_from(["eth0", "net1", "ens3"]),
)
def test_interface_names_of_a_plan_are_possible_and_unique(requested: list[str | None], ifname: str) -> None:
    text = json.dumps([{"name": "a", "interface": each} for each in requested])
    try:
        result = planned(text, (nad("a"),), ifname=ifname)
    except RequestFailedError:
        return
    used = [attachment.ifname for attachment in result.attachments]
    assert len(set(used)) == len(used) == len(requested) + 1
    assert not any(map(ifname_problem, used))
    assert all(asked in {None, "", name} for asked, name in zip(requested, used[1:], strict=True))
