"""Leave indexes away while very many rows are written.

One that is made of all rows at the end takes a sort; one that is there from the start takes a search for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from reconciler.projection.sql.tables import metadata

_USED = frozenset({"addresses_held"})
"""By these the projection finds what it writes."""


def drop(connection: sa.Connection) -> None:
    """Drop the indexes that only readers need."""
    for index in _for_readers():
        index.drop(connection, checkfirst=True)


def make(connection: sa.Connection) -> None:
    """Make those that are not there."""
    for index in _for_readers():
        index.create(connection, checkfirst=True)


def drop_keys(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Drop the primary keys of *tables* of PostgreSQL, for who adds rows to them and looks for none."""
    for table in tables:
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey")


def make_keys(connection: sa.Connection, tables: Iterable[sa.Table]) -> None:
    """Make them again."""
    for table in tables:
        columns = ", ".join(column.name for column in table.primary_key)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({columns})")


def _for_readers() -> list[sa.Index]:
    found = [index for table in metadata.sorted_tables for index in table.indexes if index.name not in _USED]
    return sorted(found, key=lambda index: str(index.name))
