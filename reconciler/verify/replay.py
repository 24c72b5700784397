"""Fold the whole ledger again with ``events.fold`` only, in little memory."""

from __future__ import annotations

from contextlib import aclosing

from events import subjects
from events.fold import SandboxKey, State
from events.ledger.ledger import Ledger
from events.schema import (
    NO_NODE,
    AttachCompleted,
    AttachWarning,
    NodeName,
    Stored,
)
from reconciler.projection.fold.rows import status_row
from reconciler.verify.spill_store import SpillStore, StatusRows


class Replay:
    """The fold of a ledger up to ``sequence``; with *node*, only of that node's events."""

    def __init__(self, ledger: Ledger, node: NodeName = NO_NODE) -> None:
        self.ledger = ledger
        self.node = node
        self.sandboxes = SpillStore()
        self.status_rows = StatusRows()
        """The last record in the ledger about each pod's network-status."""
        self.state = State(keep_closed=True, sandboxes=self.sandboxes)
        self.drifting: dict[SandboxKey, None] = {}
        """Sandboxes with drift, as of the last observation; the oldest drift first."""
        self.live: dict[SandboxKey, NodeName] = {}
        """Live sandboxes and their nodes."""
        self.warnings: dict[SandboxKey, tuple[AttachWarning, ...]] = {}
        """The warnings of the attaches of live sandboxes."""
        self.latest: dict[NodeName, Stored] = {}
        """The last event of each node."""
        self.oldest: dict[NodeName, int] = {}
        """Sequence of the first event of each node that the ledger still has."""
        self.sequence = 0
        self.events = 0

    async def advance(self, end: int) -> None:
        """Apply the events up to *end*. Raises LedgerUnavailableError."""
        done = self.sequence
        if end <= done:
            return
        # The events of the node and of the reconciler are read one after the other: their folds are independent.
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
        """Delete the temporary files."""
        self.sandboxes.close()
        self.status_rows.close()

    def _apply(self, stored: Stored) -> None:
        self.events += 1
        self.sandboxes.sequence = stored.sequence
        sandbox = self.state.apply(stored)
        if sandbox is not None:
            if sandbox.holds_resources:
                self.live[sandbox.key] = sandbox.node
            else:
                self.live.pop(sandbox.key, None)
                self.warnings.pop(sandbox.key, None)
            data = stored.event.data
            if isinstance(data, AttachCompleted) and data.warnings and stored.event.cause == sandbox.intent:
                self.warnings[sandbox.key] = data.warnings
            if sandbox.drifts:
                self.drifting.setdefault(sandbox.key)
            else:
                self.drifting.pop(sandbox.key, None)
        if stored.event.node:
            self.latest[stored.event.node] = stored
            self.oldest.setdefault(stored.event.node, stored.sequence)
        if (row := status_row(stored)) is not None:
            self.status_rows.put(row)
