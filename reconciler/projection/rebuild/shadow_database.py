"""Make a projection anew beside the one that is in use, and put it in its place in one transaction.

For SQLite *beside* is a second file, whose rows are copied; for PostgreSQL a schema of the same database, whose tables
are moved. It is drawn up in an SQLite file for both: to give PostgreSQL all rows at the end, once each and without
keys, takes a tenth of what it takes to have it write those of one batch after another. Whoever writes to the one in use
is kept waiting meanwhile, and then finds rows that are as far as its own or further.
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
    """The place beside the database at *url*; empty from the start.

    ``draft`` is the URL of where it is drawn up, without ``indexes`` for readers, until it is told to ``finish``; from
    then on ``url`` is that of where it is.
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
            there = parsed.update_query_dict({"options": f"-csearch_path={SCHEMA}"})
            self.url = there.render_as_string(hide_password=False)

    def finish(self) -> None:
        """Have all that is drawn up where ``swap`` takes it from, with what readers need."""
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
        """Keep others from writing to the database in use; yield how far it is, for ``swap``."""
        with self._engine.connect() as connection, connection.begin():
            if not self._sqlite:  # a row's lock would be waited for by those who lock the table: a deadlock
                connection.execute(sa.text("LOCK TABLE position IN ACCESS EXCLUSIVE MODE"))
            done = connection.scalar(sa.select(position.c.sequence))
            yield connection, done or 0

    def swap(self, connection: sa.Connection) -> None:
        """Put what is beside in the place of what is in use; it is there when the transaction is over."""
        election = connection.scalar(sa.select(position.c.election))
        self._replace(connection)
        if election:
            connection.execute(sa.update(position).values(election=election))

    def _replace(self, connection: sa.Connection) -> None:
        if self._sqlite:
            # Not before: a transaction locks all that is attached when it begins, also for who fills it still.
            connection.exec_driver_sql("ATTACH DATABASE ? AS beside", (str(self._path),))
            for name in _TABLES:
                connection.exec_driver_sql(f"DELETE FROM main.{name}")  # noqa: S608  # our own tables
                connection.exec_driver_sql(f"INSERT INTO main.{name} SELECT * FROM beside.{name}")  # noqa: S608
            return
        schema = connection.scalar(sa.text("SELECT current_schema()"))
        for name in _TABLES:
            connection.exec_driver_sql(f'DROP TABLE "{schema}".{name}')
            connection.exec_driver_sql(f'ALTER TABLE {SCHEMA}.{name} SET SCHEMA "{schema}"')
        connection.exec_driver_sql(f"DROP SCHEMA {SCHEMA}")

    def close(self) -> None:
        """Take away what is beside."""
        self._remove_files()
        if self._scratch:
            self._scratch.close()
            with transaction(self._engine) as connection:
                connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        self._engine.dispose()

    def _remove_files(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
