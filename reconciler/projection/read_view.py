"""Read the projection as of one instant, without blocking its writer.

For verification. Code that acts on the rows uses the ``Store``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event, exc

from reconciler.projection.fold.rows import Row
from reconciler.projection.sql.engine import (
    DatabaseUnavailableError,
    ProjectionError,
    require_database,
    statement_error,
)
from reconciler.projection.sql.schema import require_current
from reconciler.projection.sql.tables import (
    addresses,
    attachments,
    leaks,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)

_PAGE = 500


class SandboxRows(NamedTuple):
    """A row of ``sandboxes`` and the rows that belong to it."""

    sandbox: Row
    attachments: list[Row]
    """In plan order."""
    holds: list[Row]
    """Rows of ``addresses`` without an end."""


class ReadView:
    """The rows of one instant. All methods raise DatabaseUnavailableError."""

    def __init__(self, connection: sa.Connection, ledger: str) -> None:
        self._connection = connection
        found = connection.execute(sa.select(position)).one_or_none()
        if found is not None and found.ledger != ledger:
            raise ProjectionError(f"the database is the projection of the ledger {found.ledger}, not of {ledger}")
        self.sequence: int = 0 if found is None else found.sequence
        """Sequence of the last event in the rows."""
        self.forgotten: str = "" if found is None else found.forgotten
        """Rows about what ended before this RFC 3339 time may have been deleted."""

    def sandboxes(self, node: str = "") -> Iterator[SandboxRows]:
        """Yield each sandbox with its rows; only those of *node* if it is not empty."""
        chosen = sa.select(sandboxes)
        if node:
            chosen = chosen.where(sandboxes.c.node == node)
        rows = self._connection.execute(chosen, execution_options={"yield_per": _PAGE})
        for page in rows.partitions():
            ids = {row.container_id for row in page}
            parts = self._by_sandbox(
                sa.select(attachments).where(attachments.c.container_id.in_(ids)).order_by(attachments.c.place)
            )
            holds = self._by_sandbox(
                sa.select(addresses).where(addresses.c.container_id.in_(ids), addresses.c.until_sequence.is_(None))
            )
            for row in page:
                key = row.container_id, row.ifname
                yield SandboxRows(_plain(row), parts.get(key, []), holds.get(key, []))

    def nodes(self) -> Iterator[Row]:
        """Yield the rows of ``nodes``."""
        return self._all(nodes)

    def pending(self) -> Iterator[Row]:
        """Yield the rows of ``pending``."""
        return self._all(pending)

    def leaks(self) -> Iterator[Row]:
        """Yield the rows of ``leaks``."""
        return self._all(leaks)

    def statuses(self) -> Iterator[Row]:
        """Yield the rows of ``statuses``."""
        return self._all(statuses)

    def _by_sandbox(self, chosen: sa.Select[Any]) -> dict[tuple[str, str], list[Row]]:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self._connection.execute(chosen):
            found.setdefault((row.container_id, row.sandbox_ifname), []).append(_plain(row))
        return found

    def _all(self, table: sa.Table) -> Iterator[Row]:
        for row in self._connection.execute(sa.select(table), execution_options={"yield_per": _PAGE}):
            yield _plain(row)


@contextmanager
def open_read_view(url: str, ledger: str) -> Iterator[ReadView]:
    """Yield the rows of *ledger* as they are at the beginning of the block.

    Raises DatabaseUnavailableError, and ProjectionError if there is no database, or one of another version or ledger.
    """
    engine = _open(url)
    try:
        with engine.connect() as connection, connection.begin():
            require_current(connection)
            yield ReadView(connection, ledger)
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        reason = error.orig if isinstance(error, exc.DBAPIError) else error
        raise DatabaseUnavailableError(f"the database does not answer: {reason}") from error
    except exc.DBAPIError as error:
        raise statement_error(error.orig) from error
    finally:
        engine.dispose()


def _open(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, isolation_level="REPEATABLE READ")
        require_database(parsed)
        engine = sa.create_engine(parsed)
    except (exc.ArgumentError, ImportError) as error:
        raise ProjectionError(f"the database can't be opened: {error}") from error
    event.listen(engine, "connect", _only_read)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _only_read(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")


def _plain(row: sa.Row[Any]) -> Row:
    return dict(row._mapping)
