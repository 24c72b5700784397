"""Notices: messages between processes that are not stored. A process that is not subscribed misses them.

They use the connection of the ledger. Subscribers also get each event that is appended to the ledger, under its
subject, so a process that waits for one event needs no reader. Two implementations pass one contract
suite (``tests/integration/events/ledger/test_notices_contract.py``): ``events.ledger.memory`` and
``events.nats.ledger``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

PUBLISHER_PRESENT = "plumbline.presence.publisher"
"""A reconciler publishes this every ``PRESENCE_INTERVAL`` while it can publish statuses."""
RECONCILER_PRESENT = "plumbline.presence.reconciler"
"""The active reconciler publishes this every ``PRESENCE_INTERVAL``, on request, and when it leaves."""
RECONCILER_ASKED = "plumbline.presence.reconciler.ask"
"""Another reconciler asks whether there is an active one."""
PRESENCE_INTERVAL = 1.0
PRESENCE_LOST = 3.0
"""Seconds without a presence notice after which its sender counts as unavailable."""

PENDING_LIMIT = 10_000
"""Largest number of notices that wait for a busy subscriber; beyond it the oldest are dropped."""


class Notice(NamedTuple):
    """One message."""

    subject: str
    payload: bytes


class Notices(Protocol):
    """Publishes and receives messages on subjects, without storing them."""

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Publish one message. While there is no connection it is lost, without error."""
        ...

    def subscribe(self, *subjects: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """Yield the messages on *subjects* (wildcards allowed) in order, from the beginning of the block.

        It continues over reconnects and server restarts; messages meanwhile are missed. Entering the block raises
        LedgerUnavailableError.
        """
        ...
