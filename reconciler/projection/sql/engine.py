"""Open the projection's database, so that each batch is one transaction of one writer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

_BUSY = 2.0
"""Seconds that SQLite waits for another connection's lock."""
_UNFINISHED_CACHE = 64 * 1024
"""KiB of page cache for a database that is being built."""
_POSTGRESQL_TIMEOUTS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "plumbline-reconciler",
}
"""libpq parameters, so that a dead server is noticed soon. In seconds, except ``tcp_user_timeout`` in milliseconds."""


class ProjectionError(Exception):
    """This database can't hold the projection; the message gives the remedy."""


class DatabaseUnavailableError(Exception):
    """The database is unavailable. The caller can retry every operation."""


class ReplacedError(Exception):
    """Another reconciler was elected to write to the database."""


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Commit everything in the block, or nothing. Raises DatabaseUnavailableError, ProjectionError."""
    try:
        with engine.begin() as connection:
            yield connection
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        reason = error.orig if isinstance(error, exc.DBAPIError) else error
        raise DatabaseUnavailableError(_first_line(reason)) from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailableError(_first_line(error.orig)) from error
        raise statement_error(error.orig) from error
    except _driver(engine).OperationalError as error:  # of statements that bypass SQLAlchemy
        raise DatabaseUnavailableError(_first_line(error)) from error
    except _driver(engine).Error as error:
        raise statement_error(error) from error


def _driver(engine: sa.Engine) -> Any:
    return engine.dialect.loaded_dbapi


def statement_error(error: BaseException | None) -> ProjectionError:
    """Return the ProjectionError for the driver's *error*."""
    return ProjectionError(
        f"the database refused a statement ({_first_line(error)}): read the database's log, or rename "
        "the database: the reconciler then rebuilds it from the ledger"
    )


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]  # PostgreSQL appends the statement and its values


def require_database(url: sa.URL) -> None:
    """Raise ProjectionError if *url* names a missing SQLite file: opening it would create it."""
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise ProjectionError(f"there is no database at {url.database}: start the reconciler first")


def open_engine(url: str, *, unfinished: bool = False, empty: bool = False) -> sa.Engine:
    """Return an engine for *url*; a missing SQLite file is created. Raises ProjectionError.

    *unfinished*: the file need not survive a crash, and has no other readers. *empty*: the file has no rows, and gets
    all of them in one transaction.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return _open_postgresql(parsed)
        _make_file(Path(parsed.database or ""))
        engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY})
    except (exc.ArgumentError, ImportError, OSError) as error:
        raise ProjectionError(f"the database can't be opened: {error}") from error
    configure = _configure_unfinished if unfinished else _configure_empty if empty else _configure
    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", _begin)
    return engine


def _open_postgresql(url: sa.URL) -> sa.Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=_POSTGRESQL_TIMEOUTS | dict(url.query))
    except ModuleNotFoundError as error:
        raise ProjectionError(
            f"the database can't be opened: {error}; install plumbline[postgresql], which includes psycopg"
        ) from error
    event.listen(engine, "before_cursor_execute", _without_nul, retval=True)
    return engine


def _without_nul(
    _connection: sa.Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
) -> tuple[str, Any]:
    """Replace characters that PostgreSQL's text can't hold: one odd name must not stop the projection."""
    if not parameters:
        return statement, parameters
    if many:
        return statement, [{key: holdable(value) for key, value in row.items()} for row in parameters]
    return statement, {key: holdable(value) for key, value in dict(parameters).items()}


def holdable(value: Any) -> Any:
    """Return *value* in a form that PostgreSQL can hold."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [holdable(each) for each in value]
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value


def _make_file(path: Path) -> None:
    """Create the file for its owner only: rows contain configurations, which may contain secrets."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # otherwise the driver begins transactions by its own rules
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a lost commit is read from the ledger again


def _configure_unfinished(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = MEMORY")  # a failed batch is still rolled back
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA cache_size = -{_UNFINISHED_CACHE}")  # keys come in random order


def _configure_empty(connection: Any, _record: Any) -> None:
    """Write pages once; a WAL writes them twice. The next connection turns the WAL on again."""
    connection.isolation_level = None
    with suppress(sqlite3.OperationalError):  # another connection is open
        connection.execute("PRAGMA journal_mode = DELETE")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # the transaction reads the position before it writes it
