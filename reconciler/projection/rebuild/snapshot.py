"""Save live sandboxes, open intents and open leaks, so that the ledger may forget their old events.

A snapshot is itself a projection in an SQLite file, so the migrations of later versions apply to it. It has no closed
sandboxes and no histories.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from reconciler.projection.sql import indexes
from reconciler.projection.sql.engine import (
    DatabaseUnavailableError,
    ProjectionError,
    open_engine,
    require_database,
    transaction,
)
from reconciler.projection.sql.schema import upgrade
from reconciler.projection.sql.tables import (
    addresses,
    attachments,
    leaks,
    metadata,
    network_versions,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)
from reconciler.projection.sql.writer import Writer, copy_in

_PAGE = 2000
_HEAD = 100
"""Length of an SQLite file's header, in bytes."""

_OF_LIVE = "(container_id, sandbox_ifname) IN (SELECT container_id, ifname FROM {place}sandboxes WHERE live)"
_LIVE_ROWS = {
    nodes: "",
    pending: "",
    statuses: "",
    leaks: "",
    network_versions: "",
    sandboxes: "WHERE live",
    attachments: f"WHERE {_OF_LIVE}",
    addresses: "WHERE until_sequence IS NULL",
}
"""Condition for the saved rows of each table; ``place`` is the prefix of the source database."""
_ALL = {table: "" for table in metadata.sorted_tables if table is not position}


def save(url: str, path: Path) -> int:
    """Write a snapshot of the projection at *url* to *path*; return its sequence.

    Raises ProjectionError, DatabaseUnavailableError, OSError.
    """
    require_database(sa.make_url(url))
    unfinished = path.with_name(f"{path.name}.unfinished")
    _remove(unfinished)
    target = f"sqlite:///{unfinished}"
    upgrade(target)
    try:
        sequence = _copy(url, target)
        _make_durable(unfinished)
        os.replace(unfinished, path)
        _make_durable(path.parent)
    finally:
        _remove(unfinished)
    return sequence


def restore(path: Path, url: str) -> int:
    """Fill the empty projection at *url* from the snapshot at *path*; return its sequence.

    Raises ProjectionError, DatabaseUnavailableError.
    """
    inspect(path)
    target = open_engine(url, empty=True)
    try:
        with transaction(target) as to:
            fill(path, to)
            return _sequence(to)
    finally:
        target.dispose()


class Origin(NamedTuple):
    """The ledger and position of a snapshot."""

    ledger: str
    sequence: int
    node: str
    """The node with the newest event of any node in the snapshot; empty: no node has events."""
    at: str
    node_sequence: int
    """Sequence of that event."""


def inspect(path: Path) -> Origin:
    """Return the origin of the snapshot at *path*, and upgrade it to the present schema. Raises ProjectionError."""
    if not path.is_file():
        raise ProjectionError(f"there is no snapshot {path}")
    _refuse_torn(path)
    try:
        upgrade(f"sqlite:///{path}")
        return _origin(path)
    except (ProjectionError, DatabaseUnavailableError) as error:
        raise ProjectionError(f"the snapshot {path} can't be used: {error}") from error


def _origin(path: Path) -> Origin:
    engine = open_engine(f"sqlite:///{path}")
    try:
        with transaction(engine) as connection:
            place = connection.execute(sa.select(position)).one_or_none()
            if place is None:
                raise ProjectionError("it names no ledger")
            newest = connection.execute(sa.select(nodes).order_by(nodes.c.sequence.desc()).limit(1)).one_or_none()
            named = ("", "", 0) if newest is None else (newest.node, newest.changed_at, newest.sequence)
            return Origin(place.ledger, place.sequence, *named)
    finally:
        engine.dispose()


def fill(path: Path, to: sa.Connection) -> None:
    """Copy all rows of the SQLite file *path* to the empty tables of *to*.

    Call ``inspect`` first if the file is a snapshot.
    """
    if to.dialect.name == "sqlite":
        _fill(f"sqlite:///{path}", to, _ALL)
        return
    indexes.drop(to)
    indexes.drop_keys(to, _ALL)
    _fill(f"sqlite:///{path}", to, _ALL)
    indexes.make_keys(to, _ALL)
    indexes.make(to)


