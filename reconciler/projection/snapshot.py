"""Put away what there is of live sandboxes and open matters, so that the ledger may forget how it came to be.

A snapshot is a projection itself, in an SQLite file: the migrations of later versions apply to it. Closed sandboxes and
histories are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from reconciler.projection.engine import ProjectionError, open_engine, transaction
from reconciler.projection.schema import upgrade
from reconciler.projection.tables import (
    addresses,
    attachments,
    leaks,
    network_versions,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)
from reconciler.projection.write import Writer

_PAGE = 2000
_HEAD = 100
"""Bytes of an SQLite file that tell of it."""

_OF_LIVE = "(container_id, sandbox_ifname) IN (SELECT container_id, ifname FROM {place}sandboxes WHERE live)"
_LIVING = {
    position: "",
    nodes: "",
    pending: "",
    statuses: "",
    leaks: "",
    network_versions: "",
    sandboxes: "WHERE live",
    attachments: f"WHERE {_OF_LIVE}",
    addresses: "WHERE until_sequence IS NULL",
}
"""Which rows of which tables; ``place`` is where they are."""


def save(url: str, path: Path) -> int:
    """Write a snapshot of the projection at *url* to *path*; return the sequence that it is of.

    Raises ProjectionError, DatabaseAwayError, OSError.
    """
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
    """Fill the empty projection at *url* from the snapshot in *path*; return the sequence that it is of.

    Raises ProjectionError, DatabaseAwayError.
    """
    if not path.is_file():
        raise ProjectionError(f"there is no snapshot {path}")
    _refuse_torn(path)
    try:
        upgrade(f"sqlite:///{path}")
        return _copy(f"sqlite:///{path}", url)
    except ProjectionError as error:
        raise ProjectionError(f"the snapshot {path} can't be used: {error}") from error


def _copy(url: str, target_url: str) -> int:
    target = open_engine(target_url)
    try:
        with transaction(target) as to:
            if sa.make_url(url).get_backend_name() == target.dialect.name == "sqlite":
                _within_sqlite(Path(sa.make_url(url).database or ""), to)
            else:
                _by_rows(url, to)
            return to.scalar(sa.select(position.c.sequence)) or 0
    finally:
        target.dispose()


def _within_sqlite(path: Path, to: sa.Connection) -> None:
    """Have SQLite copy the rows. What is attached once the transaction has begun is only read, at one instant."""
    to.exec_driver_sql("ATTACH DATABASE ? AS source", (str(path),))
    for table, which in _LIVING.items():
        columns = ", ".join(column.name for column in table.columns)
        chosen = f"SELECT {_values(table, 'source.')} FROM source.{table.name} {which.format(place='source.')}"  # noqa: S608
        to.exec_driver_sql(f"INSERT INTO main.{table.name} ({columns}) {chosen}")


def _by_rows(url: str, to: sa.Connection) -> None:
    source, writer = open_engine(url), Writer(to.dialect.name)
    try:
        with source.connect() as from_:
            if source.dialect.name == "postgresql":
                from_.execution_options(isolation_level="REPEATABLE READ")
            for table, which in _LIVING.items():
                chosen = sa.text(f"SELECT {_values(table)} FROM {table.name} {which.format(place='')}")  # noqa: S608
                rows = from_.execute(chosen, execution_options={"yield_per": _PAGE})
                for page in rows.partitions(_PAGE):
                    writer.put(to, table, [dict(row._mapping) for row in page])
    finally:
        source.dispose()


def _values(table: sa.Table, place: str = "") -> str:
    """Return what is taken of *table*: who may write is another database's matter, and all that is over is left out."""
    instead = {
        position.c.election: "0 AS election",
        position.c.forgotten: f"(SELECT coalesce(max(changed_at), '') FROM {place}nodes) AS forgotten",  # noqa: S608
    }
    return ", ".join(instead.get(column, column.name) for column in table.columns)


def _refuse_torn(path: Path) -> None:
    """Raise ProjectionError unless the file is as long as its own head says (SQLite's file format, 1.3)."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    page = int.from_bytes(head[16:18], "big")
    length = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if not head.startswith(b"SQLite format 3\0") or path.stat().st_size != length:
        raise ProjectionError(f"{path} is no snapshot, or a part of one: take another, or do without")


def _make_durable(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
