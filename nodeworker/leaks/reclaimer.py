"""Free what nobody owns, when it is asked for and still so: the last look decides, not the one that was judged.

A sandbox goes by a DEL of its own, with the bytes that were recorded, which is an intent like any other and is only
taken if nothing has happened to its container since the reclaim was. Where a plugin refuses, ``forced_release``
follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

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
from nodeworker.journal.effect_log import EffectLog, record
from nodeworker.journal.journal import Journal
from nodeworker.leaks import release
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.judge import Finding
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins.native.ipam import reservations
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.ask_detach import ask_detach

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SIGHTINGS = 2
"""Looks that must have found it so."""


class Turns(Protocol):
    """Gives a container's requests their turns (``nodeworker.sandboxes.dispatcher``)."""

    async def __call__(self, container_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns when the requests for the container that came before are done."""
        ...


class Reclaimer:
    """Fulfils the intent of reclaiming a leak."""

    def __init__(
        self,
        journal: Journal,
        answers: Answers,
        scanner: LeakScanner,
        forced_release: ForcedRelease,
        metrics: WorkerMetrics,
    ) -> None:
        self._journal = journal
        self._answers = answers
        self._scanner = scanner
        self._last_resort = forced_release
        self._take_turn: Turns | None = None
        self._metrics = metrics

    def give_turns(self, take_turn: Turns) -> None:
        """Take turns with everything else that is done for a container."""
        self._take_turn = take_turn

    async def reclaim(self, event: Event, order: ReclaimRequested) -> LeakReclaimed:
        """Fulfil the intent *event* and return its outcome. Raises RequestFailedError where nothing was freed."""
        try:
            leaked = self._confirmed(event, order.leak)
            evidence = await self._free(event, leaked)
        except RequestFailedError as error:
            self._metrics.reclaim_refused(error.failure.error_class)
            raise
        seconds = seconds_since(leaked.first_at)
        self._metrics.leak_reclaimed(order.leak.kind, seconds)
        log.info("leak_reclaimed", kind=order.leak.kind.value, what=order.leak.what, seconds=round(seconds, 3))
        return LeakReclaimed(request=order.request, leak=order.leak, evidence=evidence, seconds=seconds_since(event.at))

    def _confirmed(self, event: Event, leak: Leak) -> Leaked:
        """Return what the ledger says of *leak*, if that is what *event* rests on."""
        leaked = self._journal.state.leaks.get((self._journal.node, leak.id))
        if leaked is None:
            raise _changed(leak, "it is no leak any more")
        if leaked.event != event.cause or leaked.observed.leak != leak:
            raise _changed(leak, "it was looked at again since")
        if leaked.observed.sightings < _SIGHTINGS:
            raise _changed(leak, "it was seen but once")
        if event.sandbox != leak.sandbox:
            raise _changed(leak, f"the command is about container {event.sandbox[:12]!r}, which it is not of")
        return leaked

    async def _free(self, event: Event, leaked: Leaked) -> tuple[str, ...]:
        """Free it and return the evidence, as it is now."""
        leak = leaked.observed.leak
        finding = await self._scanner.again(leak)
        if finding is None and await self._is_free(leak):
            return ("it was free by then",)
        if finding is None or (finding.leak, finding.judged) != (leak, leaked.observed.judged):
            raise _changed(leak, "what spoke for it does not hold any more")
        if leak.sandbox:
            return (*finding.evidence, *await self._free_sandbox(event, leak, finding))
        try:
            await asyncio.to_thread(self._way_to_free(leak))
        except release.ChangedError as error:
            raise _changed(leak, str(error)) from error
        except (OSError, reservations.BusyError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise failed(
                ErrorClass.INTERNAL, Phase.RECLAIM, f"{leak.what} ({leak.path}) can't be freed: {why}; free it by hand"
            ) from error
        return finding.evidence

    async def _is_free(self, leak: Leak) -> bool:
        """Return whether somebody freed it in the meantime: the worker before, most likely."""
        if leak.sandbox:
            return _key(leak) not in self._journal.state.sandboxes
        try:
            return await asyncio.to_thread(release.is_gone, leak)
        except OSError:
            return False

    def _way_to_free(self, leak: Leak) -> Callable[[], object]:
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
        """Return whether the ledger has the container, also from a thread."""
        return any(key.container_id == container_id for key in tuple(self._journal.state.sandboxes))

    async def _free_sandbox(self, event: Event, leak: Leak, finding: Finding) -> tuple[str, ...]:
        """Detach the sandbox, whatever it takes; return how, as sentences."""
        key = _key(leak)
        sandbox = self._journal.state.sandboxes[key]
        if sandbox.sequence != finding.judged:
            raise _changed(leak, "something happened to it meanwhile")
        intent = self._journal.state.pending.get(event.id)
        try:
            await ask_detach(
                self._journal, self._answers, sandbox, event.id, last=intent.sequence if intent else finding.judged
            )
        except ConflictError as error:
            raise _changed(leak, "something happened to its container meanwhile") from error
        except LedgerError as error:
            raise failed(class_of(error), Phase.RECLAIM, str(error)) from error
        if self._left(key, sandbox) is None:
            return ("its own DEL was done",)
        assert self._take_turn is not None
        final = leak.kind is LeakKind.DETACH_UNFINISHED
        notes, failure = await self._take_turn(key.container_id, lambda: self._sweep(event, key, sandbox, final=final))
        if failure is not None:
            raise RequestFailedError(failure)
        return notes

    async def _sweep(
        self, event: Event, key: SandboxKey, sandbox: Sandbox, *, final: bool
    ) -> tuple[tuple[str, ...], Failure | None]:
        """Free what is left of the sandbox; return how, and what could not be freed. It is its container's turn."""
        left = self._left(key, sandbox)
        if left is None:
            return ("it was detached meanwhile",), None
        notes: list[str] = []
        failure: Failure | None = None
        async with EffectLog(self._journal, event) as effects:
            for attachment in reversed(left.attempted()):
                if attachment.phase is AttachmentPhase.DETACHED:
                    continue
                swept = await self._last_resort.free(left, attachment, final=final)
                notes += swept.notes
                effects.put(swept.outcome)
                if isinstance(swept.outcome, InterfaceDetachFailed):
                    failure = swept.outcome.failure
        if failure is None:
            await record(self._journal, DetachCompleted(request=RequestId(""), ifname=key.ifname), event)
        return tuple(notes), failure

    def _left(self, key: SandboxKey, sandbox: Sandbox) -> Sandbox | None:
        """Return what is left of *sandbox*; None: nothing."""
        now = self._journal.state.sandboxes.get(key)
        return now if now is not None and now.intent == sandbox.intent else None


def _key(leak: Leak) -> SandboxKey:
    return SandboxKey(leak.holder, leak.ifname)


def _changed(leak: Leak, why: str) -> RequestFailedError:
    return failed(ErrorClass.EVIDENCE_CHANGED, Phase.RECLAIM, f"{leak.kind.value} {leak.what} is left alone: {why}")
