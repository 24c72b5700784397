"""Columns and indexes by age, so that retention finds old rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the columns and the indexes."""
    op.add_column("position", sa.Column("forgotten", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("anomalies", sa.Column("at", sa.Text, nullable=False, server_default=sa.text("''")))
    for name in ("anomalies", "drift_history", "leak_history"):
        op.create_index(f"{name}_by_age", name, ["at"])
    for name, table, column, which in (
        ("sandboxes_closed", "sandboxes", "changed_at", "NOT live"),
        ("addresses_ended", "addresses", "until", "until IS NOT NULL"),
    ):
        op.create_index(name, table, [column], sqlite_where=sa.text(which), postgresql_where=sa.text(which))


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
