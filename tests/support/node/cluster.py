"""A node in a cluster. A real API server in the node's network namespace has its pods and networks."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

from nodeworker.planning.resolve.annotation import NETWORKS
from tests.support.kube.server import WORKER, KubeServer
from tests.support.node.node import Node
from tests.support.node.runtime import PodSandbox

NETWORK = "macvlan-conf"


class Cluster:
    """*node* without worker, and the API server *kube* with the network ``macvlan-conf``.

    *pod_wait* is so long that a test fails unless the worker's watch reports the pod.
    """

    def __init__(self, node: Node, kube: KubeServer) -> None:
        self.node = node
        self.kube = kube
        self.token = node.config.with_name("token")
        self._cached = node.config.with_name("state") / "cluster"

    @classmethod
    @contextlib.contextmanager
    def around(cls, node: Node) -> Iterator[Cluster]:
        """Run an API server for the duration of the context."""
        kube = KubeServer()
        try:
            kube.start()
            cluster = cls(node, kube)
            cluster.nad(NETWORK, node.macvlan())
            cluster.accept()
            yield cluster
        finally:
            kube.stop()

    def accept(self, token: str = WORKER) -> None:
        """Give the worker *token* as the kubelet does: by replacing the file."""
        renewed = self.token.with_name("renewed")
        renewed.write_text(token)
        renewed.replace(self.token)

    def configure(self, url: str = "", **kubernetes: Any) -> None:
        """Configure the next worker for the API server, or for *url*; *kubernetes* is the section of that name."""
        kubeconfig = self.node.config.with_name("kubeconfig")
        self.kube.kubeconfig(kubeconfig, server=url, tokenFile=str(self.token))
        settings = json.loads(self.node.config.read_text())
        settings.pop("manifests", None)
        settings["worker"]["kubernetes"] = {"kubeconfig": str(kubeconfig), **kubernetes}
        self.node.config.write_text(json.dumps(settings))

    def start(self, url: str = "", *, pod_wait: float = 60.0, wait: bool = True) -> None:
        """Start a worker without a cache of the cluster."""
        self.configure(url, podWait=pod_wait)
        shutil.rmtree(self._cached, ignore_errors=True)
        self.node.start(wait=wait)

    def nad(self, name: str, config: Any) -> None:
        """Define the network ``default/name``."""
        self.kube.create_nad("default", name, config if isinstance(config, str) else json.dumps(config))

    def pod(self, name: str, networks: str = NETWORK) -> PodSandbox:
        """Create the pod ``default/name`` on the node and return its sandbox."""
        return self.sandbox(name, self.kube.create_pod("default", name, self.node.name, {NETWORKS: networks}))

    def sandbox(self, name: str, uid: str) -> PodSandbox:
        """Return a sandbox for the pod ``default/name`` with the UID *uid*."""
        sandbox = PodSandbox(self.node.runtime, name, self.node.conf())
        sandbox.env["CNI_ARGS"] += f";K8S_POD_UID={uid}"
        self.node.sandboxes.append(sandbox)
        return sandbox

    def catch_up(self, name: str) -> None:
        """Wait until the worker's watch has seen every change of pods so far.

        *name* is of a pod that is made for that, and goes again.
        """
        marker = self.pod(name, "")
        assert marker.add().exit_code == 0
        assert marker.delete().exit_code == 0
        self.kube.delete_pod("default", name)
