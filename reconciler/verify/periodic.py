"""Verify periodically, and report the result in metrics and log.

Each verification is a separate process at low priority: a replay of the whole ledger uses a core, must not delay
publications, and must release its memory afterwards.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec
import structlog

from events.process.child_process import die_with_parent
from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.verify.report import Report

log = structlog.get_logger(__name__)

_FIRST = 300.0
"""Seconds before the first verification: a new leader has more urgent work."""
_MAX_LOGGED = 20


class PeriodicVerification:
    """Verifies every *interval* seconds with the configuration *config*. A ``Listener``: only the leader does."""

    def __init__(self, config: Path | None, interval: float, metrics: Metrics) -> None:
        self._arguments = [] if config is None else ["--config", str(config)]
        self._interval = interval
        self._metrics = metrics

    async def caught_up(self, query: Query) -> None:
        """Do nothing: a verification reads everything itself."""

    def changed(self, changes: Changes) -> None:
        """Do nothing: a verification reads everything itself."""

    async def run(self) -> None:
        """Verify until cancelled."""
        await asyncio.sleep(min(_FIRST, self._interval))
        while True:
            await self._verify()
            await asyncio.sleep(self._interval)

    async def _verify(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "reconciler.verify",
            *self._arguments,
            stdout=PIPE,
            stderr=PIPE,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        try:
            report = msgspec.json.decode(out, type=Report)
        except msgspec.MsgspecError:
            log.warning("verify_failed", exit_code=process.returncode, said=err.decode(errors="replace")[-1000:])
            self._metrics.verify_failed.inc()
            return
        counts = {kind.value: count for kind, count in report.counts.items()}
        self._metrics.set_verified(counts, unseen=len(report.unseen), seconds=report.seconds, at=time.time())
        for difference in report.differences[:_MAX_LOGGED]:
            log.warning("verify_differs", kind=difference.kind.value, message=difference.message)
        for reason in report.unseen[:_MAX_LOGGED]:
            log.warning("verify_not_seen", reason=reason)
        log.info("verified", seconds=round(report.seconds, 1), unseen=len(report.unseen), **counts)
