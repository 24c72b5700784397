"""Sandboxes whose status is not published, so that lookups skip their pods."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is false in existing rows until they are written again."""
    op.add_column("sandboxes", sa.Column("silent", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
