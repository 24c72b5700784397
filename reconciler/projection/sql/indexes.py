"""Drop indexes during a bulk write.

Building an index at the end costs one sort; maintaining it costs one search per row.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from reconciler.projection.sql.tables import metadata

_USED = frozenset({"addresses_held"})
"""Indexes that the projection itself needs to find rows."""


def drop(connection: sa.Connection) -> None:
    """Drop the indexes that only readers need."""
    for index in _for_readers():
        index.drop(connection, checkfirst=True)


def make(connection: sa.Connection) -> None:
    """Create the missing indexes."""
    for index in _for_readers():
        index.create(connection, checkfirst=True)


def drop_keys(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Drop the primary keys of PostgreSQL *tables*, for a bulk insert without lookups."""
    for table in tables:
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey")


def make_keys(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Create the primary keys again."""
    for table in tables:
        columns = ", ".join(column.name for column in table.primary_key)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({columns})")


def _for_readers() -> list[sa.Index]:
    found = [index for table in metadata.sorted_tables for index in table.indexes if index.name not in _USED]
    return sorted(found, key=lambda index: str(index.name))
