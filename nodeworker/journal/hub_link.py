"""The worker's end of the cluster's ledger: what goes up and what comes down over one connection.

Nothing on the way of an attach waits for it. It is made in the background, for as long as that takes, and whatever
fails here is tried again and never ends the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import structlog

from events.ledger.ledger import LedgerError, LedgerUnavailableError
from events.ledger.notices import Notice
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.streams import hub_stream
from events.nats.uplink import Uplink
from events.process.settings import LedgerAddress
from events.schema import NodeName

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 1.0
_LAST_PAUSE = 60.0
_PATIENCE = 10.0
"""Seconds that a call is repeated: a cluster that lost its leader takes some to have another."""


class HubLink:
    """Keeps the connection, and copies the node's *ledger* over it. ``Notices`` of the cluster are heard here."""

    def __init__(self, address: LedgerAddress, replicas: int, ledger: JetStreamLedger, node: NodeName) -> None:
        self._address = address
        self._config = hub_stream(replicas)
        self._ledger = ledger
        self._node = node
        self._started = time.time()
        self._there = asyncio.Event()
        self._hub: JetStreamLedger | None = None
        self._uplink: Uplink | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._hub is not None and self._hub.connected

    @property
    def done(self) -> int:
        """The hub has the node's events up to this sequence; 0 while nobody knows."""
        return 0 if self._uplink is None else self._uplink.done

    @property
    def lag_events(self) -> float:
        """How many events the hub is behind, at most; not a number while nobody knows."""
        return float("nan") if self._uplink is None else self._uplink.lag.events

    @property
    def lag_seconds(self) -> float:
        """How old the first event is that the hub has not got. While nobody knows: how long that has been so."""
        if self._uplink is None:
            return time.time() - self._started
        since = self._uplink.lag.since
        return max(0.0, time.time() - since / 1e9) if since else 0.0

    async def run(self) -> None:
        """Connect and copy, without end."""
        pause = _FIRST_PAUSE
        while self._hub is None:
            try:
                self._hub = await JetStreamLedger.connect(
                    self._address,
                    config=self._config,
                    ensure_stream=False,  # that is the reconciler's: a node may write its own events and nothing else
                    name=f"worker-{self._node}",
                    patience=_PATIENCE,
                )
            except LedgerError as error:
                log.warning("hub_not_connected", error=str(error), retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
        self._uplink = Uplink(self._ledger, self._hub, self._node)
        self._there.set()
        while True:
            try:
                await self._uplink.run()
            except Exception:  # rule: what goes wrong with the copy is no reason to attach nothing
                log.exception("uplink_broke", retry_in=_LAST_PAUSE)
                await asyncio.sleep(_LAST_PAUSE)

    async def settle(self, patience: float) -> None:
        """Return when the hub has all that the node's ledger has, or after *patience* seconds."""
        try:
            async with asyncio.timeout(patience):
                end = await self._ledger.last_sequence()
                while self.connected and self.done < end:  # noqa: ASYNC110  # only a worker that stops asks
                    await asyncio.sleep(0.05)
        except (LedgerError, TimeoutError) as error:
            log.info("hub_not_settled", error=str(error) or f"it took more than {patience:g} s", done=self.done)

    async def commands(self) -> JetStreamCommands:
        """Return what comes down, once there is a connection."""
        await self._there.wait()
        assert self._hub is not None
        return JetStreamCommands(self._hub)

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """See ``Notices.publish``."""
        if self._hub is not None:
            await self._hub.publish(subject, payload)

    def subscribe(self, *subjects: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """See ``Notices.subscribe``."""
        if self._hub is None:
            raise LedgerUnavailableError("the hub was not reached yet")
        return self._hub.subscribe(*subjects)

    async def close(self) -> None:
        """End the connection."""
        if self._hub is not None:
            await self._hub.close()
