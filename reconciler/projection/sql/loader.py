"""Load the rows that a batch can touch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from events.fold import Pending
from events.schema import EventId, NodeName, decode
from reconciler.projection.fold.batch import LeakKey, Loaded, Needed
from reconciler.projection.fold.rows import leaked_of, sandbox_of
from reconciler.projection.sql.key_lookup import is_one_of, key_parameters
from reconciler.projection.sql.tables import leaks, nodes, pending, sandboxes


class Loader:
    """Reads the tables of one database dialect.

    The constructor builds the statements once: SQLAlchemy builds a statement in more time than SQLite executes it.
    """

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._sandboxes = sa.select(sandboxes.c.created, sandboxes.c.fold).where(
            is_one_of(dialect, sandboxes.c.container_id)
        )
        self._pending = sa.select(pending.c.sequence, pending.c.event).where(is_one_of(dialect, pending.c.event_id))
        self._nodes = sa.select(nodes.c.node, nodes.c.epoch, nodes.c.command).where(is_one_of(dialect, nodes.c.node))
        self._leaks = sa.select(leaks.c.node, leaks.c.fold).where(is_one_of(dialect, leaks.c.node, leaks.c.leak_id))

    def load(self, connection: sa.Connection, what: Needed, loaded: Loaded) -> None:
        """Read the rows of *what* into *loaded*. Raises msgspec.MsgspecError."""
        for created, fold in self._rows(connection, self._sandboxes, what.containers):
            sandbox = sandbox_of(fold)
            loaded.sandboxes[sandbox.key], loaded.created[sandbox.key] = sandbox, created
        for sequence, event in self._rows(connection, self._pending, what.intents):
            intent = decode(event)
            loaded.pending[EventId(intent.id)] = Pending(intent, sequence)
        for node, epoch, command in self._rows(connection, self._nodes, what.nodes):
            loaded.epochs[NodeName(node)], loaded.commands[NodeName(node)] = epoch, command
        for node, fold in self._rows(connection, self._leaks, what.leaks):
            leaked = leaked_of(fold)
            loaded.leaks[NodeName(node), leaked.observed.leak.id] = leaked

    def _rows(
        self, connection: sa.Connection, chosen: Any, wanted: Collection[str] | Collection[LeakKey]
    ) -> Iterable[Any]:
        return connection.execute(chosen, key_parameters(self._dialect, wanted)) if wanted else ()
