"""Drift, leaks, and the last command that each node took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and the columns."""
    op.add_column("nodes", sa.Column("command", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("sandboxes", sa.Column("drifting", sa.Boolean, nullable=False, server_default=sa.false()))
    where = sa.text("drifting")
    op.create_index("sandboxes_drifting", "sandboxes", ["container_id"], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "leaks",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("leak_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("ifname", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sightings", sa.BigInteger, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("first_at", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("fold", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
