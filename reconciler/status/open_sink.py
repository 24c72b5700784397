"""Open the sink for network-statuses of the configuration."""

from __future__ import annotations

from pathlib import Path

from reconciler.settings import ReconcilerSettings
from reconciler.status.folder_sink import FolderSink
from reconciler.status.sink import StatusSink


async def open_sink(settings: ReconcilerSettings) -> StatusSink | None:
    """Return the sink for statuses; None: statuses are not published. Raises SettingsError."""
    if settings.manifests:
        return FolderSink(Path(settings.manifests))
    if (cluster := settings.reconciler.kubernetes) is None:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # costs 50 MB

    node = settings.node_name if settings.hub is None else ""  # the ledger of a hub has all nodes
    return await AnnotationSink.connect(cluster.kubeconfig, node)
