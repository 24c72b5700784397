"""Forget what has been over for long, some rows at a time.

That is sandboxes that hold nothing any more, addresses that were let go of, what was said of drift, leaks and events
that did not fit, and what was published of pods that have nothing on a node. Whatever is held, open or awaited stays,
however old it is. Should an event come for a sandbox that was forgotten, it is as if it were the first of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from events.schema import ContainerId
from reconciler.projection.sql.tables import (
    addresses,
    anomalies,
    attachments,
    drift_history,
    leak_history,
    pending,
    position,
    sandboxes,
    statuses,
)


class Forgotten(NamedTuple):
    """What went."""

    rows: int
    containers: frozenset[ContainerId]
    """Those of whose sandboxes one went."""
    more: bool
    """Whether there may be more that is as old."""


def forget(connection: sa.Connection, before: str, limit: int) -> Forgotten:
    """Delete at most *limit* rows of each kind that were over *before*, RFC 3339; return what went."""
    found = connection.execute(_CLOSED, {"before": before, "limit": limit}).all()
    gone = [{"id": row.container_id, "name": row.ifname} for row in found]
    if gone:
        connection.execute(_ATTACHMENTS_OF, gone)
        connection.execute(_SANDBOX, gone)
    given = {"before": before, "limit": limit}
    counts = [len(gone), *(connection.execute(old, given).rowcount for old in _OLD)]
    connection.execute(_NOTED, {"over": before})
    containers = frozenset(ContainerId(row.container_id) for row in found)
    return Forgotten(sum(counts), containers, any(count >= limit for count in counts))


def _some(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.Delete:
    keys = list(table.primary_key)
    chosen = sa.select(*keys).where(*conditions).limit(sa.bindparam("limit"))
    return sa.delete(table).where(sa.tuple_(*keys).in_(chosen))


def _before(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    return column < sa.bindparam("before")


# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.

_IS_CLOSED = sa.text("NOT sandboxes.live")  # in the words of the index
_CLOSED = (
    sa.select(sandboxes.c.container_id, sandboxes.c.ifname)
    .where(_IS_CLOSED, _before(sandboxes.c.changed_at))
    .where(~sa.exists().where(pending.c.container_id == sandboxes.c.container_id))
    .order_by(sandboxes.c.changed_at)
    .limit(sa.bindparam("limit"))
)
_SANDBOX = sa.delete(sandboxes).where(
    sandboxes.c.container_id == sa.bindparam("id"), sandboxes.c.ifname == sa.bindparam("name")
)
_ATTACHMENTS_OF = sa.delete(attachments).where(
    attachments.c.container_id == sa.bindparam("id"), attachments.c.sandbox_ifname == sa.bindparam("name")
)
_NOTED = sa.update(position).values(forgotten=sa.bindparam("over")).where(position.c.forgotten < sa.bindparam("over"))
_OLD = (
    _some(addresses, addresses.c.until.is_not(None), _before(addresses.c.until)),
    _some(drift_history, _before(drift_history.c.at)),
    _some(leak_history, _before(leak_history.c.at)),
    _some(anomalies, _before(anomalies.c.at)),
    _some(
        statuses,
        _before(statuses.c.at),
        ~sa.exists().where(
            sandboxes.c.namespace == statuses.c.namespace, sandboxes.c.pod == statuses.c.pod, sa.text("sandboxes.live")
        ),
    ),
)
