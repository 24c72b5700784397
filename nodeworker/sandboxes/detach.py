"""Detach: remove the interfaces of a sandbox, for a DEL and for an ADD that failed.

Everything comes from the ledger's fold: which attachments may have left something, and with which bytes they were made.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping

import structlog
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey
from events.ledger.ledger import ConflictError
from events.process import logs
from events.schema import (
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    ErrorClass,
    Event,
    EventId,
    Failure,
    IfName,
    InterfaceDetached,
    InterfaceDetachFailed,
    Phase,
    PluginRun,
    RequestId,
)
from nodeworker.deadline import seconds_since
from nodeworker.errors import RequestFailedError, about, failed, subject_of, unusable_container_id
from nodeworker.journal.effect_log import EffectLog
from nodeworker.journal.journal import Journal
from nodeworker.kernel.namespaces import is_namespace, why_gone
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.resolve.route_claims import adjusted_result
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.api import Runners
from nodeworker.plugins.spec.names import ifname_problem, shown
from nodeworker.sandboxes.answers import OK, Answers, Reply, error_reply, reply_of
from nodeworker.sandboxes.reservation_guard import ReservationGuard

log = structlog.get_logger(__name__)


class Detacher:
    """Fulfils the intent of detaching, and undoes attaches. *delegate_timeout*: see ``WorkerSection``."""

    def __init__(
        self,
        journal: Journal,
        guard: ReservationGuard,
        runners: Runners,
        delegate_timeout: float,
        metrics: WorkerMetrics,
    ) -> None:
        self._journal = journal
        self._guard = guard
        self._runners = runners
        self._delegate_timeout = delegate_timeout
        self._metrics = metrics
        self._logged: dict[tuple[SandboxKey, IfName], str] = {}
        """The last logged failure of each interface, of the sandboxes that still hold something."""

    async def detach(self, intent: Event, request: DetachRequested) -> Reply:
        """Fulfil *intent* and return the answer for the runtime.

        The answer is success where the worker itself does the rest later: if the ledger can't record the outcome, the
        intent is repeated until it has an outcome. The same holds for a sandbox whose ADD failed: a plugin that could
        not add may be unable to delete, and the deletion of a pod that never ran must not hang.
        """
        key = SandboxKey(intent.sandbox, request.ifname)
        before = self._journal.state.sandboxes.get(key)
        refused = _detach_problem(intent, request)

        def outcome(left: Mapping[IfName, Failure]) -> Data:
            seconds = seconds_since(intent.at)
            if not refused and not left:
                return DetachCompleted(request=request.request, ifname=request.ifname, seconds=seconds)
            return DetachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=about(subject_of(request.pod, intent.sandbox), refused or _together(list(left.values()))),
                left=tuple(left),
                seconds=seconds,
            )

        try:
            recorded = await self.undo(None if refused else before, intent, Phase.DEL, outcome)
        except RequestFailedError as error:
            log.warning("detach_outcome_not_recorded", error=error.failure.message)
            return error_reply(refused, request.config) if refused else OK
        never_attached = before is not None and not before.result
        gave_up = isinstance(recorded, DetachFailed) and bool(recorded.left)
        return OK if gave_up and never_attached else reply_of(recorded, request.config)

    async def undo(
        self, sandbox: Sandbox | None, intent: Event, phase: Phase, outcome: Callable[[Mapping[IfName, Failure]], Data]
    ) -> Data:
        """Detach, last first, what *sandbox* may still have, and return its outcome, which is recorded behind that.

        *outcome* makes it from the attachments that could not be detached, and why. Raises RequestFailedError if the
        ledger did not acknowledge an event, after everything was tried; the journal offers it all events again.
        """
        async with EffectLog(self._journal, intent) as effects:
            left = {} if sandbox is None else await self._detach_all(sandbox, phase, effects)
            return effects.finish(outcome(left))

    async def _detach_all(self, sandbox: Sandbox, phase: Phase, effects: EffectLog) -> dict[IfName, Failure]:
        """Detach what may be there, and record it; return what could not be detached, and why."""
        self._guard.release(sandbox.key)
        await self._guard.restored(each.plan for each in sandbox.attachments)
        left: dict[IfName, Failure] = {}
        attempted = [each for each in reversed(sandbox.attempted()) if each.phase is not AttachmentPhase.DETACHED]
        if sandbox.plan is not None:
            await self._runners.remove_links([each.plan for each in attempted], self.delete_target(sandbox).netns)
        for attachment in attempted:
            done = await self._detach_one(sandbox, attachment, phase)
            if isinstance(done, InterfaceDetachFailed):
                left[done.ifname] = done.failure
                subject = subject_of(sandbox.pod, sandbox.key.container_id)
                done = replace(done, failure=about(subject, done.failure))
            if isinstance(done, InterfaceDetached) and self._runners.is_one_pool_job(attachment.plan):
                effects.carry(done)
            else:
                effects.append(done)  # a chain or an executed plugin may take long, and a failure is recorded at once
        return left

    async def _detach_one(
        self, sandbox: Sandbox, attachment: Attachment, phase: Phase
    ) -> InterfaceDetached | InterfaceDetachFailed:
        loop = asyncio.get_running_loop()
        started = loop.time()
        network, ifname = attachment.plan.network, attachment.plan.ifname
        try:
            runs = await self.delete(sandbox, attachment)
        except chain.PluginFailedError as error:
            self._metrics.runs_done("DEL", error.runs)
            self._log_failure(sandbox, ifname, phase, error.failure)
            failure, seconds = replace(error.failure, phase=phase), loop.time() - started
            return InterfaceDetachFailed(
                network=network, ifname=ifname, failure=failure, seconds=seconds, runs=error.runs
            )
        self._metrics.runs_done("DEL", runs)
        self._logged.pop((sandbox.key, ifname), None)
        return InterfaceDetached(network=network, ifname=ifname, seconds=loop.time() - started, runs=runs)

    def _log_failure(self, sandbox: Sandbox, ifname: IfName, phase: Phase, failure: Failure) -> None:
        """Log a failed detach: the first one, and each that differs from the one before. DEL is retried for hours."""
        level = log.debug if self._logged.get((sandbox.key, ifname)) == failure.message else log.warning
        kept = self._journal.state.sandboxes
        self._logged = {place: text for place, text in self._logged.items() if place[0] in kept}
        self._logged[sandbox.key, ifname] = failure.message
        with logs.about(sandbox.pod, sandbox.key.container_id):
            level("interface_detach_failed", phase=phase.value, ifname=ifname, error=failure.message)

    async def delete(self, sandbox: Sandbox, attachment: Attachment) -> tuple[PluginRun, ...]:
        """Run DEL of one attachment with its recorded configuration; return the runs.

        The plugins get no path of a namespace that is gone (CNI specification 1.1, section 2, "DEL"): it has nothing to
        delete, some plugins refuse such a path, and another pod's namespace may be there now. Raises PluginFailedError
        if a plugin refuses and may still have resources on the node. The refusal of another is only logged.
        """
        plan = attachment.plan
        result = adjusted_result(sandbox.attachments, attachment) or None
        runs, refused = await chain.sweep(
            self._runners, plan, self.delete_target(sandbox), result, self._delegate_timeout
        )
        await device_info.withdraw(plan)
        holders = chain.holders(plan, refused, sandbox.failure)
        if holders:
            raise chain.PluginFailedError(chain.together(refused.values()), runs)
        for failure in refused.values():
            with logs.about(sandbox.pod, sandbox.key.container_id):
                log.warning("plugin_refused_del", error=failure.message)
        return runs

    def delete_target(self, sandbox: Sandbox) -> chain.Target:
        """Return the target of a DEL of *sandbox*, which has a plan; without namespace if that is gone."""
        target = add_target(sandbox)
        assert sandbox.plan is not None
        rebooted = sandbox.boot_id not in ("", self._journal.boot_id)
        if rebooted or not is_namespace(target.netns) or why_gone(target.netns, sandbox.plan.netns_inode):
            return replace(target, netns="")
        return target


def add_target(sandbox: Sandbox) -> chain.Target:
    """Return the target of an ADD or CHECK of *sandbox*, which has a plan: the namespace as planned."""
    assert sandbox.plan is not None
    return chain.planned_target(sandbox.key.container_id, sandbox.plan)


async def request_detach(
    journal: Journal, answers: Answers, sandbox: Sandbox, cause: EventId, *, last: int | None = None
) -> Reply:
    """Append a DEL of *sandbox* that no runtime sent, as an intent like a runtime's, and return its answer.

    With *last*, the DEL is appended only if that is the sequence of the newest event of the container. Raises
    LedgerError, ConflictError among them.
    """
    request_id = RequestId(secrets.token_hex(16))
    answers.open(request_id)
    request = DetachRequested(request=request_id, ifname=sandbox.key.ifname, netns=sandbox.netns, pod=sandbox.pod)
    try:
        await journal.append_intent(journal.event(request, sandbox.key.container_id, cause), last=last)
    except ConflictError:
        answers.cancel(request_id)
        raise
    return await answers.wait(request_id)


def _detach_problem(intent: Event, request: DetachRequested) -> Failure | None:
    """Return what makes a DEL unusable, if anything. Its namespace may be gone (CNI specification 1.1, section 2)."""
    if not intent.sandbox:
        return unusable_container_id(Phase.DEL).failure
    if problem := ifname_problem(request.ifname):
        return failed(ErrorClass.INVALID_REQUEST, Phase.DEL, f"CNI_IFNAME {shown(request.ifname)} {problem}").failure
    return None


def _together(failures: list[Failure]) -> Failure:
    """Return one failure for several: the first, with every sentence."""
    if len(failures) == 1:
        return failures[0]
    return failed(
        failures[0].error_class,
        failures[0].phase,
        "; ".join(failure.message for failure in failures),
        code=failures[0].code,
    ).failure
