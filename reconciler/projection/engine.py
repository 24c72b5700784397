"""Open the projection's database, so that one batch is one transaction of one writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

_BUSY = 2.0
"""Seconds that SQLite waits for another connection's lock."""


class ProjectionError(Exception):
    """The projection can't be kept in this database; the message says what to do."""


class DatabaseAwayError(Exception):
    """The database does not do its work just now. Whatever was asked of it can be asked again."""


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Commit what is done in the block, or nothing of it. Raises DatabaseAwayError."""
    try:
        with engine.begin() as connection:
            yield connection
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        reason = error.orig if isinstance(error, exc.DBAPIError) else error
        raise DatabaseAwayError(str(reason)) from error


def open_engine(url: str) -> sa.Engine:
    """Return an engine for *url*; an SQLite file is made when it is missing. Raises ProjectionError."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
        _make_file(Path(parsed.database or ""))
        engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY})
    except (exc.ArgumentError, ImportError, OSError) as error:
        raise ProjectionError(f"the database can't be opened: {error}") from error
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _make_file(path: Path) -> None:
    """Make the file for its owner alone: rows hold configurations, and those may hold secrets."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins transactions at times of its own, otherwise
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a lost commit is read from the ledger again


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # the position is read before it is written
