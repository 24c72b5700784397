"""Run migrations on the connection of the caller.

There is no ``alembic.ini``: the reconciler upgrades its database by itself, in a transaction that it opened.
"""

from __future__ import annotations

from alembic import context

from reconciler.projection.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
