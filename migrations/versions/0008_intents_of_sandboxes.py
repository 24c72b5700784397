"""The request of each sandbox, so that its publication is known without reading its fold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is empty in existing rows until they are written again."""
    op.add_column("sandboxes", sa.Column("intent", sa.Text, nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
