"""Compare the projection's rows with a fold of the whole ledger."""

from __future__ import annotations

import msgspec

from events.fold import Sandbox, SandboxKey
from events.schema import ContainerId, IfName, NodeName
from reconciler.projection.fold.address_holdings import AddressHolding, address_holdings
from reconciler.projection.fold.published import PodName
from reconciler.projection.fold.rows import (
    Row,
    attachment_row,
    leak_row,
    node_row,
    pending_row,
    sandbox_of,
    sandbox_row,
)
from reconciler.projection.read_view import ReadView, SandboxRows
from reconciler.verify.replay import Replay
from reconciler.verify.report import Difference, Findings, Kind
from reconciler.verify.spill_store import SpilledSandbox

_REMEDY = (
    "another program wrote to the database, or Plumbline has a defect: report it; "
    "`plumbline rebuild` rebuilds the database from the ledger"
)


def compare(rows: ReadView, replay: Replay, findings: Findings) -> int:
    """Add the differences between *rows* and *replay*, both at the same sequence, to *findings*.

    Return the number of live sandboxes. Ledger and database delete old data, each by its own rules. So either may lack
    what has ended. A row that is older than the ledger's data proves nothing, and is counted as unproved.
    """
    live, pods = _sandboxes(rows, replay, findings)
    _pending(rows, replay, findings)
    _nodes(rows, replay, findings)
    _leaks(rows, replay, findings)
    _statuses(rows, replay, pods, findings)
    return live


def _sandboxes(rows: ReadView, replay: Replay, findings: Findings) -> tuple[int, set[PodName]]:
    """Return the number of live sandboxes, and the live pods."""
    live, pods = 0, set[PodName]()
    for found in rows.sandboxes(replay.node):
        row = found.sandbox
        if row["live"]:
            live += 1
            pods.add(PodName(row["namespace"], row["pod"]))
        entry = replay.sandboxes.mark_compared(SandboxKey(ContainerId(row["container_id"]), IfName(row["ifname"])))
        if entry is None and row["live"] and _ledger_has(replay, row["node"], row["created"]):
            what = f"sandbox {row['container_id'][:12]} ({row['ifname']}) on node {row['node']}"
            findings.add(_row_difference(row, f"{what} is live in the database and unknown to the ledger: {_REMEDY}"))
        elif entry is None or entry.created > row["created"] or _partly_deleted(rows, found, entry):
            findings.unproved += 1
        else:
            expected = entry._replace(created=row["created"]) if _started_anew(rows, row, entry) else entry
            if different := _different_columns(found, expected):
                message = f"the database differs from the ledger in {', '.join(different)}: {_REMEDY}"
                findings.add(_sandbox_difference(entry.sandbox, message))
    for entry in replay.sandboxes.unmarked():
        if entry.sandbox.holds_resources:
            message = f"the database lacks this sandbox, which is {entry.sandbox.phase}: {_REMEDY}"
            findings.add(_sandbox_difference(entry.sandbox, message))
    return live, pods


def _started_anew(rows: ReadView, row: Row, entry: SpilledSandbox) -> bool:
    """Return True if the database deleted the sandbox and recreated it at a later event."""
    return bool(rows.forgotten) and entry.created < row["created"]


def _partly_deleted(rows: ReadView, found: SandboxRows, entry: SpilledSandbox) -> bool:
    """Return True if that later event was only another DEL: then the row lacks what the ledger still has."""
    return _started_anew(rows, found.sandbox, entry) and not found.attachments


def _different_columns(found: SandboxRows, entry: SpilledSandbox) -> list[str]:
    sandbox = entry.sandbox
    different = _unequal(found.sandbox, sandbox_row(sandbox, entry.created))
    if not _same_fold(found.sandbox["fold"], sandbox):
        different.append("fold")
    if found.attachments != [attachment_row(sandbox, place) for place in range(len(sandbox.attachments))]:
        different.append("attachments")
    holds = {AddressHolding(row["network"], row["ifname"], row["address"], row["prefix_length"]) for row in found.holds}
    if holds != set(address_holdings(sandbox)):
        different.append("addresses")
    return different


def _pending(rows: ReadView, replay: Replay, findings: Findings) -> None:
    state = dict(replay.state.pending)
    for row in rows.pending():
        if replay.node and row["node"] != replay.node:
            continue
        entry = state.pop(row["event_id"], None)
        what = f"request {row['event_id']} ({row['type']}) on node {row['node']}"
        if entry is None:
            if _ledger_has(replay, row["node"], row["sequence"]):
                findings.add(_row_difference(row, f"{what} is open in the database and not in the ledger: {_REMEDY}"))
        elif different := _unequal(row, pending_row(*entry)):
            findings.add(_row_difference(row, f"{what} differs from the ledger in {', '.join(different)}: {_REMEDY}"))
    for entry in state.values():
        row = pending_row(*entry)
        what = f"request {row['event_id']} ({row['type']}) on node {row['node']}"
        findings.add(_row_difference(row, f"{what} is open in the ledger and not in the database: {_REMEDY}"))


