"""Fold the whole ledger again, by nothing but ``events.fold``, in little memory."""

from __future__ import annotations

from contextlib import aclosing

from events import subjects
from events.fold import SandboxKey, State
from events.ledger.ledger import Ledger
from events.schema import (
    NO_NODE,
    NodeName,
    Stored,
)
from reconciler.projection.fold.rows import status_row
from reconciler.verify.spill_store import SpillStore, StatusRows


class Replay:
    """What follows from the events of a ledger up to ``sequence``; of *node* alone if one is given."""

    def __init__(self, ledger: Ledger, node: NodeName = NO_NODE) -> None:
        self.ledger = ledger
        self.node = node
        self.shelf = SpillStore()
        self.words = StatusRows()
        """The last word of the ledger about each pod's network-status."""
        self.state = State(keep_closed=True, sandboxes=self.shelf)
        self.drifting: dict[SandboxKey, None] = {}
        """Sandboxes that their node differs from, as of the last look; the longest first."""
        self.live: dict[SandboxKey, NodeName] = {}
        """Sandboxes that hold something, and where."""
        self.latest: dict[NodeName, Stored] = {}
        """The last event of each node."""
        self.oldest: dict[NodeName, int] = {}
        """The sequence of the first event of each node that the ledger still has."""
        self.sequence = 0
        self.events = 0

    async def go_on(self, end: int) -> None:
        """Apply what the ledger has up to *end*. Raises LedgerUnavailableError."""
        done = self.sequence
        if end <= done:
            return
        # A node's part and the reconciler's are read one after the other: neither's fold depends on the other's events.
        nodes = (self.node, NO_NODE) if self.node else (None,)
        for node in nodes:
            self.state.sequence = done
            async with aclosing(self.ledger.read(subjects.pattern(node=node), done)) as events:
                async for stored in events:
                    if stored.sequence > end:
                        break
                    self._apply(stored)
        self.sequence = end

    def close(self) -> None:
        """Let go of what was put away."""
        self.shelf.close()
        self.words.close()

    def _apply(self, stored: Stored) -> None:
        self.events += 1
        self.shelf.at = stored.sequence
        sandbox = self.state.apply(stored)
        if sandbox is not None:
            if sandbox.holds_resources:
                self.live[sandbox.key] = sandbox.node
            else:
                self.live.pop(sandbox.key, None)
            if sandbox.drifts:
                self.drifting.setdefault(sandbox.key)
            else:
                self.drifting.pop(sandbox.key, None)
        if stored.event.node:
            self.latest[stored.event.node] = stored
            self.oldest.setdefault(stored.event.node, stored.sequence)
        if (row := status_row(stored)) is not None:
            self.words.put(row)
