"""The projection's tables.

Columns serve people and their queries. ``sandboxes.fold``, ``leaks.fold`` and ``pending.event`` serve the projection
itself: they contain all that the fold needs to continue, so the process need not keep or re-read anything else.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

position = sa.Table(
    "position",
    metadata,
    sa.Column("ledger", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("election", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("forgotten", sa.Text, nullable=False, server_default=sa.text("''")),
)
"""Sequence of the last event in the other tables, written in the same transaction. ``election`` is the sequence of the
election whose winner may write; 0: the database is not shared. Rows about what ended before ``forgotten``, RFC 3339,
may have been deleted."""

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("command", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)

sandboxes = sa.Table(
    "sandboxes",
    metadata,
    sa.Column("container_id", sa.Text, primary_key=True),
    sa.Column("ifname", sa.Text, primary_key=True),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("pod", sa.Text, nullable=False),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("netns", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("drifting", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("error_class", sa.Text, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("requested_at", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("fold", sa.LargeBinary, nullable=False),
    sa.Column("intent", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("silent", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("sandboxes_by_pod", "namespace", "pod"),
    sa.Index("sandboxes_live", "namespace", "pod", sqlite_where=sa.text("live"), postgresql_where=sa.text("live")),
    sa.Index(
        "sandboxes_drifting", "container_id", sqlite_where=sa.text("drifting"), postgresql_where=sa.text("drifting")
    ),
    sa.Index("sandboxes_closed", "changed_at", sqlite_where=sa.text("NOT live"), postgresql_where=sa.text("NOT live")),
)
"""One row per sandbox, until retention deletes it (``reconciler.projection.sql.deletion``). ``live``: it may hold
resources on the node. ``drifting``: the node differed from it at the last observation. ``created`` and ``sequence`` are
the sequences of its first and last event. ``intent`` is the ID of its request. ``silent``: its plan publishes no
network-status. Rows of older versions have empty and false in the last two."""

attachments = sa.Table(
    "attachments",
    metadata,
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
"""``place`` is the index in the plan. ``addresses`` are separated by blanks and have prefix lengths."""

pending = sa.Table(
    "pending",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("event", sa.LargeBinary, nullable=False),
)
"""Requests without outcome."""

anomalies = sa.Table(
    "anomalies",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reason", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Index("anomalies_by_age", "at"),
)
"""Events that contradict earlier events. ``at`` is empty in rows of older versions."""

leaks = sa.Table(
    "leaks",
    metadata,
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
"""Open leaks as of their last observation. ``failure`` is the reason why the last reclaim failed."""

statuses = sa.Table(
    "statuses",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("pod", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text, nullable=False),
    sa.Column("ifname", sa.Text, nullable=False),
    sa.Column("intent", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("refused", sa.Boolean, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)
"""The last record about each pod's network-status: the published text, or (``refused``) that it can't be published."""

addresses = sa.Table(
    "addresses",
    metadata,
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
    sa.Index(
        "addresses_held",
        "container_id",
        sqlite_where=sa.text("until_sequence IS NULL"),
        postgresql_where=sa.text("until_sequence IS NULL"),
    ),
    sa.Index(
        "addresses_ended",
        "until",
        sqlite_where=sa.text("until IS NOT NULL"),
        postgresql_where=sa.text("until IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)
"""The attachment that held an address (canonical, without prefix length) on a network. ``until`` is null while it is
held. ``sequence`` and ``until_sequence`` are the sequences of the first and last event."""

network_versions = sa.Table(
    "network_versions",
    metadata,
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
"""The versions of each network: the configurations that plans used, without the keys of a single pod."""

drift_history = sa.Table(
    "drift_history",
    metadata,
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
    sa.Index("drift_history_by_container", "container_id"),
    sa.Index("drift_history_by_age", "at"),
)
"""Each drift that was ``observed`` or ``repaired``, or whose repair ``failed``. An empty ``kind``: nothing differed."""

leak_history = sa.Table(
    "leak_history",
    metadata,
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
    sa.Index("leak_history_by_leak", "node", "leak_id"),
    sa.Index("leak_history_by_age", "at"),
)
"""Each leak that was ``observed``, ``gone`` or ``reclaimed``, or whose reclaim ``failed``."""
