"""The gauge of open leaks follows the ledger, not the scans."""

from __future__ import annotations

from pathlib import Path

from events.ledger.memory import MemoryLedger
from events.schema import Leak, LeakId, LeakKind, LeakObserved, LeakReclaimed, NodeName, RequestId
from nodeworker.journal.journal import Journal
from nodeworker.leaks.evidence.container_runtime import CriRuntime, SharedRuntime
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.reporter import LeakReporter
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics


async def test_open_leaks_are_those_of_the_ledger_between_two_scans(tmp_path: Path) -> None:
    journal, metrics = Journal(MemoryLedger(), NodeName("node-1")), WorkerMetrics()
    runtime = SharedRuntime(CriRuntime(""))
    scanner = LeakScanner(journal.state, journal.boot_id, runtime, Footprint(str(tmp_path)), str(tmp_path))
    reporter = LeakReporter(journal, scanner, metrics, 3600.0)
    leaks = [Leak(id=LeakId(f"address/10.0.0.{n}"), kind=LeakKind.ADDRESS_UNOWNED, what=f"{n}") for n in range(8)]
    for leak in leaks:
        await journal.record(LeakObserved(leak=leak, sightings=2))
    seen = [metrics.registry.get_sample_value("plumbline_leaks_open")]
    for leak in leaks:
        await journal.record(LeakReclaimed(request=RequestId(""), leak=leak))
        seen.append(metrics.registry.get_sample_value("plumbline_leaks_open"))
    assert seen == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert reporter is not None
