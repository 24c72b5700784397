"""Open the source of pods and networks of the configuration. Each costs memory, so only the used one is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.cluster.source import Source

log = structlog.get_logger(__name__)

_READY_TIMEOUT = 5.0
"""Seconds that the start waits for pods and networks; after that the copy on disk and single look-ups serve."""


class ApiServer(Protocol):
    """How to reach the API server, as ``nodeworker.settings`` has it."""

    @property
    def kubeconfig(self) -> str:
        """Empty: the service account of the worker's own pod."""
        ...

    @property
    def pod_wait(self) -> float:
        """Seconds to wait until the watch has a pod."""
        ...


def open_source(
    manifests: str, cluster: ApiServer | None, node: str, state_dir: Path, metrics: WorkerMetrics
) -> Source | None:
    """Return the source: the folder *manifests*, or the API server *cluster*; None: there is none.

    Raises SettingsError.
    """
    if manifests:
        from nodeworker.planning.cluster.manifests import Manifests  # noqa: PLC0415

        return Manifests(Path(manifests))
    if cluster is None:
        return None
    from nodeworker.planning.cluster.apiserver.credentials import from_kubeconfig, in_cluster  # noqa: PLC0415
    from nodeworker.planning.cluster.apiserver.source import Kubernetes  # noqa: PLC0415

    credentials = from_kubeconfig(Path(cluster.kubeconfig)) if cluster.kubeconfig else in_cluster()
    source = Kubernetes(credentials, node, state_dir / "cluster", pod_wait=cluster.pod_wait)
    metrics.watch_cluster(source.watches)
    return source


async def ready(source: Source) -> None:
    """Return once *source* has cached all objects, or after a few seconds."""
    if not await source.ready(_READY_TIMEOUT):
        log.warning("source_not_ready", after=_READY_TIMEOUT)
