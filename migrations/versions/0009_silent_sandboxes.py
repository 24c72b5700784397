"""Whose status nobody publishes, so that these pods are not looked at again and again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is false in rows that are there until they are written again."""
    op.add_column("sandboxes", sa.Column("silent", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Go back: the projection is made again from the ledger instead."""
    raise NotImplementedError("move the database away; it is made again from the ledger")
