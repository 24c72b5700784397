"""Planning as Multus' own tests require it; ``multus-behaviour.md`` names the line that each test proves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from events.schema import AttachPlanned, AttachRequested, IfName, RequestId
from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS, parse_networks
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.planning.resolve.plan import make_plan
from nodeworker.plugins.spec.cni_args import pod_of

ARGS = "K8S_POD_NAMESPACE=test;K8S_POD_NAME=samplepod;K8S_POD_UID=u1"
WEAVE = {"cniVersion": "1.0.0", "name": "weave1", "type": "weave-net"}


def nad(name: str, plugin: str, namespace: str = "test", /, **keys: Any) -> Nad:
    return Nad(namespace, name, json.dumps({"cniVersion": "1.0.0", "type": plugin, **keys}))


def planned(annotations: Mapping[str, str], *nads: Nad, **stdin: Any) -> AttachPlanned:
    """Plan an ADD of pod test/samplepod in a cluster that has *nads*; its default network is weave1."""
    config = json.dumps({"cniVersion": "1.0.0", "name": "plumbline", **(stdin or {"delegates": [WEAVE]})})
    request = AttachRequested(
        request=RequestId("r"), ifname=IfName("eth0"), netns="/n", config=config, args=ARGS, pod=pod_of(ARGS)
    )
    networks = {NetworkRef(each.namespace, each.name, on_disk): each for each in nads for on_disk in (False, True)}
    pod = PodObject("test", "samplepod", "u1", dict(annotations))
    return make_plan(request, "c1", parse_netconf(config, NodeDefaults()), pod, networks)


def attached(result: AttachPlanned) -> list[tuple[str, str, str]]:
    """Return network, interface and the first plugin's type of each attachment."""
    return [(each.network, each.ifname, json.loads(each.plugins[0])["type"]) for each in result.attachments]


def test_only_selected_networks_are_attached() -> None:
    nads = nad("net1", "mynet"), nad("net2", "mynet2"), nad("net3", "mynet3")
    result = planned({NETWORKS: "net1,net2"}, *nads)
    assert attached(result) == [
        ("weave1", "eth0", "weave-net"),
        ("test/net1", "net1", "mynet"),
        ("test/net2", "net2", "mynet2"),
    ]
    assert [each.default for each in result.attachments] == [True, False, False]


def test_json_list_is_attached_in_order_with_its_requests() -> None:
    asked = [
        {"name": "net3", "namespace": "other", "ips": ["1.2.3.4"]},
        {"name": "net1", "mac": "02:00:00:00:00:07"},
        {"name": "net2", "interface": "data0"},
    ]
    nads = nad("net1", "mynet", capabilities={"mac": True}), nad("net2", "mynet2"), nad("net3", "mynet3", "other")
    result = planned({NETWORKS: json.dumps(asked)}, *nads)
    assert attached(result)[1:] == [
        ("other/net3", "net1", "mynet3"),
        ("test/net1", "net2", "mynet"),
        ("test/net2", "data0", "mynet2"),
    ]
    assert result.attachments[1].cni_args.endswith(";IP=1.2.3.4")
    assert json.loads(result.attachments[2].plugins[0])["runtimeConfig"] == {"mac": "02:00:00:00:00:07"}


@pytest.mark.parametrize("node", [{"clusterNetwork": "net2"}, {"delegates": [WEAVE]}])
def test_default_network_annotation_replaces_any_default(node: dict[str, Any]) -> None:
    nads = nad("net1", "mynet", "kube-system"), nad("net2", "mynet2", "kube-system")
    result = planned({DEFAULT_NETWORK: "kube-system/net1"}, *nads, **node)
    assert attached(result) == [("kube-system/net1", "eth0", "mynet")]
    assert result.attachments[0].default


def test_network_name_is_that_of_its_nad_if_selected() -> None:
    chain = {"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}
    result = planned({NETWORKS: "net1"}, nad("net1", "mynet", name="mynet-name"), delegates=[WEAVE, chain])
    assert [(each.network, each.cni_name) for each in result.attachments] == [
        ("weave1", "weave1"),
        ("chain", "chain"),
        ("test/net1", "mynet-name"),
    ]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("", None),
        (', "default-route": []', ()),
        (', "default-route": ["10.1.1.1"]', ("10.1.1.1",)),
        (', "default-route": ["10.1.1.1", "fc00::1"]', ("10.1.1.1", "fc00::1")),
    ],
)
def test_empty_default_route_differs_from_none(field: str, expected: tuple[str, ...] | None) -> None:
    text = f'[{{"name": "net1"{field}}}]'
    assert parse_networks(text, "test")[0].default_route == expected
    assert planned({NETWORKS: text}, nad("net1", "mynet")).attachments[1].default_route == expected


def test_no_readiness_file_by_default() -> None:
    named = {"clusterNetwork": "c", "name": "n", "readinessindicatorfile": "/run/ready"}
    assert parse_netconf(json.dumps(named), NodeDefaults()).readiness_file == "/run/ready"
    del named["readinessindicatorfile"]
    assert parse_netconf(json.dumps(named), NodeDefaults()).readiness_file == ""
