"""The worker's link to the hub: the uplink of its events, and the commands and notices that come down.

No append to the node's ledger waits for it; an answer may wait for the status. It connects in the background; every
failure is retried and none ends the worker.
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
from events.process.settings import LedgerAddress, Settings, hub_address
from events.schema import NodeName

log = structlog.get_logger(__name__)

_FIRST_PAUSE = 1.0
_LAST_PAUSE = 60.0
_SETTLE_TIMEOUT = 2.0
"""Seconds that the hub gets to take the last events: a node that is drained may not come back."""
_PATIENCE = 10.0
"""Seconds that a call is retried: a cluster that lost its leader needs some to elect another."""


class HubLink:
    """Keeps the connection, copies the node's *ledger* over it, and gives access to the hub's commands and notices."""

    def __init__(self, address: LedgerAddress, replicas: int, ledger: JetStreamLedger, node: NodeName) -> None:
        self._address = address
        self._config = hub_stream(replicas)
        self._ledger = ledger
        self._node = node
        self._started = time.time()
        self._connected_once = asyncio.Event()
        self._hub: JetStreamLedger | None = None
        self._uplink: Uplink | None = None

    @classmethod
    def configured(cls, settings: Settings, ledger: JetStreamLedger) -> HubLink | None:
        """Return the link of the node with *ledger*; None: there is no hub."""
        address = hub_address(settings)
        if address is None or settings.hub is None:
            return None
        return cls(address, settings.hub.replicas, ledger, NodeName(settings.node_name))

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._hub is not None and self._hub.connected

    @property
    def done(self) -> int:
        """The sequence up to which the hub has the node's events; 0 while that is unknown."""
        return 0 if self._uplink is None else self._uplink.done

    @property
    def lag_events(self) -> float:
        """The events that the hub is behind, at most; not a number while that is unknown."""
        return float("nan") if self._uplink is None else self._uplink.lag.events

    @property
    def lag_seconds(self) -> float:
        """The age of the first event that the hub does not have; while that is unknown, the time since the start."""
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
                    ensure_stream=False,  # the reconciler makes it: a node may only write its own events
                    name=f"worker-{self._node}",
                    patience=_PATIENCE,
                    observe_anomaly=self._ledger.decoder.observe,
                )
            except LedgerError as error:
                log.warning("hub_not_connected", error=str(error), retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
        self._uplink = Uplink(self._ledger, self._hub, self._node)
        self._connected_once.set()
        while True:
            try:
                await self._uplink.run()
            except Exception:  # rule: an error of the copy must not stop attaching
                log.exception("uplink_broke", retry_in=_LAST_PAUSE)
                await asyncio.sleep(_LAST_PAUSE)

    async def settle(self) -> None:
        """Return once the hub has all events of the node's ledger, or after two seconds."""
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT):
                end = await self._ledger.last_sequence()
                while self.connected and self.done < end:  # noqa: ASYNC110  # only a worker that stops polls
                    await asyncio.sleep(0.05)
        except (LedgerError, TimeoutError) as error:
            log.info("hub_not_settled", error=str(error) or f"it took more than {_SETTLE_TIMEOUT:g} s", done=self.done)

    async def commands(self) -> JetStreamCommands:
        """Return the hub's commands, once there is a connection."""
        await self._connected_once.wait()
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
