"""Where commands that read the ledger find it."""

from __future__ import annotations

import asyncio

from events.jetstream import JetStreamLedger
from events.ledger import LedgerError
from events.settings import Settings, ledger_address

_PATIENCE = 5.0


async def connect(settings: Settings) -> JetStreamLedger:
    """Return the ledger. Raises SettingsError, and LedgerError when it does not answer soon."""
    address = ledger_address(settings)
    try:
        async with asyncio.timeout(_PATIENCE):
            return await JetStreamLedger.connect(address.url, address.token, name="plumbline-cli")
    except TimeoutError:
        raise LedgerError(f"the ledger at {address.url} does not answer: is nats-server running?") from None
