"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "position",
        sa.Column("ledger", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    _make_sandboxes()
    op.create_table(
        "pending",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "anomalies",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
    )


def _make_sandboxes() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("container_id", sa.Text, primary_key=True),
        sa.Column("ifname", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("pod", sa.Text, nullable=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("netns", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("requested_at", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("fold", sa.LargeBinary, nullable=False),
    )
    op.create_index("sandboxes_by_pod", "sandboxes", ["namespace", "pod"])
    op.create_index("sandboxes_by_phase", "sandboxes", ["live", "phase"])
    op.create_table(
        "attachments",
        sa.Column("container_id", sa.Text, primary_key=True),
        sa.Column("sandbox_ifname", sa.Text, primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("ifname", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("cni_name", sa.Text, nullable=False),
        sa.Column("is_default", sa.Boolean, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("addresses", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
