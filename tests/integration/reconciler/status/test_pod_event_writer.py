"""Kubernetes Events at a real API server, by an account with minimal rights."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from events.schema import (
    Event,
    Pod,
    Stored,
)
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Loaded, project
from reconciler.status.kubernetes.annotation_sink import AnnotationSink
from reconciler.status.kubernetes.pod_event_writer import PodEventWriter
from tests.support.kube.kubectl import Kubectl
from tests.support.kube.publishing import WITH_PUBLISHER, create
from tests.support.kube.server import KubeServer
from tests.support.stories.events import container
from tests.support.stories.node import Node
from tests.support.waiting import BOUND

SPEAKER = "speaker-token"
RULES = [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]


@pytest.fixture(scope="module")
def cluster(kube: KubeServer) -> KubeServer:
    api = "/apis/rbac.authorization.k8s.io/v1"
    kube.ask("POST", f"{api}/clusterroles", {"metadata": {"name": "speaker"}, "rules": RULES})
    kube.ask(
        "POST",
        f"{api}/clusterrolebindings",
        {
            "metadata": {"name": "speaker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "speaker"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "speaker"}],
        },
    )
    kube.kill_api()
    kube.start_api({**WITH_PUBLISHER, SPEAKER: ("speaker", "")})
    kube.await_api()
    kube.create_namespace("shop")
    return kube


async def written(cluster: KubeServer, folder: Path, events: list[Event], metrics: Metrics) -> None:
    """Write all Events for *events*."""
    publisher = await AnnotationSink.connect(str(cluster.kubeconfig(folder / "kubeconfig", token=SPEAKER)))
    assert isinstance(publisher.api, client.ApiClient)
    writer = PodEventWriter(publisher.api, metrics)
    running = asyncio.create_task(writer.run())
    try:
        stored = [Stored(sequence, event) for sequence, event in enumerate(events, 1)]
        changes = project(Loaded(), stored)
        writer.changed(changes)
        async with asyncio.timeout(BOUND):
            await writer.written()
    finally:
        running.cancel()
        await publisher.close()


def events_of(cluster: KubeServer, pod: str) -> list[dict[str, Any]]:
    found = cluster.ask("GET", "/api/v1/namespaces/shop/events")["items"]
    return [each for each in found if each["involvedObject"]["name"] == pod]


async def test_each_interface_has_an_event_on_the_pod(cluster: KubeServer, tmp_path: Path) -> None:
    pod = Pod("shop", "web", "uid-web")
    metrics = Metrics()
    await written(cluster, tmp_path, list(Node().attach(container(1), pod)), metrics)
    found = events_of(cluster, "web")
    assert {each["reason"] for each in found} == {"AddedInterface"}
    assert sorted(each["message"].split(" [")[0] for each in found) == ["Add eth0", "Add net1"]
    assert {each["involvedObject"]["uid"] for each in found} == {"uid-web"}
    assert metrics.registry.get_sample_value("plumbline_reconciler_pod_events_written_total") == 2


async def test_kubectl_describes_the_interfaces_in_their_order(cluster: KubeServer, tmp_path: Path) -> None:
    pod = create(cluster, "shop", "many")
    networks = ["k8s-pod-network", *(f"default/{name}" for name in "zyxwvutsr")]
    await written(cluster, tmp_path, list(Node().attach(container(1), pod, networks)), Metrics())
    described = Kubectl(cluster, tmp_path / "kubectl")("describe", "pod", "many", "--namespace", "shop")
    shown = re.findall(r"Add (\w+) \[[^]]*\] from (\S+)", described)
    assert shown == [(f"net{place}" if place else "eth0", network) for place, network in enumerate(networks)]


async def test_a_repeated_failure_is_one_event_with_a_count(cluster: KubeServer, tmp_path: Path) -> None:
    pod = Pod("shop", "unlucky", "uid-unlucky")
    node = Node()
    events = [event for number in range(3) for event in node.attach(container(number), pod, fails_at=1)]
    await written(cluster, tmp_path, events, Metrics())
    (found,) = events_of(cluster, "unlucky")
    assert (found["type"], found["reason"], found["count"]) == ("Warning", "FailedAddingInterface", 3)
    await written(cluster, tmp_path, list(node.attach(container(9), pod, fails_at=1)), Metrics())
    assert len(events_of(cluster, "unlucky")) == 1, "a restarted reconciler continues the count"


async def test_a_deleted_namespace_loses_only_the_event(cluster: KubeServer, tmp_path: Path) -> None:
    metrics = Metrics()
    await written(cluster, tmp_path, list(Node().attach(container(1), Pod("nowhere", "web", "u"))), metrics)
    assert metrics.registry.get_sample_value("plumbline_reconciler_pod_events_dropped_total") == 2
