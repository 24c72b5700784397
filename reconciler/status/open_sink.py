"""Open the sinks of the configuration for network-statuses and for Kubernetes Events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.metrics import Metrics
from reconciler.settings import ReconcilerSettings
from reconciler.status.folder_sink import FolderSink
from reconciler.status.sink import StatusSink

if TYPE_CHECKING:
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter


async def open_sink(settings: ReconcilerSettings) -> StatusSink | None:
    """Return the sink for statuses; None: statuses are not published. Raises SettingsError."""
    if settings.manifests:
        return FolderSink(Path(settings.manifests))
    if (cluster := settings.reconciler.kubernetes) is None:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # costs 50 MB

    node = settings.node_name if settings.hub is None else ""  # the ledger of a hub has all nodes
    return await AnnotationSink.connect(cluster.kubeconfig, node)


def open_pod_events(sink: StatusSink, settings: ReconcilerSettings, metrics: Metrics) -> PodEventWriter | None:
    """Return the writer of Kubernetes Events; None without an API server, or when the configuration turns them off."""
    if settings.reconciler.kubernetes is None or not settings.reconciler.kubernetes.events:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # costs 50 MB
    from reconciler.status.kubernetes.pod_event_writer import PodEventWriter  # noqa: PLC0415

    assert isinstance(sink, AnnotationSink)
    return PodEventWriter(sink.api, metrics)
