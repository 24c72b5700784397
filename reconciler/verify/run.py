"""Compare projection, ledger and reality once."""

from __future__ import annotations

import contextlib
import time

from msgspec.structs import replace

from events.ledger.commands import Commands
from events.ledger.ledger import Ledger
from events.nats.commands import JetStreamCommands
from events.nats.ledger import connect_or_fail
from events.schema import NO_NODE, NodeName
from reconciler.follow.connections import whole_ledger
from reconciler.projection.read_view import open_read_view
from reconciler.projection.sql.engine import DatabaseUnavailableError, ProjectionError
from reconciler.settings import ReconcilerSettings
from reconciler.status.open_sink import open_sink
from reconciler.status.sink import StatusSink
from reconciler.verify import projection, reality
from reconciler.verify.replay import Replay
from reconciler.verify.report import Difference, Findings, Kind, Report


async def verify_configured(
    settings: ReconcilerSettings, node: NodeName = NO_NODE, patience: float = reality.PATIENCE
) -> Report:
    """Return the report for the configuration *settings*, of *node* or of all nodes.

    Each node has *patience* seconds to answer. Raises SettingsError, LedgerError.
    """
    async with contextlib.AsyncExitStack() as stack:
        ledger = await connect_or_fail(*whole_ledger(settings), "plumbline-verify", lambda anomaly: None)
        stack.push_async_callback(ledger.close)
        sink = await open_sink(settings)
        if sink is not None:
            stack.push_async_callback(sink.close)
        commands = JetStreamCommands(ledger)
        report = await verify(ledger, ledger.stream, settings.database, commands, sink, node=node, patience=patience)
        return replace(report, anomalies=tuple(ledger.decoder.lines()))


async def verify(
    ledger: Ledger,
    stream: str,
    database: str,
    commands: Commands | None = None,
    sink: StatusSink | None = None,
    *,
    node: NodeName = NO_NODE,
    patience: float = reality.PATIENCE,
) -> Report:
    """Return the report of *node*, or of all nodes.

    Without *commands* it skips the nodes, without *sink* the network-statuses. Raises LedgerUnavailableError.
    """
    started = time.monotonic()
    findings, replay = Findings(), Replay(ledger, node)
    try:
        live = await _projection(replay, stream, database, findings)
        compared, answered = replay.sequence, 0
        if commands is not None:
            await replay.advance(await ledger.last_sequence())
            answered = await reality.nodes(replay, commands, findings, patience)
        if sink is not None:
            await replay.advance(await ledger.last_sequence())
            await reality.statuses(replay, sink, findings)
        if node and node not in replay.latest:
            findings.unseen.append(f"node {node}: the ledger has no events of it; check the name")
        return Report(
            ledger=stream,
            sequence=compared,
            events=replay.events,
            sandboxes=live,
            nodes=answered,
            differences=tuple(findings.differences),
            counts=dict(findings.counts),
            unseen=tuple(findings.unseen),
            warnings=tuple(each.message for warned in replay.warnings.values() for each in warned),
            unproved=findings.unproved,
            seconds=time.monotonic() - started,
        )
    finally:
        replay.close()


async def _projection(replay: Replay, stream: str, database: str, findings: Findings) -> int:
    """Replay up to the projection's position, and compare the two; return the number of live sandboxes.

    Most of the replay happens before the database is opened: its read transaction stays short.
    """
    try:
        with open_read_view(database, stream) as rows:
            reached = rows.sequence
        end = await replay.ledger.last_sequence()
        if end < reached:
            message = (
                f"the database has {reached} events of the ledger {stream}, but the ledger has only {end}: it is "
                "another ledger, or it lost its end; restore it, or rename the database, and the reconciler "
                "rebuilds it"
            )
            findings.add(Difference(kind=Kind.PROJECTION, message=message))
            return 0
        await replay.advance(reached)
        with open_read_view(database, stream) as rows:
            await replay.advance(rows.sequence)
            return projection.compare(rows, replay, findings)
    except (ProjectionError, DatabaseUnavailableError) as error:
        findings.unseen.append(f"the projection: {error}")
        return 0
