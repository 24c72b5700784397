"""Where commands that read the ledger find it."""

from __future__ import annotations

from events.nats.streams import NODE_STREAM, StreamConfig
from events.process.settings import LedgerAddress, Settings, SettingsError, ledger_address
from reconciler.follow.connections import whole_ledger


def nearest_ledger(settings: Settings) -> tuple[LedgerAddress, StreamConfig]:
    """Return where the ledger is, and as which stream: the node's, or the hub's where there is none of a node.

    Raises SettingsError.
    """
    try:
        return ledger_address(settings), NODE_STREAM
    except SettingsError:
        if settings.hub is None:
            raise
        return whole_ledger(settings)
