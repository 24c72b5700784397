"""Purge from the node's ledger what ended long ago."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import aclosing

import structlog

from events.forgetting import Forgetting
from events.ledger.ledger import Ledger, LedgerError
from events.schema import unix_ns
from nodeworker.journal.journal import Journal

log = structlog.get_logger(__name__)

_INTERVAL = 3600.0


class Retention:
    """Purges sandboxes that ended more than *hours* ago.

    *copied* returns the sequence up to which the hub has the node's ledger: nothing behind it is purged. None: there
    is no hub.
    """

    def __init__(
        self, ledger: Ledger, journal: Journal, hours: float, copied: Callable[[], float] | None = None
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._hours = hours
        self._copied = copied or (lambda: math.inf)

    async def run(self) -> None:
        """Purge about once an hour, without end."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self.purge(time.time_ns() - int(self._hours * 3600e9))
            except LedgerError as error:
                log.warning("retention_postponed", error=str(error))

    async def purge(self, before: int) -> int:
        """Purge what had ended by *before*, in ns since 1970; return the number of containers.

        A container ID can come back (podman restarts a container under its ID), so a container that holds something
        keeps all its events. Raises LedgerUnavailableError.
        """
        live = frozenset(key.container_id for key in self._journal.state.sandboxes)
        forgetting, copied = Forgetting(self._journal.node, live), self._copied()
        async with aclosing(self._ledger.read()) as events:
            async for stored in events:
                if unix_ns(stored.event.at) >= before or stored.sequence > copied:
                    break
                forgetting.add(stored)
        purged = [await self._ledger.purge(*purge) for purge in forgetting.purges()]
        log.info("retention_done", sandboxes=forgetting.containers, events=sum(purged))
        return forgetting.containers
