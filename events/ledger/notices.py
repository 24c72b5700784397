"""Words between processes that are worth something only now: whoever is not there misses them.

They travel beside the ledger, over the same connection, and are not kept. What was appended to the ledger is heard too,
under its subject, so that who waits for one event needs no reader of its own. Two implementations pass one contract
suite (``tests/integration/events/ledger/test_notices_contract.py``): ``events.ledger.memory`` and
``events.nats.ledger``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

PUBLISHER_PRESENT = "plumbline.presence.publisher"
"""A reconciler says so every ``PRESENCE_INTERVAL`` while it can publish statuses."""
RECONCILER_PRESENT = "plumbline.presence.reconciler"
"""The active reconciler says so every ``PRESENCE_INTERVAL``, whenever it is asked, and when it leaves."""
RECONCILER_ASKED = "plumbline.presence.reconciler.ask"
"""Another one asks whether there is an active one."""
PRESENCE_INTERVAL = 1.0
PRESENCE_LOST = 3.0
"""Seconds of silence after which it counts as away."""

PENDING_LIMIT = 10_000
"""Notices that a hearer who is busy has waiting; the oldest go first."""


class Notice(NamedTuple):
    """Something that was said."""

    subject: str
    payload: bytes


class Notices(Protocol):
    """What is said on subjects, to whoever listens at that moment."""

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Say something once. While the connection is away it is lost, without error."""
        ...

    def subscribe(self, *subjects: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """Yield what is said on *subjects*, wildcards allowed, from the beginning of the block on, each in order.

        It goes on over reconnects and restarts of the server; what is said meanwhile is missed. Entering raises
        LedgerUnavailableError.
        """
        ...
