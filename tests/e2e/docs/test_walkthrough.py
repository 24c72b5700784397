"""The first hour with Plumbline in a cluster: a network, a pod, and what kubectl shows of both.

People who come from Multus know these steps by heart. Of the cluster, the API server and kubectl are real, with the
manifests, the account and the rights of ``deploy/``; the tests stand in for the scheduler and for the kubelet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.kube.kubectl import Kubectl
from tests.support.kube.server import DEPLOY, PODS, KubeServer
from tests.support.node.kernel import ping
from tests.support.node.node import ADD_EVENTS, DEL_EVENTS, PARENT, MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

STATUS = r"{.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}"

NETWORK = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: macvlan-conf
spec:
  config: '{
      "cniVersion": "0.3.1",
      "type": "macvlan",
      "master": "%(parent)s",
      "mode": "bridge",
      "ipam": {
        "type": "host-local",
        "dataDir": "%(addresses)s",
        "subnet": "192.168.1.0/24",
        "rangeStart": "192.168.1.200",
        "rangeEnd": "192.168.1.216",
        "routes": [
          { "dst": "10.200.0.0/16" }
        ],
        "gateway": "192.168.1.1"
      }
    }'
"""
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations:
    k8s.v1.cni.cncf.io/networks: macvlan-conf
spec:
  containers:
  - name: samplepod
    command: ["/bin/ash", "-c", "trap : TERM INT; sleep infinity & wait"]
    image: alpine
"""
ANNOTATION = """[{
    "name": "default",
    "interface": "eth0",
    "ips": [
        "10.87.0.2"
    ],
    "mac": "%s",
    "default": true,
    "dns": {}
},{
    "name": "default/macvlan-conf",
    "interface": "net1",
    "ips": [
        "192.168.1.200"
    ],
    "mac": "%s",
    "dns": {}
}]"""


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node without worker."""
    return make_node()


@pytest.fixture
def kube(node: Node) -> Iterator[KubeServer]:
    """An API server in the network of the node, with nothing installed."""
    server = KubeServer()
    try:
        server.start()
        server.uninstall_crd()
        yield server
    finally:
        server.stop()


@pytest.fixture
def kubectl(kube: KubeServer, node: Node) -> Kubectl:
    return Kubectl(kube, node.config.with_name("kubectl"))


@pytest.fixture
def plumbline(kube: KubeServer, kubectl: Kubectl, node: Node) -> Iterator[None]:
    """Worker and reconciler, installed as documented."""
    kubectl("apply", "-k", str(DEPLOY / "crd"))
    kubectl("wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io")
    kubectl("apply", "-k", str(DEPLOY / "kubernetes" / "base"))
    token = kubectl("--namespace", "kube-system", "create", "token", "plumbline").strip()
    access = {"kubeconfig": str(kube.kubeconfig(node.config.with_name("kubeconfig"), token=token))}
    settings = json.loads(node.config.read_text())
    del settings["manifests"]
    settings["worker"]["kubernetes"] = access
    settings["reconciler"] = {"kubernetes": access}
    node.config.write_text(json.dumps(settings))
    node.start()
    with reconciler(node):
        yield


def run_pod(name: str, node: Node, kube: KubeServer, kubectl: Kubectl) -> PodSandbox:
    """Create the pod, bind it as the scheduler does, and do what the kubelet does then."""
    kubectl("create", "-f", "-", stdin=POD % name)
    target = {"kind": "Node", "name": node.name}
    kube.ask("POST", f"{PODS.format('default')}/{name}/binding", {"metadata": {"name": name}, "target": target})
    uid = kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
    sandbox = PodSandbox(node.runtime, name, node.conf())
    sandbox.env["CNI_ARGS"] += f";K8S_POD_UID={uid}"
    node.sandboxes.append(sandbox)
    answer = sandbox.add()
    assert not answer.exit_code, answer
    return sandbox


@pytest.mark.usefixtures("plumbline")
def test_macvlan_walkthrough(node: Node, kube: KubeServer, kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=NETWORK % {"parent": PARENT, "addresses": node.addresses})
    for kind in ("network-attachment-definitions", "net-attach-def"):
        header, *rows = kubectl("get", kind).splitlines()
        assert header.split() == ["NAME", "AGE"]
        assert [row.split()[0] for row in rows] == ["macvlan-conf"]
    described = kubectl("describe", "network-attachment-definitions", "macvlan-conf")
    assert f'"master": "{PARENT}"' in described

    first = run_pod("samplepod", node, kube, kubectl)
    links = first.links()
    assert links["eth0"].addresses == {"10.87.0.2/16"}
    assert links["net1"].addresses == {"192.168.1.200/24"}

    published = eventually(lambda: kubectl("get", "pod", "samplepod", "-o", f"jsonpath={STATUS}"), "it is annotated")
    assert published == ANNOTATION % (links["eth0"].mac, links["net1"].mac)
    lines = [line.strip() for line in kubectl("describe", "pod", "samplepod").splitlines()]
    assert "k8s.v1.cni.cncf.io/networks: macvlan-conf" in "\n".join(lines)
    begin = lines.index("[{")
    assert lines[begin - 1].endswith("k8s.v1.cni.cncf.io/network-status:")
    shown = [line.strip() for line in published.splitlines()]
    assert lines[begin : begin + len(shown)] == shown

    second = run_pod("another", node, kube, kubectl)
    assert second.links()["net1"].addresses == {"192.168.1.201/24"}
    assert ping(second.namespace, "192.168.1.200")

    for sandbox in (first, second):
        kubectl("delete", "pod", sandbox.pod, "--force", "--grace-period=0")
        assert sandbox.delete() == (0, "", "")
        node.assert_detached(sandbox)
    assert set(node.event_types(first)) == {*ADD_EVENTS, "StatusPublished", *DEL_EVENTS}
    kubectl("delete", "network-attachment-definitions", "macvlan-conf")
