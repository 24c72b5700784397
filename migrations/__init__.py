"""The history of the projection's schema, for Alembic; ``reconciler.projection.schema`` runs it."""
