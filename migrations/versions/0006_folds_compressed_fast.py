"""PostgreSQL compresses folds with LZ4 if it can: its default takes longer than the rest of a row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KNOWS_LZ4 = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
"""No row before version 14; false if the server was built without LZ4."""


def upgrade() -> None:
    """Set the compression; existing rows change when they are written again."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql" and connection.scalar(sa.text(_KNOWS_LZ4)):
        op.execute("ALTER TABLE sandboxes ALTER COLUMN fold SET COMPRESSION lz4")


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