def _nodes(rows: ReadView, replay: Replay, findings: Findings) -> None:
    known = {row["node"]: row for row in rows.nodes()}
    for node, stored in replay.latest.items():
        expected = node_row(stored, replay.state.epochs.get(node, 0), replay.state.commands.get(node, 0))
        row = known.get(node)
        if row is None:
            findings.add(_row_difference(expected, f"the database lacks node {node}: {_REMEDY}"))
        elif row["sequence"] > expected["sequence"]:
            findings.unproved += 1
        elif different := [
            name for name in _unequal(row, expected) if name not in _MAXIMA or row[name] < expected[name]
        ]:
            findings.add(
                _row_difference(
                    row, f"the row of node {node} differs from the ledger in {', '.join(different)}: {_REMEDY}"
                )
            )


_MAXIMA = frozenset({"epoch", "command"})
"""The ledger may have deleted the event with the greatest value."""


def _leaks(rows: ReadView, replay: Replay, findings: Findings) -> None:
    state = dict(replay.state.leaks)
    for row in rows.leaks():
        if replay.node and row["node"] != replay.node:
            continue
        leaked = state.pop((NodeName(row["node"]), row["leak_id"]), None)
        what = f"leak {row['leak_id']} on node {row['node']}"
        if leaked is None:
            if _ledger_has(replay, row["node"], row["sequence"]):
                findings.add(_row_difference(row, f"{what} is open in the database and not in the ledger: {_REMEDY}"))
            continue
        # The ledger deletes earlier observations of a leak that is still open.
        different = [name for name in _unequal(row, leak_row(NodeName(row["node"]), leaked)) if name != "first_at"]
        if different:
            findings.add(_row_difference(row, f"{what} differs from the ledger in {', '.join(different)}: {_REMEDY}"))
    for node, leak in state:
        message = f"leak {leak} on node {node} is open in the ledger and not in the database: {_REMEDY}"
        findings.add(Difference(kind=Kind.PROJECTION, message=message, node=node))


def _statuses(rows: ReadView, replay: Replay, pods: set[PodName], findings: Findings) -> None:
    """Compare the published statuses. *pods* are live; the database may have deleted old records of the others."""
    for row in rows.statuses():
        pod = PodName(row["namespace"], row["pod"])
        expected = replay.status_rows.mark_compared(pod)
        if expected is None or expected["sequence"] < row["sequence"]:
            findings.unproved += 1
        elif different := _unequal(row, expected):
            message = (
                f"pod {pod}: the last published status differs from the ledger in {', '.join(different)}: {_REMEDY}"
            )
            findings.add(Difference(kind=Kind.PROJECTION, message=message, pod=str(pod)))
    for pod in replay.status_rows.unmarked():
        record = replay.status_rows.get(pod)
        if record is not None and record["at"] < rows.forgotten and pod not in pods:
            continue
        message = f"pod {pod}: the database lacks the record of its published network-status: {_REMEDY}"
        findings.add(Difference(kind=Kind.PROJECTION, message=message, pod=str(pod)))


def _ledger_has(replay: Replay, node: str, sequence: int) -> bool:
    """Return True if the ledger still has an open item of *sequence*: it deletes only old items that have ended."""
    oldest = replay.oldest.get(NodeName(node))
    return oldest is not None and sequence >= oldest


def _same_fold(fold: bytes, sandbox: Sandbox) -> bool:
    """Compare values, not text: an older version may have written the text."""
    try:
        return sandbox_of(fold) == sandbox
    except msgspec.MsgspecError:
        return False


def _unequal(row: Row, expected: Row) -> list[str]:
    """Return the names of the different columns, without those that only the projection reads."""
    known = [name for name in expected if name not in _INTERNAL and (name not in _ADDED_LATER or row[name])]
    return [name for name in known if row.get(name) != expected[name]]


_INTERNAL = frozenset({"fold", "event"})
_ADDED_LATER = frozenset({"intent", "silent"})
"""Columns that are empty or false in rows of older versions."""


def _sandbox_difference(sandbox: Sandbox, message: str) -> Difference:
    key = sandbox.key
    return Difference(
        kind=Kind.PROJECTION,
        message=f"pod {sandbox.pod}, sandbox {key.container_id[:12]} ({key.ifname}) on node {sandbox.node}: {message}",
        node=sandbox.node,
        pod=str(sandbox.pod),
        sandbox=key.container_id,
    )


def _row_difference(row: Row, message: str) -> Difference:
    return Difference(kind=Kind.PROJECTION, message=message, node=row["node"], sandbox=row.get("container_id", ""))
