"""What the leader acts with during its term: a fenced ledger, fenced commands, and a check of its leadership.

The ledger and the command stream refuse writes of an earlier leader. A write at the API server has no such fence.
Therefore the leader checks the elections every second, and writes only if the last check is younger than
``CHECK_VALID``. After a freeze, or without the ledger, it must check first.
"""

from __future__ import annotations

import asyncio
import time

from events.ledger.commands import Commands
from events.ledger.election import FencedCommands, FencedLedger, Mandate, last_election
from events.ledger.ledger import ConflictError, Expect, Ledger
from events.schema import Event

CHECK_VALID = 2.0
"""Seconds for which a check of the elections is valid. Less than ``PRESENCE_LOST``: it ends before another one acts."""


class Term:
    """The term of one elected reconciler."""

    def __init__(self, ledger: Ledger, commands: Commands, mandate: Mandate, checked_at: float) -> None:
        self.mandate = mandate
        self.over = asyncio.Event()
        """Set when this process learns of a later election."""
        self.ledger: Ledger = _TermLedger(ledger, mandate, self.over)
        self.commands: Commands = _TermCommands(commands, mandate, self.over)
        self._unfenced = ledger
        self._checked_at = checked_at

    async def confirm(self) -> None:
        """Return if this reconciler was the leader at most ``CHECK_VALID`` seconds ago.

        Raises ConflictError after a later election, LedgerUnavailableError when the ledger does not answer.
        """
        if now() - self._checked_at > CHECK_VALID:
            await self.check()

    async def check(self) -> None:
        """Check whether this election is still the newest. Raises the errors of ``confirm``."""
        began = now()
        newest = await last_election(self._unfenced)
        if newest is None or newest.event.id != self.mandate.event.id:
            self.over.set()
            raise ConflictError("another reconciler was elected")
        self._checked_at = began


class _TermLedger(FencedLedger):
    """Ends the term when the fence refuses a write."""

    def __init__(self, ledger: Ledger, mandate: Mandate, over: asyncio.Event) -> None:
        super().__init__(ledger, mandate)
        self._over = over

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        try:
            return await super().append(event, expect)
        except ConflictError:
            self._over.set()
            raise


class _TermCommands(FencedCommands):
    """Ends the term when the fence refuses a command."""

    def __init__(self, commands: Commands, mandate: Mandate, over: asyncio.Event) -> None:
        super().__init__(commands, mandate)
        self._over = over

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        try:
            return await super().send(command, expect)
        except ConflictError:
            self._over.set()
            raise


def now() -> float:
    """Return seconds of a monotonic clock that also counts the time of a suspended machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
