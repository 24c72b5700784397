"""Load what a batch can touch."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from events.fold import Pending
from events.schema import EventId, NodeName, decode
from reconciler.projection.project import Loaded, Needed
from reconciler.projection.rows import leaked_of, sandbox_of
from reconciler.projection.tables import leaks, nodes, pending, sandboxes

# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.

_SANDBOXES = sa.select(sandboxes.c.created, sandboxes.c.fold).where(
    sandboxes.c.container_id.in_(sa.bindparam("ids", expanding=True))
)
_PENDING = sa.select(pending.c.sequence, pending.c.event).where(
    pending.c.event_id.in_(sa.bindparam("ids", expanding=True))
)
_NODES = sa.select(nodes.c.node, nodes.c.epoch, nodes.c.command).where(
    nodes.c.node.in_(sa.bindparam("ids", expanding=True))
)
_LEAKS = sa.select(leaks.c.node, leaks.c.fold).where(
    sa.tuple_(leaks.c.node, leaks.c.leak_id).in_(sa.bindparam("keys", expanding=True))
)


def load(connection: sa.Connection, what: Needed, loaded: Loaded) -> None:
    """Put *what*, as the tables have it, into *loaded*. Raises msgspec.MsgspecError."""
    rows: Any
    if what.containers:
        rows = connection.execute(_SANDBOXES, {"ids": list(what.containers)})
        for created, fold in rows:
            sandbox = sandbox_of(fold)
            loaded.sandboxes[sandbox.key], loaded.created[sandbox.key] = sandbox, created
    if what.intents:
        rows = connection.execute(_PENDING, {"ids": list(what.intents)})
        for sequence, event in rows:
            intent = decode(event)
            loaded.pending[EventId(intent.id)] = Pending(intent, sequence)
    if what.nodes:
        rows = connection.execute(_NODES, {"ids": list(what.nodes)})
        for node, epoch, command in rows:
            loaded.epochs[NodeName(node)], loaded.commands[NodeName(node)] = epoch, command
    if what.leaks:
        rows = connection.execute(_LEAKS, {"keys": list(what.leaks)})
        for node, fold in rows:
            leaked = leaked_of(fold)
            loaded.leaks[NodeName(node), leaked.observed.leak.id] = leaked
