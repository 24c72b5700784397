"""Find and open the ledger of the configuration, for the reconciler and the commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from events.ledger.anomalies import Observe
from events.ledger.ledger import LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM, StreamConfig, hub_stream
from events.process.backoff import delays
from events.process.settings import LedgerAddress, Settings, SettingsError, hub_address, ledger_address

log = structlog.get_logger(__name__)

T = TypeVar("T")


def whole_ledger(settings: Settings) -> tuple[LedgerAddress, StreamConfig]:
    """Return the address and stream of the whole ledger: the hub's if there is a hub, else the node's.

    Raises SettingsError.
    """
    if (hub := hub_address(settings)) is not None:
        return hub, hub_stream(hub_replicas(settings))
    return ledger_address(settings), NODE_STREAM


def nearest_ledger(settings: Settings) -> tuple[LedgerAddress, StreamConfig]:
    """Return the address and stream of the node's ledger, or of the hub's on a machine without a node's ledger.

    Raises SettingsError.
    """
    try:
        return ledger_address(settings), NODE_STREAM
    except SettingsError:
        if settings.hub is None:
            raise
        return whole_ledger(settings)


async def connect(settings: Settings, name: str, observe_anomaly: Observe) -> JetStreamLedger:
    """Return a connection to the whole ledger. Raises SettingsError, LedgerError."""
    address, config = whole_ledger(settings)
    return await JetStreamLedger.connect(address, config=config, name=name, observe_anomaly=observe_anomaly)


def hub_replicas(settings: Settings) -> int:
    """Return the number of servers that store each event and command."""
    return settings.hub.replicas if settings.hub is not None else 1


async def retry_until_reachable(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of *work*. Retries while the ledger does not answer."""
    for delay in delays():
        try:
            return await work()
        except LedgerUnavailableError as error:
            log.warning("ledger_away", error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
    raise AssertionError("unreachable")
