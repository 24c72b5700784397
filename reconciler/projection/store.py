"""Keep the projection in a database: a batch and its position in one transaction.

Everything here blocks; ``reconciler.reconcile`` calls it on one thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from events.fold import Pending, Sandbox, SandboxKey
from events.ledger import Stored
from events.schema import ContainerId, EventId, IfName, NodeName, decode
from reconciler.projection.engine import ProjectionError, open_engine, transaction
from reconciler.projection.project import Changes, Loaded, Needed, Row, needed, project, sandbox_of
from reconciler.projection.schema import upgrade
from reconciler.projection.tables import anomalies, attachments, nodes, pending, position, sandboxes
from reconciler.status import PodName

_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Store:
    """The rows of one ledger. *ledger* is the name of its stream."""

    def __init__(self, url: str, ledger: str) -> None:
        self._url = url
        self._engine = open_engine(url)
        self._ledger = ledger

    def prepare(self) -> None:
        """Make the tables what this code works with. Raises DatabaseAwayError, ProjectionError."""
        upgrade(self._url)

    def position(self) -> int:
        """Return the sequence up to which the ledger is projected.

        Raises DatabaseAwayError, and ProjectionError when the rows are another ledger's.
        """
        with self._transaction() as connection:
            return self._position(connection)

    def apply(self, batch: Sequence[Stored]) -> Changes | None:
        """Project *batch*; return what changed, None when all of it was there. Raises as ``position``."""
        with self._transaction() as connection:
            done = self._position(connection)
            fresh = [stored for stored in batch if stored.sequence > done]
            if not fresh:
                return None
            changes = project(_load(connection, needed(fresh), done), fresh)
            self._write(connection, changes)
        return changes

    def skip_to(self, sequence: int) -> None:
        """Note that there is nothing more to read up to *sequence*. Raises as ``position``."""
        with self._transaction() as connection:
            if sequence > self._position(connection):
                self._set_position(connection, sequence)

    def sandboxes_of(self, pod: PodName) -> list[Sandbox]:
        """Return what *pod* has on its node, oldest first. Raises DatabaseAwayError."""
        chosen = (
            sa.select(sandboxes.c.fold)
            .where(sandboxes.c.namespace == pod.namespace, sandboxes.c.pod == pod.name, sandboxes.c.live)
            .order_by(sandboxes.c.created)
        )
        with self._transaction() as connection:
            return [sandbox_of(fold) for fold in connection.scalars(chosen)]

    def live_pods(self) -> set[PodName]:
        """Return the pods that have something on a node. Raises DatabaseAwayError."""
        chosen = sa.select(sandboxes.c.namespace, sandboxes.c.pod).where(sandboxes.c.live, sandboxes.c.pod != "")
        with self._transaction() as connection:
            return {PodName(namespace, name) for namespace, name in connection.execute(chosen)}

    def live_phases(self) -> Mapping[str, int]:
        """Return how many live sandboxes are in each phase. Raises DatabaseAwayError."""
        phase = sandboxes.c.phase
        chosen = sa.select(phase, sa.func.count().label("live")).where(sandboxes.c.live).group_by(phase)
        with self._transaction() as connection:
            return {row.phase: row.live for row in connection.execute(chosen)}

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with transaction(self._engine) as connection:
                yield connection
        except msgspec.MsgspecError as error:
            raise ProjectionError(
                f"the database has rows that this version of Plumbline can't read ({error}): "
                "move it away to have it made again from the ledger"
            ) from error

    def _position(self, connection: sa.Connection) -> int:
        row = connection.execute(sa.select(position).with_for_update()).one_or_none()
        if row is None:
            return 0
        if row.ledger != self._ledger:
            raise ProjectionError(
                f"the database is the projection of the ledger {row.ledger}, not of {self._ledger}: "
                "give each ledger a database of its own"
            )
        return row.sequence

    def _write(self, connection: sa.Connection, changes: Changes) -> None:
        keys = [{"id": row["container_id"], "name": row["ifname"]} for row in changes.sandboxes]
        _upsert(connection, sandboxes, changes.sandboxes)
        if keys:
            connection.execute(_DELETE_ATTACHMENTS, keys)
        _upsert(connection, attachments, changes.attachments)
        if changes.closed:
            connection.execute(_DELETE_PENDING, [{"id": event_id} for event_id in changes.closed])
        _upsert(connection, pending, changes.pending)
        _upsert(connection, nodes, changes.nodes)
        _upsert(connection, anomalies, changes.anomalies)
        self._set_position(connection, changes.sequence)

    def _set_position(self, connection: sa.Connection, sequence: int) -> None:
        _upsert(connection, position, [{"ledger": self._ledger, "sequence": sequence}])


_DELETE_ATTACHMENTS = sa.delete(attachments).where(
    attachments.c.container_id == sa.bindparam("id"), attachments.c.sandbox_ifname == sa.bindparam("name")
)
_DELETE_PENDING = sa.delete(pending).where(pending.c.event_id == sa.bindparam("id"))


def _load(connection: sa.Connection, what: Needed, done: int) -> Loaded:
    loaded = Loaded(sequence=done)
    rows: Any = connection.execute(
        sa.select(sandboxes.c.container_id, sandboxes.c.ifname, sandboxes.c.created, sandboxes.c.fold)
        .where(sandboxes.c.container_id.in_(what.containers))
        .order_by(sandboxes.c.created)
    )
    for container_id, ifname, created, fold in rows:
        key = SandboxKey(ContainerId(container_id), IfName(ifname))
        loaded.sandboxes[key], loaded.created[key] = sandbox_of(fold), created
    rows = connection.execute(
        sa.select(pending.c.event_id, pending.c.sequence, pending.c.event).where(pending.c.event_id.in_(what.intents))
    )
    for event_id, sequence, event in rows:
        loaded.pending[EventId(event_id)] = Pending(decode(event), sequence)
    rows = connection.execute(sa.select(nodes.c.node, nodes.c.epoch).where(nodes.c.node.in_(what.nodes)))
    loaded.epochs.update({NodeName(node): epoch for node, epoch in rows})
    return loaded


def _upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    if not rows:
        return
    insert = _INSERT[connection.dialect.name](table)
    keys = [column.name for column in table.primary_key]
    fresh = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=fresh), rows)
