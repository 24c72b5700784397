"""Hold projection, ledger and reality against one another, once."""

from __future__ import annotations

import time

from events.ledger import Ledger
from events.schema import NO_NODE, NodeName
from reconciler.projection.engine import DatabaseAwayError, ProjectionError
from reconciler.projection.reading import instant
from reconciler.verify import projection
from reconciler.verify.replay import Replay
from reconciler.verify.report import Difference, Findings, Kind, Report


async def verify(ledger: Ledger, stream: str, database: str, *, node: NodeName = NO_NODE) -> Report:
    """Return what differs, on *node* or on all. Raises LedgerUnavailableError."""
    started = time.monotonic()
    findings, replay = Findings(), Replay(ledger, node)
    try:
        live = await _projection(replay, stream, database, findings)
        return Report(
            ledger=stream,
            sequence=replay.sequence,
            events=replay.events,
            sandboxes=live,
            nodes=0,
            differences=tuple(findings.differences),
            counts=dict(findings.counts),
            unseen=tuple(findings.unseen),
            unproved=findings.unproved,
            seconds=time.monotonic() - started,
        )
    finally:
        replay.close()


async def _projection(replay: Replay, stream: str, database: str, findings: Findings) -> int:
    """Replay up to where the projection is, and compare the two; return how many sandboxes are live.

    The long part is done before the database is looked at, so that what is open there is not open for long.
    """
    try:
        with instant(database, stream) as rows:
            reached = rows.sequence
        end = await replay.ledger.last_sequence()
        if end < reached:
            message = (
                f"the database has {reached} events of the ledger {stream}, which has but {end}: it is another ledger, "
                "or one that lost its end; restore it, or move the database away to have it made again"
            )
            findings.add(Difference(kind=Kind.PROJECTION, message=message))
            return 0
        await replay.go_on(reached)
        with instant(database, stream) as rows:
            await replay.go_on(rows.sequence)
            return projection.compare(rows, replay, findings)
    except (ProjectionError, DatabaseAwayError) as error:
        findings.unseen.append(f"the projection: {error}")
        return 0
