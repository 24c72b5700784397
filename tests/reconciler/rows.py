"""What the tables must hold for given events, computed without the store: the fold from zero."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from events.fold import SandboxKey, State
from events.ledger import Stored
from reconciler.projection.rows import (
    anomaly_rows,
    attachment_rows,
    leak_row,
    node_row,
    pending_row,
    sandbox_row,
    status_row,
)
from reconciler.projection.tables import metadata

Table = list[tuple[Any, ...]]


def folded(events: Iterable[Stored], ledger: str = "NODE") -> dict[str, Table]:
    """Return the tables for *events*."""
    state = State(keep_closed=True)
    created: dict[SandboxKey, int] = {}
    latest: dict[str, Stored] = {}
    odd: list[dict[str, Any]] = []
    statuses: dict[tuple[str, str], dict[str, Any]] = {}
    for stored in events:
        sandbox = state.apply(stored)
        if sandbox is not None:
            created.setdefault(sandbox.key, stored.sequence)
        if stored.event.node:
            latest[stored.event.node] = stored
        if (row := status_row(stored)) is not None:
            statuses[row["namespace"], row["pod"]] = row
        odd += anomaly_rows(state.anomalies)
        state.anomalies.clear()
    return _sorted(
        {
            "position": [{"ledger": ledger, "sequence": state.sequence}] if state.sequence else [],
            "nodes": [
                node_row(stored, state.epochs.get(stored.event.node, 0), state.commands.get(stored.event.node, 0))
                for stored in latest.values()
            ],
            "leaks": [leak_row(node, leaked) for (node, _), leaked in state.leaks.items()],
            "sandboxes": [sandbox_row(sandbox, created[key]) for key, sandbox in state.sandboxes.items()],
            "attachments": [row for sandbox in state.sandboxes.values() for row in attachment_rows(sandbox)],
            "pending": [pending_row(*entry) for entry in state.pending.values()],
            "anomalies": odd,
            "statuses": list(statuses.values()),
        }
    )


def stored_in(database: Path) -> dict[str, Table]:
    """Return the tables of *database*."""
    engine = sa.create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            return _sorted(
                {
                    table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
                    for table in metadata.sorted_tables
                }
            )
    finally:
        engine.dispose()


def _sorted(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Table]:
    return {name: sorted(tuple(sorted(row.items())) for row in rows) for name, rows in sorted(tables.items())}
