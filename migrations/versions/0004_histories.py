"""Held addresses, the versions of networks, the history of drift and leaks.

They follow from events that were projected before these tables existed. So the migration deletes all rows, and the
reconciler projects them again from the ledger.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and delete all rows."""
    for name in ("position", "nodes", "sandboxes", "attachments", "pending", "anomalies", "statuses", "leaks"):
        op.execute(sa.delete(sa.table(name)))
    op.drop_index("sandboxes_by_phase", "sandboxes")
    where = sa.text("live")
    op.create_index("sandboxes_live", "sandboxes", ["namespace", "pod"], sqlite_where=where, postgresql_where=where)
    _make_addresses()
    _make_network_versions()
    _make_drift_history()
    _make_leak_history()


def _make_addresses() -> None:
    op.create_table(
        "addresses",
        sa.Column("address", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("network", sa.Text, primary_key=True),
        sa.Column("ifname", sa.Text, primary_key=True),
        sa.Column("prefix_length", sa.Integer, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("sandbox_ifname", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("pod", sa.Text, nullable=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("since", sa.Text, nullable=False),
        sa.Column("until", sa.Text),
        sa.Column("until_sequence", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    where = sa.text("until_sequence IS NULL")
    op.create_index("addresses_held", "addresses", ["container_id"], sqlite_where=where, postgresql_where=where)


def _make_network_versions() -> None:
    op.create_table(
        "network_versions",
        sa.Column("network", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("cni_name", sa.Text, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("first_at", sa.Text, nullable=False),
        sa.Column("first_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.Text, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
    )


def _make_drift_history() -> None:
    op.create_table(
        "drift_history",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("sandbox_ifname", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("pod", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("ifname", sa.Text, nullable=False),
        sa.Column("expected", sa.Text, nullable=False),
        sa.Column("found", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
    )
    op.create_index("drift_history_by_container", "drift_history", ["container_id"])


def _make_leak_history() -> None:
    op.create_table(
        "leak_history",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("leak_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("ifname", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("sightings", sa.BigInteger, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("failure", sa.Text, nullable=False),
    )
    op.create_index("leak_history_by_leak", "leak_history", ["node", "leak_id"])


def downgrade() -> None:
    """Fail: there is no downgrade; the reconciler rebuilds the projection from the ledger."""
    raise NotImplementedError("rename the database; the reconciler rebuilds it from the ledger")
