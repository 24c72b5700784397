"""Where commands that read the ledger find it."""

from __future__ import annotations

import asyncio

from events.jetstream import JetStreamLedger
from events.ledger import LedgerError
from events.settings import LedgerAddress, Settings, SettingsError, hub_address, ledger_address
from events.streams import NODE_STREAM, StreamConfig, hub_stream

_PATIENCE = 5.0


def nearest_ledger(settings: Settings) -> tuple[LedgerAddress, StreamConfig]:
    """Return where the ledger is, and as which stream: the node's, or the hub's where there is none of a node.

    Raises SettingsError.
    """
    try:
        return ledger_address(settings), NODE_STREAM
    except SettingsError:
        if (hub := hub_address(settings)) is None:
            raise
        return hub, hub_stream(1)


async def connect(address: LedgerAddress, config: StreamConfig) -> JetStreamLedger:
    """Return the ledger at *address*. Raises LedgerError when it does not answer soon."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await JetStreamLedger.connect(
                address.url, address.token, user=address.user, config=config, make=False, name="plumbline-cli"
            )
    except TimeoutError:
        raise LedgerError(f"the ledger at {address.url} does not answer: is nats-server running?") from None
