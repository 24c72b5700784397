"""Write the changes of a batch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg

from reconciler.projection.fold.batch import Changes
from reconciler.projection.fold.rows import Row, leak_row
from reconciler.projection.sql.engine import holdable
from reconciler.projection.sql.tables import (
    addresses,
    anomalies,
    attachments,
    drift_history,
    leak_history,
    leaks,
    metadata,
    network_versions,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)

_DIALECTS: dict[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="named"),
    "postgresql": psycopg.dialect(),
}
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Writer:
    """Writes to the tables of one database dialect.

    The rows bypass SQLAlchemy, which would process each value in more time than a write takes. PostgreSQL gets all rows
    of a table in one JSON text: parameters would cost a step per value in the driver, and one per row in the server.
    Bytes are separate arrays, one per column: decoding them from JSON would take longer than writing them.
    """

    def __init__(self, dialect: str) -> None:
        self._json_rows = dialect == "postgresql"
        upserts = {table.name: _text(_upsert(table, dialect), dialect) for table in metadata.tables.values()}
        if self._json_rows:
            upserts = {name: _from_json(metadata.tables[name], text) for name, text in upserts.items()}
        self._upserts = upserts
        self._binary = {table.name: _binary(table) for table in metadata.tables.values()}
        self._delete_attachments = _text(_DELETE_ATTACHMENTS, dialect)
        self._close_intent = _text(_CLOSE_INTENT, dialect)
        self._close_leak = _text(_CLOSE_LEAK, dialect)
        self._end_holding = _text(_END_HOLDING, dialect)
        self._insert_position = _INSERT[dialect](position).on_conflict_do_nothing()

    @classmethod
    @functools.cache
    def of(cls, dialect: str) -> Writer:
        """Return the writer of *dialect*: rendering its statements costs 10 ms, and a process does it once."""
        return cls(dialect)

    def write(self, connection: sa.Connection, ledger: str, changes: Changes) -> None:
        """Write *changes* and the new position of the stream *ledger*."""
        self.put(connection, sandboxes, changes.sandboxes)
        _each(
            connection,
            self._delete_attachments,
            [{"id": key.container_id, "name": key.ifname} for key in changes.unplanned],
        )
        self.put(connection, attachments, changes.attachments)
        _each(connection, self._close_intent, [{"id": event_id} for event_id in changes.closed])
        self.put(connection, pending, changes.pending)
        self.put(connection, nodes, changes.nodes)
        self.put(connection, statuses, changes.statuses)
        _each(connection, self._close_leak, [{"node": node, "id": leak_id} for node, leak_id in changes.freed])
        self.put(connection, leaks, [leak_row(node, leaked) for node, leaked in changes.leaks])
        _each(connection, self._end_holding, changes.holdings.closed)
        self.put(connection, addresses, changes.holdings.opened)
        self.put(connection, network_versions, changes.versions)
        self.put(connection, drift_history, changes.histories.drift)
        self.put(connection, leak_history, changes.histories.leaks)
        self.put(connection, anomalies, changes.anomalies)
        self.set_position(connection, ledger, changes.sequence)

    def set_position(self, connection: sa.Connection, ledger: str, sequence: int) -> None:
        """Write the position of the stream *ledger*."""
        self.put(connection, position, [_new_position(ledger, sequence)])

    def insert_position(self, connection: sa.Connection, ledger: str) -> None:
        """Insert a position for the stream *ledger* if there is none: a missing row can't be locked."""
        connection.execute(self._insert_position, _new_position(ledger, 0))

    def set_election(self, connection: sa.Connection, election: int) -> None:
        """Write the election whose winner may write."""
        connection.execute(_ELECT, {"newest": election})

    def put(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
        """Insert *rows* into *table*, or update the existing ones."""
        if rows and self._json_rows:
            connection.exec_driver_sql(self._upserts[table.name], _json_parameters(rows, self._binary[table.name]))
        else:
            _each(connection, self._upserts[table.name], rows)


def copy_in(connection: sa.Connection, table: sa.Table, rows: Iterable[Sequence[Any]]) -> None:
    """Copy *rows* to an empty PostgreSQL *table*. Each row has the table's column order."""
    columns = ", ".join(column.name for column in table.columns)
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types([column.type.compile(_DIALECTS["postgresql"]).lower() for column in table.columns])
        for row in rows:
            copy.write_row([holdable(value) if type(value) is str and "\0" in value else value for value in row])


def _new_position(ledger: str, sequence: int) -> Row:
    return {"ledger": ledger, "sequence": sequence, "election": 0, "forgotten": ""}


def _each(connection: sa.Connection, statement: str, rows: Sequence[Row]) -> None:
    if rows:
        connection.exec_driver_sql(statement, list(rows))


def _json_parameters(rows: Sequence[Row], binary: Sequence[str]) -> dict[str, Any]:
    """Return the parameters for a statement of ``_from_json``."""
    if binary:
        arrays = {name: [row[name] for row in rows] for name in binary}
        rows = [{name: value for name, value in row.items() if name not in arrays} for row in rows]
    else:
        arrays = {}
    text = msgspec.json.encode(rows).replace(rb"\u0000", rb"\ufffd").decode()  # PostgreSQL's text can't hold NUL
    return {"rows": text, **arrays}


def _binary(table: sa.Table) -> list[str]:
    return [column.name for column in table.columns if isinstance(column.type, sa.LargeBinary)]


def _text(statement: sa.ClauseElement, dialect: str) -> str:
    return str(statement.compile(dialect=_DIALECTS[dialect]))


def _from_json(table: sa.Table, upsert: str) -> str:
    """Return *upsert* with a JSON text instead of its values, and arrays for bytes."""
    insert, _, rest = upsert.partition(" VALUES ")
    _, _, conflict = rest.partition(" ON CONFLICT ")
    dialect = _DIALECTS["postgresql"]
    quote, binary = dialect.identifier_preparer.quote, _binary(table)
    columns = [column for column in table.columns if column.name not in binary]
    types = ", ".join(f"{quote(column.name)} {column.type.compile(dialect)}" for column in columns)
    rows = [f"json_to_recordset(%(rows)s::json) AS ({types})", *(f"unnest(%({name})b::bytea[])" for name in binary)]
    given = ", ".join(quote(name) for name in [*(column.name for column in columns), *binary])
    chosen = ", ".join(quote(column.name) for column in table.columns)
    return f"{insert} SELECT {chosen} FROM ROWS FROM ({', '.join(rows)}) AS given({given}) ON CONFLICT {conflict}"  # noqa: S608  # only names of our tables


def _upsert(table: sa.Table, dialect: str) -> sa.ClauseElement:
    insert = _INSERT[dialect](table)
    keys = [column.name for column in table.primary_key]
    fresh = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
    if table is position:
        del fresh["election"], fresh["forgotten"]  # only ``set_election`` and ``forget`` write these
    if table is network_versions:
        del fresh["first_at"], fresh["first_sequence"]
        fresh["uses"] = table.c.uses + insert.excluded.uses
    return insert.on_conflict_do_update(index_elements=keys, set_=fresh)


def _equal(column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
    return column == sa.bindparam(name, type_=column.type)


_DELETE_ATTACHMENTS = sa.delete(attachments).where(
    _equal(attachments.c.container_id, "id"), _equal(attachments.c.sandbox_ifname, "name")
)
_CLOSE_INTENT = sa.delete(pending).where(_equal(pending.c.event_id, "id"))
_ELECT = sa.update(position).values(election=sa.bindparam("newest"))
_CLOSE_LEAK = sa.delete(leaks).where(_equal(leaks.c.node, "node"), _equal(leaks.c.leak_id, "id"))
_END_HOLDING = (
    sa.update(addresses)
    .where(
        addresses.c.until_sequence.is_(None),
        _equal(addresses.c.container_id, "id"),
        _equal(addresses.c.sandbox_ifname, "name"),
        _equal(addresses.c.network, "on"),
        _equal(addresses.c.ifname, "as"),
        _equal(addresses.c.address, "what"),
    )
    .values(until=sa.bindparam("at"), until_sequence=sa.bindparam("end"))
)
