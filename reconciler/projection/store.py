"""Keep the projection in a database: a batch and its position in one transaction.

Everything here blocks; ``reconciler.reconcile`` calls it on one thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.dialects import postgresql, sqlite

from events.fold import Leaked, Pending, Sandbox, SandboxKey
from events.ledger import Stored
from events.schema import ContainerId, EventId, IfName, LeakId, NodeName, decode
from reconciler.due import Published
from reconciler.projection.engine import ProjectionError, open_engine, transaction
from reconciler.projection.project import Changes, Loaded, Needed, needed, project
from reconciler.projection.rows import Row, leak_row, leaked_of, sandbox_of
from reconciler.projection.schema import upgrade
from reconciler.projection.tables import (
    anomalies,
    attachments,
    leaks,
    metadata,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)
from reconciler.status import PodName

_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

T = TypeVar("T")


class Store:
    """The rows of one ledger. *ledger* is the name of its stream."""

    def __init__(self, url: str, ledger: str) -> None:
        self._url = url
        self._engine = open_engine(url)
        self._ledger = ledger
        self._upserts = {table.name: _upsert(table, self._engine.dialect.name) for table in metadata.tables.values()}

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
            published = _published(connection, changes.attached)
            left = changes.closed_pods - _live(connection, changes.closed_pods)
        return replace(changes, published=published, left=left)

    def skip_to(self, sequence: int) -> None:
        """Note that there is nothing more to read up to *sequence*. Raises as ``position``."""
        with self._transaction() as connection:
            if sequence > self._position(connection):
                self._set_position(connection, sequence)

    def of_live_pods(self, judge: Callable[[PodName, Sequence[Sandbox], Published | None], T]) -> list[T]:
        """Return what *judge* says of each pod that has something on a node.

        It is given the pod's sandboxes, oldest first, and what is published of it. Raises DatabaseAwayError.
        """
        with self._transaction() as connection:
            rows = connection.execute(_LIVE_PODS, execution_options={"yield_per": _PAGE})
            judged: list[T] = []
            for name, group in groupby(rows, lambda row: PodName(row.namespace, row.pod)):
                same = list(group)
                judged.append(judge(name, [sandbox_of(row.fold) for row in same], _status_of(same[0])))
            return judged

    def drifting(self) -> list[Sandbox]:
        """Return the live sandboxes that their node differs from, oldest first. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return [sandbox_of(fold) for (fold,) in connection.execute(_DRIFTING)]

    def leaks(self) -> list[tuple[NodeName, Leaked]]:
        """Return what is held without a live attachment, and where, oldest first. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return [(NodeName(node), leaked_of(fold)) for node, fold in connection.execute(_LEAKS)]

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
        row = connection.execute(_POSITION).one_or_none()
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
        self._put(connection, sandboxes, changes.sandboxes)
        if keys:
            connection.execute(_DELETE_ATTACHMENTS, keys)
        self._put(connection, attachments, changes.attachments)
        if changes.closed:
            connection.execute(_DELETE_PENDING, [{"id": event_id} for event_id in changes.closed])
        self._put(connection, pending, changes.pending)
        self._put(connection, nodes, changes.nodes)
        self._put(connection, statuses, changes.statuses)
        if changes.freed:
            connection.execute(_DELETE_LEAKS, [{"on": node, "id": leak_id} for node, leak_id in changes.freed])
        self._put(connection, leaks, [leak_row(node, leaked) for node, leaked in changes.leaks])
        self._put(connection, anomalies, changes.anomalies)
        self._set_position(connection, changes.sequence)

    def _set_position(self, connection: sa.Connection, sequence: int) -> None:
        self._put(connection, position, [{"ledger": self._ledger, "sequence": sequence}])

    def _put(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
        if rows:
            connection.execute(self._upserts[table.name], rows)


def _upsert(table: sa.Table, dialect: str) -> sa.Executable:
    insert = _INSERT[dialect](table)
    keys = [column.name for column in table.primary_key]
    fresh = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=fresh)


# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.

_PAGE = 500
_POSITION = sa.select(position).with_for_update()
_DELETE_ATTACHMENTS = sa.delete(attachments).where(
    attachments.c.container_id == sa.bindparam("id"), attachments.c.sandbox_ifname == sa.bindparam("name")
)
_DELETE_PENDING = sa.delete(pending).where(pending.c.event_id == sa.bindparam("id"))
_SANDBOXES = (
    sa.select(sandboxes.c.container_id, sandboxes.c.ifname, sandboxes.c.created, sandboxes.c.fold)
    .where(sandboxes.c.container_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(sandboxes.c.created)
)
_PENDING = sa.select(pending.c.event_id, pending.c.sequence, pending.c.event).where(
    pending.c.event_id.in_(sa.bindparam("ids", expanding=True))
)
_DELETE_LEAKS = sa.delete(leaks).where(leaks.c.node == sa.bindparam("on"), leaks.c.leak_id == sa.bindparam("id"))
_LEAKS = sa.select(leaks.c.node, leaks.c.fold).order_by(leaks.c.first_at, leaks.c.node, leaks.c.leak_id)
_SOME_LEAKS = sa.select(leaks.c.node, leaks.c.leak_id, leaks.c.fold).where(
    sa.tuple_(leaks.c.node, leaks.c.leak_id).in_(sa.bindparam("keys", expanding=True))
)
_DRIFTING = (
    sa.select(sandboxes.c.fold)
    .where(sa.text("sandboxes.drifting"), sandboxes.c.live)  # as the index has it
    .order_by(sandboxes.c.created)
)
_NODES = sa.select(nodes.c.node, nodes.c.epoch, nodes.c.command).where(
    nodes.c.node.in_(sa.bindparam("ids", expanding=True))
)
_PUBLISHED = sa.select(statuses).where(
    sa.tuple_(statuses.c.namespace, statuses.c.pod).in_(sa.bindparam("pods", expanding=True))
)
_LIVE = (
    sa.select(sandboxes.c.namespace, sandboxes.c.pod)
    .distinct()
    .where(
        sa.tuple_(sandboxes.c.namespace, sandboxes.c.pod).in_(sa.bindparam("pods", expanding=True)), sandboxes.c.live
    )
)
_LIVE_PODS = (
    sa.select(sandboxes.c.namespace, sandboxes.c.pod, sandboxes.c.fold)
    .add_columns(*(statuses.c[name].label(f"status_{name}") for name in Published._fields))
    .select_from(
        sa.outerjoin(
            sandboxes,
            statuses,
            sa.and_(sandboxes.c.namespace == statuses.c.namespace, sandboxes.c.pod == statuses.c.pod),
        )
    )
    .where(sandboxes.c.live, sandboxes.c.pod != "")
    .order_by(sandboxes.c.namespace, sandboxes.c.pod, sandboxes.c.created)
)


def _load(connection: sa.Connection, what: Needed, done: int) -> Loaded:
    loaded = Loaded(sequence=done)
    rows: Any
    if what.containers:
        rows = connection.execute(_SANDBOXES, {"ids": list(what.containers)})
        for container_id, ifname, created, fold in rows:
            key = SandboxKey(ContainerId(container_id), IfName(ifname))
            loaded.sandboxes[key], loaded.created[key] = sandbox_of(fold), created
    if what.intents:
        rows = connection.execute(_PENDING, {"ids": list(what.intents)})
        for event_id, sequence, event in rows:
            loaded.pending[EventId(event_id)] = Pending(decode(event), sequence)
    if what.nodes:
        rows = connection.execute(_NODES, {"ids": list(what.nodes)})
        for node, epoch, command in rows:
            loaded.epochs[NodeName(node)], loaded.commands[NodeName(node)] = epoch, command
    if what.leaks:
        rows = connection.execute(_SOME_LEAKS, {"keys": list(what.leaks)})
        for node, leak_id, fold in rows:
            loaded.leaks[NodeName(node), LeakId(leak_id)] = leaked_of(fold)
    return loaded


def _status_of(row: sa.Row[Any]) -> Published | None:
    """Return what is published of the pod that *row* of ``_LIVE_PODS`` is of."""
    values = [getattr(row, f"status_{name}") for name in Published._fields]
    return None if values[0] is None else Published(*values)


def _published(connection: sa.Connection, pods: frozenset[PodName]) -> dict[PodName, Published]:
    if not pods:
        return {}
    rows = connection.execute(_PUBLISHED, {"pods": list(pods)})
    return {PodName(row.namespace, row.pod): Published(row.uid, row.intent, row.text, row.refused) for row in rows}


def _live(connection: sa.Connection, pods: frozenset[PodName]) -> frozenset[PodName]:
    if not pods:
        return frozenset()
    return frozenset(PodName(*row) for row in connection.execute(_LIVE, {"pods": list(pods)}))
