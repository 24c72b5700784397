"""Say in the ledger what is held without an owner, at every look, until there is nothing new to say.

A look at everything is taken at the start, at an interval, and soon after a namespace went. What it finds is told when
it is seen first and when it is seen again, because only what is seen twice may be freed; after that only changes are.
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
from nodeworker.kernel.namespaces import loss
from nodeworker.leaks.evidence.namespace_watch import NamespaceWatch
from nodeworker.leaks.judge import Finding, Judgement, ordered
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

APART = 2.0
"""Seconds between two looks that count as two."""
_AGAIN = 2.1
"""Seconds until the second look at what was seen once."""
_SOON = 5.0
"""Seconds until the next look while a namespace is gone and the runtime still has its sandbox."""
_ALARM = 3600.0
"""Seconds for which a sandbox that was reclaimed is watched for signs of life."""
_SETTLE = 0.2
"""Seconds from a namespace's end to the look at it: a runtime forgets its sandbox about then."""
_AT_ONCE = 500
"""Leaks that one look tells of; the others' turn comes when these are freed."""


class ScanSummary(NamedTuple):
    """The result of one scan."""

    leaks: int
    unseen: tuple[str, ...]
    """Sentences that say which part of the node could not be scanned, and why."""


class LeakReporter:
    """Looks, and tells."""

    def __init__(self, journal: Journal, scanner: LeakScanner, metrics: WorkerMetrics, interval: float) -> None:
        self._journal = journal
        self._scanner = scanner
        self._metrics = metrics
        self._interval = interval
        self._first: dict[LeakId, float] = {}
        """When a leak was seen first by this worker, by the loop's clock."""
        self._freed: dict[str, float] = {}
        """Containers whose sandbox was reclaimed, and when."""
        journal.on_recorded(self._recorded)
        self._one_at_a_time = asyncio.Lock()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Look without end."""
        watch = NamespaceWatch(self._namespaces_gone)
        pause = 0.0
        try:
            while True:
                try:
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                except TimeoutError:
                    pass
                else:
                    await asyncio.sleep(_SETTLE)
                self._woken.clear()
                pause = await self._next_pause()
                watch.follow(sandbox.netns for sandbox in self._journal.state.sandboxes.values())
        finally:
            watch.close()

    def _namespaces_gone(self, names: set[str]) -> None:
        """Look soon if the ledger still has the sandbox of one: where a DEL came, it has not."""
        sandboxes = self._journal.state.sandboxes.values()
        if any(os.path.basename(sandbox.netns) in names and loss(sandbox.netns) for sandbox in sandboxes):
            self._woken.set()

    async def look(self) -> ScanSummary:
        """Look at everything now, tell what is new, and return what there is. Raises LedgerError."""
        judgement = await self._look()
        return ScanSummary(len(judgement.findings), tuple(judgement.unseen))

    async def _next_pause(self) -> float:
        """Look, and return for how long not to."""
        try:
            judgement = await self._look()
        except LedgerError as error:
            log.warning("leaks_not_told", error=str(error))
            return self._interval
        except Exception:  # what one look stumbles over must not end the looking
            log.exception("look_broke")
            return self._interval
        known = self._open()
        if any(found in known and known[found].observed.sightings < 2 for found in judgement.findings):
            return min(_AGAIN, self._interval)
        return min(_SOON, self._interval) if judgement.soon else self._interval

    async def _look(self) -> Judgement:
        async with self._one_at_a_time:
            judgement = await self._scanner.everything()
            self._metrics.leaks_open.set(len(judgement.findings))
            self._raise_alarm(judgement)
            await self._tell(judgement)
            return judgement

    def _recorded(self, event: Event, _: Sandbox | None) -> None:
        """Remember whose sandbox was reclaimed: it must not turn out to be alive."""
        if isinstance(event.data, LeakReclaimed) and event.sandbox:
            self._freed[event.sandbox] = asyncio.get_running_loop().time()

    def _raise_alarm(self, judgement: Judgement) -> None:
        """Say so, once, if the runtime runs what was reclaimed and was not attached anew."""
        now = asyncio.get_running_loop().time()
        live = {key.container_id for key in self._journal.state.sandboxes}
        for container_id in self._freed.keys() & judgement.running - live:
            self._metrics.freed_falsely()
            log.error("freed_falsely", sandbox=container_id, meaning="it was reclaimed, and the runtime runs it")
            del self._freed[container_id]
        self._freed = {name: at for name, at in self._freed.items() if now - at < _ALARM}

    async def _tell(self, judgement: Judgement) -> None:
        known = self._open()
        fresh = 0
        for finding in ordered(judgement.findings):
            new = finding.leak.id not in known
            fresh += new
            if fresh > _AT_ONCE and new:
                continue
            await self._tell_of(finding, known.get(finding.leak.id))
        if fresh > _AT_ONCE:
            judgement.unseen.append(f"{fresh - _AT_ONCE} leaks more: their turn comes when others are freed")
        self._first = {leak: at for leak, at in self._first.items() if leak in judgement.findings}
        for leak_id in known.keys() - judgement.findings.keys():
            if judgement.tells_of(leak_id) and leak_id in self._open():
                await self._tell_gone(known[leak_id])

    async def _tell_of(self, finding: Finding, known: Leaked | None) -> None:
        now = asyncio.get_running_loop().time()
        sightings = 1
        if known is not None and (known.observed.leak, known.observed.judged) == (finding.leak, finding.judged):
            if known.observed.sightings > 1 or now - self._first.setdefault(finding.leak.id, now) < APART:
                return
            sightings = known.observed.sightings + 1
        else:
            self._first[finding.leak.id] = now
        observed = LeakObserved(
            leak=finding.leak, evidence=finding.evidence, sightings=sightings, judged=finding.judged
        )
        await self._journal.record(observed, finding.leak.sandbox)
        if sightings == 2:
            self._metrics.leak_observed(finding.leak.kind)
            log.info("leak_observed", kind=finding.leak.kind.value, what=finding.leak.what, evidence=finding.evidence)

    async def _tell_gone(self, known: Leaked) -> None:
        leak = known.observed.leak
        await self._journal.record(LeakObserved(leak=leak, sightings=0, gone=True), leak.sandbox)

    def _open(self) -> dict[LeakId, Leaked]:
        """Return the leaks of the node that the ledger tells of."""
        node = self._journal.node
        return {leak_id: leaked for (where, leak_id), leaked in self._journal.state.leaks.items() if where == node}
