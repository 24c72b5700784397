"""The expected tables for given events, computed without the store, by a fold of all events."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from events.fold import Sandbox, SandboxKey, State
from events.schema import Stored
from reconciler.projection.fold.address_holdings import AddressHolding, address_holdings
from reconciler.projection.fold.history_rows import NetworkVersionRows, drift_rows, leak_history_row
from reconciler.projection.fold.rows import (
    anomaly_rows,
    attachment_row,
    leak_row,
    node_row,
    pending_row,
    sandbox_row,
    status_row,
)
from reconciler.projection.sql.tables import metadata

Table = list[tuple[Any, ...]]


def folded(events: Iterable[Stored], ledger: str = "NODE") -> dict[str, Table]:
    """Return the tables for *events*."""
    state = State(keep_closed=True)
    created: dict[SandboxKey, int] = {}
    latest: dict[str, Stored] = {}
    odd: list[dict[str, Any]] = []
    statuses: dict[tuple[str, str], dict[str, Any]] = {}
    drift: list[dict[str, Any]] = []
    leaks: list[dict[str, Any]] = []
    versions: dict[tuple[str, str], dict[str, Any]] = {}
    addresses: list[dict[str, Any]] = []
    for stored in events:
        before = dict(state.sandboxes)
        sandbox = state.apply(stored)
        if sandbox is not None:
            _hold(addresses, stored, before.get(sandbox.key), sandbox)
        drift += drift_rows(stored, sandbox)
        leaks += [row for row in [leak_history_row(stored)] if row is not None]
        _use(versions, stored)
        if sandbox is not None:
            created.setdefault(sandbox.key, stored.sequence)
        if stored.event.node:
            latest[stored.event.node] = stored
        if (row := status_row(stored)) is not None:
            statuses[row["namespace"], row["pod"]] = row
        odd += anomaly_rows(state.anomalies)
        state.anomalies.clear()
    position = {"ledger": ledger, "sequence": state.sequence, "election": 0, "forgotten": ""}
    return _sorted(
        {
            "position": [position] if state.sequence else [],
            "nodes": [
                node_row(stored, state.epochs.get(stored.event.node, 0), state.commands.get(stored.event.node, 0))
                for stored in latest.values()
            ],
            "leaks": [leak_row(node, leaked) for (node, _), leaked in state.leaks.items()],
            "sandboxes": [sandbox_row(sandbox, created[key]) for key, sandbox in state.sandboxes.items()],
            "attachments": [
                attachment_row(sandbox, place)
                for sandbox in state.sandboxes.values()
                for place in range(len(sandbox.attachments))
            ],
            "pending": [pending_row(*entry) for entry in state.pending.values()],
            "anomalies": odd,
            "statuses": list(statuses.values()),
            "addresses": addresses,
            "network_versions": list(versions.values()),
            "drift_history": drift,
            "leak_history": leaks,
        }
    )


def _hold(rows: list[dict[str, Any]], stored: Stored, before: Sandbox | None, after: Sandbox) -> None:
    """Begin and end the holdings of *stored* by comparing the holdings before and after it."""
    had, has = address_holdings(before), address_holdings(after)
    for row in rows:
        if row["until"] is None and (row["container_id"], row["sandbox_ifname"]) == after.key:
            one = AddressHolding(row["network"], row["ifname"], row["address"], row["prefix_length"])
            assert one in had
            if one not in has:
                row.update(until=stored.event.at, until_sequence=stored.sequence)
    for one in has:
        if one not in had:
            pod = {"namespace": after.pod.namespace, "pod": after.pod.name, "uid": after.pod.uid, "node": after.node}
            place = {"container_id": after.key.container_id, "sandbox_ifname": after.key.ifname}
            span = {"since": stored.event.at, "sequence": stored.sequence, "until": None, "until_sequence": None}
            rows.append({**one._asdict(), **pod, **place, **span})


def _use(rows: dict[tuple[str, str], dict[str, Any]], stored: Stored) -> None:
    versions = NetworkVersionRows()
    versions.step(stored)
    for row in versions.rows:
        key = row["network"], row["digest"]
        known = rows.setdefault(key, {**row, "uses": 0})
        known.update(last_at=row["last_at"], last_sequence=row["last_sequence"], uses=known["uses"] + row["uses"])


def stored_in(database: Path | str) -> dict[str, Table]:
    """Return the tables of *database*, an SQLite file or a URL."""
    with _engine(database if isinstance(database, str) else f"sqlite:///{database}").connect() as connection:
        return _sorted(
            {
                table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
                for table in metadata.sorted_tables
            }
        )


@functools.lru_cache(maxsize=4)
def _engine(url: str) -> sa.Engine:
    """Return an engine that keeps no connection: only the rendered statements of its last use."""
    return sa.create_engine(url, poolclass=sa.NullPool)


def _sorted(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Table]:
    return {
        name: sorted((tuple(sorted(row.items())) for row in rows), key=repr) for name, rows in sorted(tables.items())
    }
