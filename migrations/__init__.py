"""The schema migrations of the projection, for Alembic; ``reconciler.projection.sql.schema`` runs them."""
