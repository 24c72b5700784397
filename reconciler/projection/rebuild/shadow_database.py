"""Build a projection in a shadow database, and swap it with the one in use in one transaction.

For SQLite the shadow is a second file, whose rows are copied. For PostgreSQL it is a schema in the same database, whose
tables are moved. For both, the draft is an SQLite file: one bulk copy of the final rows without keys costs PostgreSQL a
tenth of writing every batch. Writers of the database in use wait during the swap; afterwards they find rows at their
own position or later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from reconciler.projection.rebuild import snapshot
from reconciler.projection.rebuild.scratch import Scratch
from reconciler.projection.sql import indexes
from reconciler.projection.sql.engine import open_engine, transaction
from reconciler.projection.sql.schema import upgrade
from reconciler.projection.sql.tables import metadata, position

SCHEMA = "plumbline_rebuild"
_TABLES = ("alembic_version", *(table.name for table in metadata.sorted_tables))


class ShadowDatabase:
    """The shadow of the database at *url*. It starts empty.

    ``draft`` is the URL of the draft, without the ``indexes`` for readers. After ``finish``, ``url`` is the URL of the
    finished shadow.
    """

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        upgrade(url)
        self._engine = open_engine(url)
        self._sqlite = self._engine.dialect.name == "sqlite"
        if not self._sqlite:
            with transaction(self._engine) as connection:
                connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
                connection.execute(sa.text(f"CREATE SCHEMA {SCHEMA}"))
        self._scratch = None if self._sqlite else Scratch("plumbline-rebuild-")
        self._path = self._scratch.path / "draft.db" if self._scratch else Path(f"{parsed.database}.rebuild")
        self._remove_files()
        self.url = self.draft = f"sqlite:///{self._path}"
        if not self._sqlite:
            with_schema = parsed.update_query_dict({"options": f"-csearch_path={SCHEMA}"})
            self.url = with_schema.render_as_string(hide_password=False)

    def finish(self) -> None:
        """Prepare the drafted rows for ``swap``, with the indexes for readers."""
        upgrade(self.url)
        engine = open_engine(self.url, unfinished=True)
        try:
            with transaction(engine) as connection:
                if self._sqlite:
                    indexes.make(connection)
                else:
                    snapshot.fill(self._path, connection)
        finally:
            engine.dispose()

    @contextmanager
    def swapping(self) -> Iterator[tuple[sa.Connection, int]]:
        """Lock the database in use against writers; yield a connection for ``swap`` and its position."""
        with self._engine.connect() as connection, connection.begin():
            if not self._sqlite:  # a row lock would deadlock with a later lock of the table
                connection.execute(sa.text("LOCK TABLE position IN ACCESS EXCLUSIVE MODE"))
            done = connection.scalar(sa.select(position.c.sequence))
            yield connection, done or 0

    def swap(self, connection: sa.Connection) -> None:
        """Replace the rows in use by those of the shadow; visible when the transaction commits."""
        election = connection.scalar(sa.select(position.c.election))
        self._replace(connection)
        if election:
            connection.execute(sa.update(position).values(election=election))

    def _replace(self, connection: sa.Connection) -> None:
        if self._sqlite:
            # Only now: a transaction locks all attached databases at its beginning, also against the process that fills
            # them.
            connection.exec_driver_sql("ATTACH DATABASE ? AS shadow", (str(self._path),))
            for name in _TABLES:
                connection.exec_driver_sql(f"DELETE FROM main.{name}")  # noqa: S608  # only names of our tables
                connection.exec_driver_sql(f"INSERT INTO main.{name} SELECT * FROM shadow.{name}")  # noqa: S608  # only names of our tables
            return
        schema = connection.scalar(sa.text("SELECT current_schema()"))
        for name in _TABLES:
            connection.exec_driver_sql(f'DROP TABLE "{schema}".{name}')
            connection.exec_driver_sql(f'ALTER TABLE {SCHEMA}.{name} SET SCHEMA "{schema}"')
        connection.exec_driver_sql(f"DROP SCHEMA {SCHEMA}")

    def close(self) -> None:
        """Remove the shadow."""
        self._remove_files()
        if self._scratch:
            self._scratch.close()
            with transaction(self._engine) as connection:
                connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        self._engine.dispose()

    def _remove_files(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
