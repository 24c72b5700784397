"""Which request a sandbox is of, so that what was published for it is known without reading its fold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is empty in rows that are there until they are written again."""
    op.add_column("sandboxes", sa.Column("intent", sa.Text, nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    """Go back: the projection is made again from the ledger instead."""
    raise NotImplementedError("move the database away; it is made again from the ledger")