def _copy(url: str, target_url: str) -> int:
    target = open_engine(target_url)
    try:
        with transaction(target) as to:
            _fill(url, to, _LIVE_ROWS)
            return _sequence(to)
    finally:
        target.dispose()


def _sequence(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(position.c.sequence)) or 0


def _fill(url: str, to: sa.Connection, chosen: Mapping[sa.Table, str]) -> None:
    if sa.make_url(url).get_backend_name() == to.dialect.name == "sqlite":
        place = _copy_within_sqlite(Path(sa.make_url(url).database or ""), to, chosen)
    else:
        place = _copy_rows(url, to, chosen)
    if place is not None:  # the election belongs to the target database, and may be set already
        values = {"sequence": place.sequence, "forgotten": place.forgotten}
        own = sa.update(position).where(position.c.ledger == place.ledger).values(values)
        if to.execute(own).rowcount == 0:
            to.execute(sa.insert(position).values(ledger=place.ledger, **values))


def _copy_within_sqlite(path: Path, to: sa.Connection, chosen: Mapping[sa.Table, str]) -> sa.Row[Any] | None:
    """Copy the rows inside SQLite. The source is attached after the transaction began, so its rows are of one instant.

    SQLite copies whole tables with their indexes in bulk only if the statement names no columns (xferOptimization in
    its insert.c). The migrations set the column order.
    """
    to.exec_driver_sql("ATTACH DATABASE ? AS source", (str(path),))
    for table, which in chosen.items():
        rows = f"SELECT * FROM source.{table.name} {which.format(place='source.')}"  # noqa: S608  # only names of our tables
        to.exec_driver_sql(f"INSERT INTO main.{table.name} {rows}")
    return to.execute(_place(chosen, "source.")).one_or_none()


def _copy_rows(url: str, to: sa.Connection, chosen: Mapping[sa.Table, str]) -> sa.Row[Any] | None:
    source = open_engine(url)
    try:
        with source.connect() as from_:
            if source.dialect.name == "postgresql":
                from_.execution_options(isolation_level="REPEATABLE READ")
            place = from_.execute(_place(chosen)).one_or_none()  # starts the read transaction of the rest
            for table, which in chosen.items():
                columns = ", ".join(column.name for column in table.columns)
                _put(to, table, from_, f"SELECT {columns} FROM {table.name} {which.format(place='')}")  # noqa: S608  # only names of our tables
            return place
    finally:
        source.dispose()


def _put(to: sa.Connection, table: sa.Table, from_: sa.Connection, chosen: str) -> None:
    if to.dialect.name == "postgresql":
        driver: Any = from_.connection.driver_connection
        copy_in(to, table, driver.execute(chosen))  # SQLAlchemy's rows take 20 % longer
        return
    writer = Writer.of(to.dialect.name)
    rows = from_.execute(sa.text(chosen), execution_options={"yield_per": _PAGE})
    for page in rows.partitions(_PAGE):
        writer.put(to, table, [dict(row._mapping) for row in page])


def _place(chosen: Mapping[sa.Table, str], where: str = "") -> sa.TextClause:
    """Return the query for the position. For a partial copy, rows that ended before the newest event are missing."""
    newest = f"(SELECT coalesce(max(changed_at), '') FROM {where}nodes)"  # noqa: S608  # only names of our tables
    forgotten = "forgotten" if chosen is _ALL else newest
    return sa.text(f"SELECT ledger, sequence, {forgotten} AS forgotten FROM {where}position")  # noqa: S608  # only names of our tables


def _refuse_torn(path: Path) -> None:
    """Raise ProjectionError unless the file has the length in its header (SQLite file format, 1.3)."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    page = int.from_bytes(head[16:18], "big")
    length = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if not head.startswith(b"SQLite format 3\0") or path.stat().st_size != length:
        raise ProjectionError(f"{path} is not a complete snapshot: use another one")


def _make_durable(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
