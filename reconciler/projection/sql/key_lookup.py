"""Select the rows of many keys by a statement whose text never changes.

SQLAlchemy would write one parameter per key. PostgreSQL gets arrays instead: a statement with thousands of parameters
costs driver and server more than the lookup, and is planned again each time. SQLite gets pairs as one JSON text: for a
list of pairs it would build a compound query that scans the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql


def is_one_of(dialect: str, *columns: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that the texts in *columns* are one of the keys in ``key_parameters``."""
    if dialect == "postgresql":
        arrays = [sa.bindparam(f"keys_{place}", type_=postgresql.ARRAY(sa.Text)) for place in range(len(columns))]
        if len(columns) == 1:
            return columns[0] == sa.any_(arrays[0])
        given = sa.func.unnest(*arrays).table_valued(*(column.name for column in columns)).render_derived()
        return sa.tuple_(*columns).in_(sa.select(*given.c))
    if len(columns) == 1:
        return columns[0].in_(sa.bindparam("keys", expanding=True))
    given = sa.func.json_each(sa.bindparam("keys")).table_valued("value")
    parts = (sa.func.json_extract(given.c.value, f"$[{place}]") for place in range(len(columns)))
    return sa.tuple_(*columns).in_(sa.select(*parts))


def key_parameters(dialect: str, wanted: Iterable[str] | Iterable[Sequence[str]]) -> dict[str, Any]:
    """Return the parameters for a statement with ``is_one_of``. *wanted* must not be empty."""
    found = list(wanted)
    if isinstance(found[0], str):
        return {"keys_0": found} if dialect == "postgresql" else {"keys": found}
    if dialect != "postgresql":
        return {"keys": msgspec.json.encode(found).decode()}
    return {f"keys_{place}": list(part) for place, part in enumerate(zip(*found, strict=True))}
