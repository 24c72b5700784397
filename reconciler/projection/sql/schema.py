"""Upgrade the database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from reconciler.projection.sql.engine import ProjectionError, open_engine, transaction


def upgrade(url: str) -> None:
    """Run the missing migrations on the database at *url*, in one transaction.

    Raises DatabaseUnavailableError, and ProjectionError for a database of a newer Plumbline.
    """
    engine = open_engine(url)
    try:
        with transaction(engine) as connection:
            config = _config(connection)
            _refuse_unknown(connection, ScriptDirectory.from_config(config))
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def require_current(connection: sa.Connection) -> None:
    """Raise ProjectionError unless the database has the schema of this version."""
    scripts = ScriptDirectory.from_config(_config(connection))
    _refuse_unknown(connection, scripts)
    if set(MigrationContext.configure(connection).get_current_heads()) != set(scripts.get_heads()):
        raise ProjectionError(
            "the database has an older schema: start the reconciler of this version, which upgrades it"
        )


def _config(connection: sa.Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _refuse_unknown(connection: sa.Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise ProjectionError(
                f"the database has schema revision {revision}, which this version of Plumbline does not know: "
                "run the newer version, or rename the database, and the reconciler rebuilds it from the ledger"
            )
