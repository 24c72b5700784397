"""Run migrations on the connection that the caller hands over.

There is no ``alembic.ini``: the reconciler brings its database up to date by itself, in the transaction it opened.
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
