"""An API server, and an account that may only publish statuses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import Pod
from reconciler.status.kubernetes.annotation_sink import AnnotationSink
from tests.support.kube.server import PODS, TOKENS, KubeServer

PUBLISHER = "publisher-token"
RULES = [
    {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
]
"""All that the reconciler needs."""
WITH_PUBLISHER = {**TOKENS, PUBLISHER: ("publisher", "")}


@pytest.fixture(scope="session")
def cluster(kube: KubeServer) -> KubeServer:
    """The API server, which permits the user ``publisher`` only that."""
    api = "/apis/rbac.authorization.k8s.io/v1"
    kube.ask("POST", f"{api}/clusterroles", {"metadata": {"name": "publisher"}, "rules": RULES})
    kube.ask(
        "POST",
        f"{api}/clusterrolebindings",
        {
            "metadata": {"name": "publisher"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "publisher"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "publisher"}],
        },
    )
    kube.kill_api()
    kube.start_api(WITH_PUBLISHER)
    kube.await_api()
    return kube


@pytest.fixture
def namespace(cluster: KubeServer, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    cluster.create_namespace(name)
    return name


@pytest.fixture
async def annotation(cluster: KubeServer, tmp_path: Path) -> AsyncIterator[AnnotationSink]:
    async with connected(cluster, tmp_path, PUBLISHER) as publisher:
        yield publisher


@contextlib.asynccontextmanager
async def connected(cluster: KubeServer, folder: Path, token: str) -> AsyncIterator[AnnotationSink]:
    publisher = await AnnotationSink.connect(str(cluster.kubeconfig(folder / "kubeconfig", token=token)))
    try:
        yield publisher
    finally:
        await publisher.close()


def metadata(cluster: KubeServer, pod: Pod) -> dict[str, Any]:
    return cluster.ask("GET", f"{PODS.format(pod.namespace)}/{pod.name}")["metadata"]


def create(cluster: KubeServer, namespace: str, name: str = "web", annotations: dict[str, str] | None = None) -> Pod:
    return Pod(namespace, name, cluster.create_pod(namespace, name, "node-1", annotations))
