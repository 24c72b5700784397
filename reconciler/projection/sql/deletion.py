"""Delete rows about what ended long ago, a few at a time.

Deleted are: closed sandboxes, released addresses, the history of drift, leaks and anomalies, and the published statuses
of pods that are not live. Live sandboxes, open intents and open leaks remain, however old. An event for a deleted
sandbox is treated as its first event.
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
    """The result of one step."""

    rows: int
    containers: frozenset[ContainerId]
    """Containers with a deleted sandbox."""
    more: bool
    """True if older rows may remain."""


def forget(connection: sa.Connection, before: str, limit: int) -> Forgotten:
    """Delete at most *limit* rows of each kind that ended before *before*, RFC 3339; return what was deleted."""
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


# Module constants: SQLAlchemy builds a statement in more time than SQLite executes it.

_IS_CLOSED = sa.text("NOT sandboxes.live")  # the exact text of the index's condition
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
