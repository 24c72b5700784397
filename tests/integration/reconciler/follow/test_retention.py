from __future__ import annotations

from pathlib import Path

from events.ledger.memory import MemoryLedger
from events.schema import Pod
from reconciler.follow.retention import Retention
from tests.support.reconciler.rows import folded, stored_in
from tests.support.reconciler.running import running
from tests.support.stories.events import BEGIN_NS
from tests.support.stories.node import Node, busy_day

DAY_NS = 86_400 * 10**9


async def test_rows_older_than_the_retention_days_are_deleted(database: str, tmp_path: Path) -> None:
    ledger, node, clock = MemoryLedger(), Node(), [BEGIN_NS + DAY_NS]
    for event in busy_day(10, node):
        await ledger.append(event)
    async with running(
        ledger,
        database,
        maintenance=lambda metrics: [Retention(30, metrics, interval=0.01, step_pause=0.0, now=lambda: clock[0])],
    ) as run:
        last = await ledger.last_sequence()
        await run.at(last)
        assert stored_in(database)["sandboxes"] == folded([stored async for stored in ledger.read()])["sandboxes"]
        clock[0] += 40 * DAY_NS
        await run.until(lambda: (run.value("forgotten_rows_total") or 0) > 0)
        await run.until(lambda: {dict(row)["live"] for row in stored_in(database)["sandboxes"]} == {True})
        for event in node.attach("e" * 64, Pod("d", "p", "u")):
            last = await ledger.append(event)
        await run.at(last)
    tables = folded([stored async for stored in ledger.read()])
    assert stored_in(database)["sandboxes"] == [row for row in tables["sandboxes"] if dict(row)["live"]]
    assert all(dict(row)["until"] is None for row in stored_in(database)["addresses"])
