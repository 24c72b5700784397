"""From a request to its plan, with a folder of manifests as the cluster, and real files of the node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.schema import AttachPlanned, AttachRequested, ErrorClass, Failure, IfName, Pod, RequestId
from nodeworker.errors import RequestFailedError
from nodeworker.planning.cluster.gather import gather, gather_default
from nodeworker.planning.cluster.manifests import Manifests
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from nodeworker.planning.resolve.objects import PodObject
from nodeworker.planning.resolve.plan import make_plan
from nodeworker.plugins.spec.cni_args import pod_of

SAMPLEPOD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=samplepod;K8S_POD_UID=u1"


class Node:
    """A node with its configuration folder, and manifests with its pods and networks."""

    def __init__(self, root: Path) -> None:
        self.conf_dir = root / "net.d"
        self.conf_dir.mkdir()
        self.folder = root / "manifests"
        self.folder.mkdir()
        self.source = Manifests(self.folder)

    def conf(self, file: str, **config: Any) -> Path:
        path = self.conf_dir / file
        path.write_text(json.dumps({"cniVersion": "1.0.0", "type": "bridge", **config}))
        return path

    def nad(self, name: str, namespace: str = "shop", spec: Any = None, **keys: Any) -> None:
        metadata = {"name": name, "namespace": namespace}
        self._write("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", metadata, spec or keys)

    def pod(self, networks: str) -> None:
        annotations = {"k8s.v1.cni.cncf.io/networks": networks}
        metadata = {"name": "samplepod", "namespace": "shop", "uid": "u1", "annotations": annotations}
        self._write("v1", "Pod", metadata, {})

    def _write(self, api: str, kind: str, metadata: dict[str, Any], spec: Any) -> None:
        manifest = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
        (self.folder / f"{kind}-{metadata['namespace']}-{metadata['name']}.json").write_text(json.dumps(manifest))

    async def planned(self, args: str = SAMPLEPOD, source: Source | None = None, **stdin: Any) -> AttachPlanned:
        config = json.dumps({"cniVersion": "1.0.0", "name": "plumbline", "confDir": str(self.conf_dir), **stdin})
        request = AttachRequested(
            request=RequestId("r"), ifname=IfName("eth0"), netns="/n", config=config, args=args, pod=pod_of(args)
        )
        conf = parse_netconf(config, NodeDefaults())
        pod, networks = await gather(conf, request.pod, source)
        return make_plan(request, "c1", conf, pod, networks)

    async def refused(self, args: str = SAMPLEPOD, source: Source | None = None, **stdin: Any) -> Failure:
        with pytest.raises(RequestFailedError) as caught:
            await self.planned(args, source, **stdin)
        return caught.value.failure


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.source.close()


def networks(plan: AttachPlanned) -> list[tuple[str, str]]:
    return [(attachment.network, attachment.cni_name) for attachment in plan.attachments]


DELEGATES = [{"cniVersion": "1.0.0", "name": "pods", "type": "ptp"}]


async def test_pod_is_planned_from_manifests(node: Node) -> None:
    node.pod("a,other/b,a")
    node.nad("a", config='{"type": "macvlan"}')
    node.nad("b", "other", config='{"type": "vlan", "name": "vlan-b"}')
    result = await node.planned(source=node.source, delegates=DELEGATES)
    assert networks(result) == [("pods", "pods"), ("shop/a", "a"), ("other/b", "vlan-b"), ("shop/a", "a")]


async def test_cluster_network_is_a_nad_before_it_is_a_file(node: Node) -> None:
    node.pod("")
    node.conf("10.conf", name="podnet", type="ptp")
    assert networks(await node.planned(source=node.source, clusterNetwork="podnet")) == [("podnet", "podnet")]
    node.nad("podnet", "kube-system", config='{"type": "bridge", "name": "from-nad"}')
    assert networks(await node.planned(source=node.source, clusterNetwork="podnet")) == [
        ("kube-system/podnet", "from-nad")
    ]


async def test_cluster_network_can_be_a_file_or_folder(node: Node) -> None:
    node.pod("")
    path = node.conf("20.conf", name="by-file")
    node.conf("10.conflist", name="by-folder")
    for cluster_network, name in ((path, "by-file"), (node.conf_dir, "by-folder")):
        result = await node.planned(source=node.source, clusterNetwork=str(cluster_network))
        assert networks(result) == [(name, name)]


async def test_list_by_path_continues_in_its_folder(node: Node) -> None:
    node.pod("")
    cluster = node.conf("10.conflist", name="podnet", type=None, plugins=[{"type": "ptp"}])
    further = node.conf("20.conflist", name="sidecar", type=None, plugins=[{"type": "bridge"}])
    for folder, plugin in (("podnet", "tuning"), ("sidecar", "sbr")):
        (node.conf_dir / folder).mkdir()
        (node.conf_dir / folder / "50.conf").write_text(json.dumps({"type": plugin}))
    result = await node.planned(source=node.source, clusterNetwork=str(cluster), defaultNetworks=[str(further)])
    assert [[json.loads(text)["type"] for text in each.plugins] for each in result.attachments] == [
        ["ptp", "tuning"],
        ["bridge", "sbr"],
    ]


async def test_auxiliary_chain_is_attached_if_it_has_plugins(node: Node) -> None:
    node.pod("a")
    node.nad("a", config='{"type": "macvlan"}')
    path = node.conf("10.conf", name="podnet")
    keys = {"clusterNetwork": str(path), "auxiliaryCNIChainName": "vendor"}
    assert networks(await node.planned(source=node.source, **keys)) == [("podnet", "podnet"), ("shop/a", "a")]
    (node.conf_dir / "vendor").mkdir()
    (node.conf_dir / "vendor" / "10.conf").write_text('{"type": "tuning"}')
    result = await node.planned(source=node.source, **keys)
    assert networks(result) == [("podnet", "podnet"), ("shop/a", "a"), ("vendor", "vendor")]
    assert result.attachments[-1].ifname == "net2"
    assert [json.loads(text)["type"] for text in result.attachments[-1].plugins] == ["passthru", "tuning"]


@pytest.mark.parametrize("chain", ["podnet", "vendor"])
async def test_chain_with_an_unreadable_plugin_is_refused_with_the_file(node: Node, chain: str) -> None:
    node.pod("")
    path = node.conf("10.conflist", name="podnet", type=None, plugins=[{"type": "ptp"}])
    (node.conf_dir / chain).mkdir()
    (node.conf_dir / chain / "10-broken.conf").write_text("{")
    failure = await node.refused(source=node.source, clusterNetwork=str(path), auxiliaryCNIChainName="vendor")
    assert failure.error_class is ErrorClass.NETWORK_NOT_FOUND
    assert "10-broken.conf" in failure.message
    assert failure.message.startswith(
        f"the auxiliary chain {chain} can't be read: " if chain == "vendor" else "network "
    )


async def test_default_network_alone_is_found_without_a_pod(node: Node) -> None:
    node.nad("podnet", "kube-system", config='{"type": "bridge"}')
    config = {"name": "n", "clusterNetwork": "podnet", "defaultNetworks": ["absent"], "confDir": str(node.conf_dir)}
    want, found = await gather_default(parse_netconf(json.dumps(config), NodeDefaults()), node.source)
    assert [ref.name for ref in found] == ["podnet"]
    assert want.ref in found
    config = {"name": "n", "delegates": DELEGATES}
    want, found = await gather_default(parse_netconf(json.dumps(config), NodeDefaults()), node.source)
    assert json.loads(msgspec.json.encode(want.delegate)) == DELEGATES[0]
    assert found == {}


async def test_default_networks_are_looked_up_like_the_cluster_network(node: Node) -> None:
    node.pod("")
    node.nad("sidecar", "kube-system", config='{"type": "bridge"}')
    path = node.conf("10.conf", name="podnet")
    result = await node.planned(source=node.source, clusterNetwork="podnet", defaultNetworks=["sidecar", str(path)])
    assert networks(result) == [("podnet", "podnet"), ("kube-system/sidecar", "sidecar"), ("podnet", "podnet")]


@pytest.mark.parametrize("file", ["10.conf", "10.conflist"])
async def test_nad_without_configuration_is_found_on_disk_under_its_own_name(node: Node, file: str) -> None:
    node.pod("a")
    node.nad("a")
    node.conf(file, name="a", type="ipvlan")
    result = await node.planned(source=node.source, delegates=DELEGATES)
    assert networks(result)[1:] == [("shop/a", "a")]
    assert '"ipvlan"' in result.attachments[1].plugins[0]


async def test_nad_without_configuration_is_refused_with_details(node: Node) -> None:
    node.pod("a")
    node.nad("a")
    (node.conf_dir / "broken.conf").write_text("{")
    failure = await node.refused(source=node.source, delegates=DELEGATES)
    assert (failure.error_class, failure.network) == (ErrorClass.NETWORK_NOT_FOUND, "shop/a")
    assert failure.message.startswith("NetworkAttachmentDefinition shop/a has no spec.config")
    assert "broken.conf" in failure.details


@pytest.mark.parametrize("name", ["unknown", "/no/such/path.conf"])
async def test_missing_node_network_is_refused(node: Node, name: str) -> None:
    node.pod("")
    failure = await node.refused(source=node.source, clusterNetwork=name)
    assert (failure.error_class, failure.network) == (ErrorClass.NETWORK_NOT_FOUND, name)
    assert name in failure.message


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"config": {"type": "bridge"}}, "spec.config is a mapping"),
        ({"config": [{"type": "bridge"}]}, "spec.config is a list"),
        ({"config": 5}, "spec.config is a number"),
        ({"config": True}, "spec.config is a truth value"),
        ('{"type": "bridge"}', "spec is text"),
    ],
)
async def test_nad_of_another_shape_is_refused_and_not_missing(node: Node, spec: Any, problem: str) -> None:
    node.pod("odd")
    node.nad("odd", spec=spec)
    node.conf("odd.conf", name="odd")
    failure = await node.refused(source=node.source, delegates=DELEGATES)
    assert (failure.error_class, failure.code, failure.network) == (ErrorClass.INVALID_CONFIG, 7, "shop/odd")
    assert f"its {problem}; write the configuration as JSON text" in failure.message


async def test_annotation_never_reaches_files_without_a_nad(node: Node) -> None:
    node.pod("secret")
    node.conf("10.conf", name="secret")
    failure = await node.refused(source=node.source, delegates=DELEGATES)
    assert (failure.error_class, failure.network) == (ErrorClass.NETWORK_NOT_FOUND, "shop/secret")


async def test_unknown_pod_is_error_11(node: Node) -> None:
    failure = await node.refused(source=node.source, delegates=DELEGATES)
    assert (failure.error_class, failure.code) == (ErrorClass.POD_NOT_FOUND, 11)
    assert failure.message.startswith("the pod is not known yet")


async def test_unavailable_source_is_error_11(node: Node, tmp_path: Path) -> None:
    source = Manifests(tmp_path / "missing")
    failure = await node.refused(source=source, delegates=DELEGATES)
    source.close()
    assert (failure.error_class, failure.code) == (ErrorClass.SOURCE_UNAVAILABLE, 11)
    assert "missing" in failure.message


async def test_runtime_without_pods_gets_the_networks_of_the_node(node: Node, tmp_path: Path) -> None:
    node.conf("10.conf", name="podnet")
    result = await node.planned(args="", clusterNetwork="podnet", defaultNetworks=["podnet"])
    assert networks(result) == [("podnet", "podnet"), ("podnet", "podnet")]
    absent = Manifests(tmp_path / "missing")
    assert networks(await node.planned(args="", source=absent, delegates=DELEGATES)) == [("pods", "pods")]
    absent.close()


async def test_pod_without_source_is_as_the_runtime_names_it(node: Node) -> None:
    conf = parse_netconf(json.dumps({"name": "n", "delegates": DELEGATES}), NodeDefaults())
    pod, found = await gather(conf, Pod("shop", "samplepod", "u1"), None)
    assert pod == PodObject("shop", "samplepod", "u1")
    assert found == {}
