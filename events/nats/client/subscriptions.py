"""Subscribe to notices, over reconnects.

These are core NATS subscriptions: the server pushes messages and stores none. nats-py renews them when it reconnects,
but not on the connection that replaces one that it gave up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import structlog

from events.ledger.ledger import LedgerUnavailableError
from events.ledger.notices import PENDING_LIMIT, Notice
from events.nats.client.connection import RETRY
from events.nats.client.consumer import Link, Subscription
from events.nats.client.nats_py import Msg

log = structlog.get_logger(__name__)


@asynccontextmanager
async def subscribed(link: Link, subjects: tuple[str, ...]) -> AsyncGenerator[AsyncIterator[Notice], None]:
    """See ``Notices.subscribe``."""
    subscriber = _Subscriber(link, subjects)
    try:
        await subscriber.subscribe()
        yield subscriber
    finally:
        await subscriber.unsubscribe()


class _Subscriber:
    def __init__(self, link: Link, subjects: tuple[str, ...]) -> None:
        self._link = link
        self._subjects = subjects
        self._subscriptions: list[Subscription] = []
        self._arrived: deque[Notice] = deque(maxlen=PENDING_LIMIT)
        self._wake = asyncio.Event()
        self._lost = False

    def __aiter__(self) -> AsyncIterator[Notice]:
        return self

    async def __anext__(self) -> Notice:
        while not self._arrived:
            if self._lost:
                await self._renew()
            self._wake.clear()
            if not self._lost:
                await self._wake.wait()
        return self._arrived.popleft()

    async def subscribe(self) -> None:
        self._lost = False
        for subject in self._subjects:
            self._subscriptions.append(await self._link.subscribe(subject, self._deliver, self._on_lost))

    async def unsubscribe(self) -> None:
        while self._subscriptions:
            await self._subscriptions.pop().unsubscribe()

    async def _renew(self) -> None:
        try:
            await self.unsubscribe()
            await self.subscribe()
        except LedgerUnavailableError as error:
            self._lost = True
            log.info("notices_not_arrived", error=str(error), retry_in=RETRY)
            await asyncio.sleep(RETRY)

    def _deliver(self, msg: Msg, /) -> None:
        self._arrived.append(Notice(msg.subject, msg.data))
        self._wake.set()

    def _on_lost(self) -> None:
        self._lost = True
        self._wake.set()
