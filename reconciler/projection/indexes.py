"""Leave indexes away while very many rows are written.

One that is made of all rows at the end takes a sort; one that is there from the start takes a search for each of them.
"""

from __future__ import annotations

import sqlalchemy as sa

from reconciler.projection.tables import metadata

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


def _for_readers() -> list[sa.Index]:
    found = [index for table in metadata.sorted_tables for index in table.indexes if index.name not in _USED]
    return sorted(found, key=lambda index: str(index.name))
