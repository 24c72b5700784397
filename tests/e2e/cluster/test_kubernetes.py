"""Pods and networks of a real API server become real interfaces, also when that server is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.kube.server import WORKER, KubeServer
from tests.support.node.node import MakeNode, Node
from tests.support.node.runtime import PodSandbox

NETWORKS = "k8s.v1.cni.cncf.io/networks"


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node without worker."""
    return make_node()


@pytest.fixture
def kube(node: Node) -> Iterator[KubeServer]:
    """An API server in the network of the node, with ``macvlan-conf``; the node's worker uses it."""
    server = KubeServer()
    try:
        server.start()
        server.create_nad("default", "macvlan-conf", json.dumps(node.macvlan()))
        kubeconfig = server.kubeconfig(node.config.with_name("kubeconfig"), token=WORKER)
        settings = json.loads(node.config.read_text())
        del settings["manifests"]
        settings["worker"]["kubernetes"] = {"kubeconfig": str(kubeconfig)}
        node.config.write_text(json.dumps(settings))
        yield server
    finally:
        server.stop()


def sandbox_of(node: Node, name: str) -> PodSandbox:
    sandbox = PodSandbox(node.runtime, name, node.conf())
    node.sandboxes.append(sandbox)
    return sandbox


def test_cached_pod_is_attached_while_the_api_server_is_down(node: Node, kube: KubeServer) -> None:
    kube.create_pod("default", "samplepod", node.name, {NETWORKS: "macvlan-conf"})
    kube.create_pod("default", "known", node.name, {NETWORKS: "macvlan-conf,macvlan-conf"})
    node.start()
    first = sandbox_of(node, "samplepod")
    assert first.add().exit_code == 0
    node.assert_attached(first)
    assert set(first.links()) >= {"eth0", "net1"}

    node.terminate()
    assert node.ended() == 0
    kube.kill_api()
    node.start()
    second = sandbox_of(node, "known")
    assert second.add().exit_code == 0
    assert set(second.links()) >= {"eth0", "net1", "net2"}
    unheard = sandbox_of(node, "unheard-of").add()
    assert unheard.code == 11
    assert "default/unheard-of" in unheard.msg
    for sandbox in (first, second):
        assert sandbox.delete().exit_code == 0
        node.assert_detached(sandbox)
