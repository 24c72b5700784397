from __future__ import annotations

import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from reconciler.projection.sql.engine import DatabaseUnavailableError, ProjectionError, open_engine, transaction
from reconciler.projection.sql.schema import upgrade
from reconciler.projection.sql.tables import metadata


def test_the_migrations_create_exactly_the_declared_tables(database: str) -> None:
    engine = open_engine(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        keys = {name: sa.inspect(connection).get_pk_constraint(name)["constrained_columns"] for name in metadata.tables}
    engine.dispose()
    assert keys == {name: [c.name for c in table.primary_key] for name, table in metadata.tables.items()}


def test_an_upgrade_of_an_upgraded_database_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    upgrade(f"sqlite:///{path}")
    before = path.read_bytes()
    upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_the_database_is_readable_by_its_owner_only_and_so_is_its_log(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/new/x.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (x)"))
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").iterdir()}
    engine.dispose()
    assert modes["x.db"] == 0o600
    assert set(modes.values()) == {0o600}
    assert "x.db-wal" in modes


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectionError, match="can't be opened"):
        open_engine(f"sqlite:///{tmp_path}/file/x.db")


def test_a_missing_driver_is_reported_in_one_sentence() -> None:
    with pytest.raises(ProjectionError, match="can't be opened"):
        open_engine("postgresql+nosuchdriver://localhost/x")


def test_a_second_writer_waits_and_then_gets_database_away(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    first, second = open_engine(url), open_engine(url)
    with transaction(first), pytest.raises(DatabaseUnavailableError, match="locked"), transaction(second):
        raise AssertionError("two transactions at once")
    with transaction(second) as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    first.dispose()
    second.dispose()
