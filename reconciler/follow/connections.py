"""Open what the reconciler's processes talk to, as the configuration says."""

from __future__ import annotations

from pathlib import Path

from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM, StreamConfig, hub_stream
from events.process.settings import LedgerAddress, Settings, hub_address, ledger_address
from reconciler.settings import ReconcilerSettings
from reconciler.status.folder_sink import FolderSink
from reconciler.status.sink import StatusSink


def whole_ledger(settings: Settings) -> tuple[LedgerAddress, StreamConfig]:
    """Return where the whole ledger is, and as which stream: the hub's where there is one, else the node's.

    Raises SettingsError.
    """
    if (hub := hub_address(settings)) is not None:
        return hub, hub_stream(hub_replicas(settings))
    return ledger_address(settings), NODE_STREAM


async def connect(settings: ReconcilerSettings, name: str) -> JetStreamLedger:
    """Return the whole ledger. Raises SettingsError, LedgerError."""
    address, config = whole_ledger(settings)
    return await JetStreamLedger.connect(address, config=config, name=name)


def hub_replicas(settings: Settings) -> int:
    """Return how many servers hold each event and command."""
    return settings.hub.replicas if settings.hub is not None else 1


async def open_publisher(settings: ReconcilerSettings) -> StatusSink | None:
    """Return where statuses go; None: nowhere. Raises SettingsError."""
    if settings.manifests:
        return FolderSink(Path(settings.manifests))
    if (cluster := settings.reconciler.kubernetes) is None:
        return None
    from reconciler.status.kubernetes.annotation_sink import AnnotationSink  # noqa: PLC0415  # 50 MB that only its user pays

    node = settings.node_name if settings.hub is None else ""  # else its ledger has all nodes
    return await AnnotationSink.connect(cluster.kubeconfig, node)
