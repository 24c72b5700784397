"""The history of the projection's schema, for Alembic; ``reconciler.projection.sql.schema`` runs it."""
