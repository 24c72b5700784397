"""Scan the node for leaks, and record each new leak in the ledger.

The worker scans at the start, at an interval, and soon after a namespace was removed. A leak is recorded when a scan
finds it first and when one finds it again, because only a leak found twice may be freed; after that only if it changes.
"""

from __future__ import annotations

import asyncio
import os
from typing import NamedTuple

import structlog

from events.fold import Leaked, Sandbox
from events.ledger.ledger import LedgerError
from events.schema import Event, LeakId, LeakObserved, LeakReclaimed
from nodeworker.journal.journal import Journal
from nodeworker.kernel.namespaces import why_gone
from nodeworker.leaks.evidence.namespace_watch import NamespaceWatch
from nodeworker.leaks.judge import Finding, Judgement, ordered
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

APART = 2.0
"""Seconds between two scans that count as two sightings."""
_CONFIRM = 2.1
"""Seconds until the scan that confirms a new leak."""
_SOON = 5.0
"""Seconds until the next scan while a namespace is gone and the runtime still has its sandbox."""
_ALARM = 3600.0
"""Seconds for which the runtime's list is checked for a reclaimed sandbox."""
_SETTLE = 0.2
"""Seconds from the removal of a namespace to the scan: the runtime forgets the sandbox about then."""
_MAX_NEW = 500
"""New leaks that one scan records; the others are recorded after these are freed."""


class ScanSummary(NamedTuple):
    """The result of one scan."""

    leaks: int
    unseen: tuple[str, ...]
    """Sentences that say which part of the node could not be scanned, and why."""


class LeakReporter:
    """Scans at the right times, and records the findings."""

    def __init__(self, journal: Journal, scanner: LeakScanner, metrics: WorkerMetrics, interval: float) -> None:
        """*interval*: seconds between scans without a reason for an earlier one."""
        self._journal = journal
        self._scanner = scanner
        self._metrics = metrics
        self._interval = interval
        self._first: dict[LeakId, float] = {}
        """When this worker first found a leak, by the loop's clock."""
        self._reclaimed: dict[str, float] = {}
        """Container IDs of reclaimed sandboxes, and when, by the loop's clock."""
        journal.subscribe(self._recorded)
        metrics.leaks_open.set_function(lambda: len(journal.state.leaks))
        self._scan_lock = asyncio.Lock()
        self._namespace_removed = asyncio.Event()

    async def run(self) -> None:
        """Scan without end."""
        watch = NamespaceWatch(self._namespaces_removed)
        pause = 0.0
        try:
            while True:
                try:
                    async with asyncio.timeout(pause):
                        await self._namespace_removed.wait()
                except TimeoutError:
                    pass
                else:
                    await asyncio.sleep(_SETTLE)
                self._namespace_removed.clear()
                pause = await self._scan_for_pause()
                watch.follow(sandbox.netns for sandbox in self._journal.state.sandboxes.values())
        finally:
            watch.close()

    async def scan_now(self) -> ScanSummary:
        """Scan everything now and record what is new. Raises LedgerError."""
        judgement = await self._scan()
        return ScanSummary(len(judgement.findings), tuple(judgement.unseen))

    def _namespaces_removed(self, names: set[str]) -> None:
        """Scan soon if the ledger still has a sandbox in one of the namespaces: it had no DEL."""
        sandboxes = self._journal.state.sandboxes.values()
        if any(os.path.basename(sandbox.netns) in names and why_gone(sandbox.netns) for sandbox in sandboxes):
            self._namespace_removed.set()

    async def _scan_for_pause(self) -> float:
        """Scan, and return the seconds until the next scan."""
        try:
            judgement = await self._scan()
        except LedgerError as error:
            log.warning("leaks_not_told", error=str(error))
            return self._interval
        except Exception:  # one failed scan must not end the scanning
            log.exception("look_broke")
            return self._interval
        recorded = self._recorded_leaks()
        if any(found in recorded and recorded[found].observed.sightings < 2 for found in judgement.findings):
            return min(_CONFIRM, self._interval)
        return min(_SOON, self._interval) if judgement.rescan_soon else self._interval

    async def _scan(self) -> Judgement:
        async with self._scan_lock:
            judgement = await self._scanner.scan()
            self._raise_alarm(judgement)
            await self._record_changes(judgement)
            return judgement

    def _recorded(self, event: Event, _: Sandbox | None) -> None:
        """Remember a reclaimed sandbox: the runtime must not run it."""
        if isinstance(event.data, LeakReclaimed) and event.sandbox:
            self._reclaimed[event.sandbox] = asyncio.get_running_loop().time()

    def _raise_alarm(self, judgement: Judgement) -> None:
        """Log once if the runtime runs a sandbox that was reclaimed and not attached again."""
        now = asyncio.get_running_loop().time()
        live = {key.container_id for key in self._journal.state.sandboxes}
        for container_id in self._reclaimed.keys() & judgement.running - live:
            self._metrics.freed_falsely()
            log.error("freed_falsely", sandbox=container_id, meaning="the worker reclaimed it, but the runtime runs it")
            del self._reclaimed[container_id]
        self._reclaimed = {name: at for name, at in self._reclaimed.items() if now - at < _ALARM}

    async def _record_changes(self, judgement: Judgement) -> None:
        recorded = self._recorded_leaks()
        new_leaks = 0
        for finding in ordered(judgement.findings):
            new = finding.leak.id not in recorded
            new_leaks += new
            if new_leaks > _MAX_NEW and new:
                continue
            await self._record_finding(finding, recorded.get(finding.leak.id))
        if new_leaks > _MAX_NEW:
            judgement.unseen.append(f"{new_leaks - _MAX_NEW} leaks more: they are recorded after others are freed")
        self._first = {leak: at for leak, at in self._first.items() if leak in judgement.findings}
        for leak_id in recorded.keys() - judgement.findings.keys():
            if judgement.decides(leak_id) and leak_id in self._recorded_leaks():
                await self._record_gone(recorded[leak_id])

    async def _record_finding(self, finding: Finding, recorded: Leaked | None) -> None:
        now = asyncio.get_running_loop().time()
        sightings = 1
        if recorded is not None and (recorded.observed.leak, recorded.observed.judged) == (
            finding.leak,
            finding.judged,
        ):
            if recorded.observed.sightings > 1 or now - self._first.setdefault(finding.leak.id, now) < APART:
                return
            sightings = recorded.observed.sightings + 1
        else:
            self._first[finding.leak.id] = now
        observed = LeakObserved(
            leak=finding.leak, evidence=finding.evidence, sightings=sightings, judged=finding.judged
        )
        await self._journal.record(observed, finding.leak.sandbox)
        if sightings == 2:
            self._metrics.leak_observed(finding.leak.kind)
            log.info("leak_observed", kind=finding.leak.kind.value, what=finding.leak.what, evidence=finding.evidence)

    async def _record_gone(self, recorded: Leaked) -> None:
        leak = recorded.observed.leak
        await self._journal.record(LeakObserved(leak=leak, sightings=0, gone=True), leak.sandbox)

    def _recorded_leaks(self) -> dict[LeakId, Leaked]:
        """Return the node's leaks in the ledger."""
        node = self._journal.node
        return {leak_id: leaked for (where, leak_id), leaked in self._journal.state.leaks.items() if where == node}
