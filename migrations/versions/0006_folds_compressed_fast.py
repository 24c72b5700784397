"""PostgreSQL compresses folds by LZ4 where it can: its own way takes longer than the rest of a row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KNOWS_LZ4 = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
"""No row before version 14; false where it was built without."""


def upgrade() -> None:
    """Have folds compressed so; those that are there stay as they are until they are written again."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql" and connection.scalar(sa.text(_KNOWS_LZ4)):
        op.execute("ALTER TABLE sandboxes ALTER COLUMN fold SET COMPRESSION lz4")


def downgrade() -> None:
    """Go back: the projection is made again from the ledger instead."""
    raise NotImplementedError("move the database away; it is made again from the ledger")
