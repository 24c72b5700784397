"""Reclaim a leak on command, if a scan immediately before confirms it.

A leaked sandbox gets a separate DEL with the recorded configuration. That intent is appended only if its container
has no newer event than the reclaim. If a plugin refuses the DEL, ``forced_release`` follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from events.fold import AttachmentPhase, Leaked, Sandbox, SandboxKey
from events.ledger.ledger import ConflictError, LedgerError
from events.schema import (
    ContainerId,
    DetachCompleted,
    ErrorClass,
    Event,
    Failure,
    InterfaceDetachFailed,
    Leak,
    LeakKind,
    LeakReclaimed,
    Phase,
    ReclaimRequested,
    RequestId,
)
from nodeworker.deadline import seconds_since
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.journal.effect_log import EffectLog, confirm
from nodeworker.journal.journal import Journal
from nodeworker.leaks import release
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.judge import Finding
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins.native.ipam import reservations
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.detach import request_detach
from nodeworker.sandboxes.scheduler import Scheduler

log = structlog.get_logger(__name__)

_SIGHTINGS = 2
"""Scans that must have found the leak before."""


class Reclaimer:
    """Carries out the command to reclaim a leak."""

    def __init__(
        self,
        journal: Journal,
        answers: Answers,
        scanner: LeakScanner,
        forced_release: ForcedRelease,
        metrics: WorkerMetrics,
        scheduler: Scheduler,
    ) -> None:
        self._journal = journal
        self._answers = answers
        self._scanner = scanner
        self._forced_release = forced_release
        self._scheduler = scheduler
        self._metrics = metrics

    async def reclaim(self, intent: Event, command: ReclaimRequested) -> LeakReclaimed:
        """Carry out the *command* of *intent*; return its outcome. Raises RequestFailedError."""
        try:
            leaked = self._confirmed(intent, command.leak)
            evidence = await self._free(intent, leaked)
        except RequestFailedError as error:
            self._metrics.reclaim_refused(error.failure.error_class)
            raise
        seconds = seconds_since(leaked.first_at)
        self._metrics.leak_reclaimed(command.leak.kind, seconds)
        log.info("leak_reclaimed", kind=command.leak.kind.value, what=command.leak.what, seconds=round(seconds, 3))
        return LeakReclaimed(
            request=command.request, leak=command.leak, evidence=evidence, seconds=seconds_since(intent.at)
        )

    def _confirmed(self, intent: Event, leak: Leak) -> Leaked:
        """Return the ledger's record of *leak*. Raises RequestFailedError if *intent* rests on an older one."""
        leaked = self._journal.state.leaks.get((self._journal.node, leak.id))
        if leaked is None:
            raise _changed(leak, "it is no longer a leak")
        if leaked.event != intent.cause or leaked.observed.leak != leak:
            raise _changed(leak, "there is a newer observation")
        if leaked.observed.sightings < _SIGHTINGS:
            raise _changed(leak, "only one scan has found it")
        if intent.sandbox != leak.sandbox:
            raise _changed(leak, f"the command names container {intent.sandbox[:12]!r}, not the leak's")
        return leaked

    async def _free(self, intent: Event, leaked: Leaked) -> tuple[str, ...]:
        """Free the leak; return the evidence of the scan immediately before."""
        leak = leaked.observed.leak
        finding = await self._scanner.rescan(leak)
        if finding is None and await self._is_free(leak):
            return ("it was free already",)
        if finding is None or (finding.leak, finding.judged) != (leak, leaked.observed.judged):
            raise _changed(leak, "its evidence is no longer valid")
        if leak.sandbox:
            return (*finding.evidence, *await self._free_sandbox(intent, leak, finding))
        try:
            await asyncio.to_thread(self._release_of(leak))
        except release.ChangedError as error:
            raise _changed(leak, str(error)) from error
        except (OSError, reservations.BusyError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise failed(
                ErrorClass.INTERNAL,
                Phase.RECLAIM,
                f"{leak.what} ({leak.path}) can't be freed: {why}; remove it by hand",
            ) from error
        return finding.evidence

    async def _is_free(self, leak: Leak) -> bool:
        """Return whether the leak was freed since, most likely by an earlier run of the worker."""
        if leak.sandbox:
            return _key(leak) not in self._journal.state.sandboxes
        try:
            return await asyncio.to_thread(release.is_gone, leak)
        except OSError:
            return False

    def _release_of(self, leak: Leak) -> Callable[[], object]:
        match leak.kind:
            case LeakKind.ADDRESS_UNOWNED | LeakKind.ADDRESS_TORN:
                return partial(release.free_address, leak, self._owned)
            case LeakKind.LINK_UNOWNED:
                return partial(release.free_link, release.end_of(leak))
            case LeakKind.DEVICE_INFO_STALE | LeakKind.RESULT_STALE:
                return partial(release.free_file, leak)
            case _:
                raise _changed(leak, f"{leak.kind} is not a kind of leak that this worker can free")

    def _owned(self, container_id: ContainerId) -> bool:
        """Return whether the ledger has the container. Thread-safe."""
        return any(key.container_id == container_id for key in tuple(self._journal.state.sandboxes))

    async def _free_sandbox(self, intent: Event, leak: Leak, finding: Finding) -> tuple[str, ...]:
        """Detach the sandbox, with force if needed; return sentences that say how."""
        key = _key(leak)
        sandbox = self._journal.state.sandboxes[key]
        if sandbox.sequence != finding.judged:
            raise _changed(leak, "it has a newer event")
        pending = self._journal.state.pending.get(intent.id)
        try:
            await request_detach(
                self._journal, self._answers, sandbox, intent.id, last=pending.sequence if pending else finding.judged
            )
        except ConflictError as error:
            raise _changed(leak, "it has a newer events container") from error
        except LedgerError as error:
            raise failed(class_of(error), Phase.RECLAIM, str(error)) from error
        if self._left(key, sandbox) is None:
            return ("its own DEL freed it",)
        final = leak.kind is LeakKind.DETACH_UNFINISHED
        notes, failure = await self._scheduler.take_turn(
            key.container_id, lambda: self._force(intent, key, sandbox, final=final)
        )
        if failure is not None:
            raise RequestFailedError(failure)
        return notes

    async def _force(
        self, intent: Event, key: SandboxKey, sandbox: Sandbox, *, final: bool
    ) -> tuple[tuple[str, ...], Failure | None]:
        """Release the rest of the sandbox, in the container's queue; return notes, and the last failure."""
        left = self._left(key, sandbox)
        if left is None:
            return ("it was detached since",), None
        notes: list[str] = []
        failure: Failure | None = None
        async with EffectLog(self._journal, intent) as effects:
            for attachment in reversed(left.attempted()):
                if attachment.phase is AttachmentPhase.DETACHED:
                    continue
                released = await self._forced_release.release(left, attachment, final=final)
                notes += released.notes
                effects.append(released.outcome)
                if isinstance(released.outcome, InterfaceDetachFailed):
                    failure = released.outcome.failure
        if failure is None:
            done = DetachCompleted(request=RequestId(""), ifname=key.ifname)
            await confirm(self._journal.record(done, intent.sandbox, intent.id))
        return tuple(notes), failure

    def _left(self, key: SandboxKey, sandbox: Sandbox) -> Sandbox | None:
        """Return what the ledger still has of *sandbox*; None: nothing."""
        now = self._journal.state.sandboxes.get(key)
        return now if now is not None and now.intent == sandbox.intent else None


def _key(leak: Leak) -> SandboxKey:
    return SandboxKey(leak.holder, leak.ifname)


def _changed(leak: Leak, why: str) -> RequestFailedError:
    return failed(ErrorClass.EVIDENCE_CHANGED, Phase.RECLAIM, f"{leak.kind.value} {leak.what} is left alone: {why}")
