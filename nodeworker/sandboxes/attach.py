"""Attach: make the interfaces of a sandbox as its plan says, and record each effect.

The effect of an attachment that is one native job (``Runners.is_one_pool_job``) is recorded in the event of the outcome
if no other event comes before it, else as its own event. All other effects are recorded at once, each as its own event.

Every step is idempotent by (container ID, network, interface name), and what was done is read from ``Journal.state``,
never from what an earlier call kept. So the code that serves a new request also continues one that an earlier worker
left half done. The scheduler runs the requests of one container one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TypeAlias

import structlog
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachRequested,
    ErrorClass,
    Event,
    Failure,
    IfName,
    InterfaceAttached,
    InterfaceAttachFailed,
    Phase,
    PlannedAttachment,
    PluginRun,
)
from nodeworker.deadline import Deadline, seconds_since
from nodeworker.errors import RequestFailedError, about, failed, internal, subject_of, unusable_container_id
from nodeworker.journal.effect_log import EffectLog, confirm
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.resolve.route_claims import claimed_routes
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.api import Runners
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.names import ifname_problem, shown
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.answers import Reply, error_reply, reply_of
from nodeworker.sandboxes.attach_warnings import warnings_of
from nodeworker.sandboxes.detach import Detacher, add_target
from nodeworker.sandboxes.plan_ahead import PlanAhead
from nodeworker.sandboxes.reservation_guard import ReservationGuard
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait

log = structlog.get_logger(__name__)

_Add: TypeAlias = asyncio.Task[tuple[str, tuple[PluginRun, ...]]]
"""``chain.add`` of one attachment."""


class Attacher:
    """Fulfils the intent of attaching.

    *delegate_timeout*: see ``WorkerSection.delegate_timeout``. *refuse_default_routes*: fail where a network
    takes the pod's default route without being asked.
    """

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        guard: ReservationGuard,
        plans: PlanAhead,
        detacher: Detacher,
        runners: Runners,
        delegate_timeout: float,
        metrics: WorkerMetrics,
        statuses: StatusWait,
        *,
        refuse_default_routes: bool,
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._guard = guard
        self._plans = plans
        self._detacher = detacher
        self._runners = runners
        self._delegate_timeout = delegate_timeout
        self._metrics = metrics
        self._statuses = statuses
        self._refuse_default_routes = refuse_default_routes

    async def attach(self, intent: Event, request: AttachRequested, deadline: Deadline, *, resumed: bool) -> Reply:
        """Fulfil *intent* and return the answer for the runtime.

        *resumed*: an earlier attempt may have made interfaces that the ledger does not have. A failed attach leaves
        nothing behind but what its event lists as ``left``.
        """
        sandbox = self._journal.state.sandboxes.get(SandboxKey(intent.sandbox, request.ifname))
        try:
            if sandbox is not None and sandbox.intent != intent.id:
                outcome = _outcome(intent, request, _recorded_result(sandbox, request))
                await confirm(self._journal.record(outcome, intent.sandbox, intent.id))
            else:
                _check(intent, request)
                # A worker that starts finishes the resumed intents before it serves, so these must not wait.
                readiness_wait = 0.0 if resumed else deadline.left
                begun = resumed and sandbox is not None and sandbox.plan is not None  # nothing is made without a plan
                planned = await self._planned(intent, request, deadline, readiness_wait)
                outcome = await self._make(intent, request, planned, deadline, begun=begun)
        except RequestFailedError as error:
            return await self._roll_back(intent, request, error.failure)
        except Exception as error:  # an unexpected error must not leave half an attach behind
            log.exception("attach_broke")
            return await self._roll_back(intent, request, internal(Phase.ADD, error))
        return reply_of(outcome, request.config)

    async def _planned(
        self, intent: Event, request: AttachRequested, deadline: Deadline, readiness_wait: float
    ) -> Sandbox:
        """Return the sandbox with its plan, planned now if the ledger has no plan of it."""
        key = SandboxKey(intent.sandbox, request.ifname)
        # The plan that was made ahead is sent after its request, but the ledger may store it first. The fold ignores
        # such a plan, so a second one is made: the ledger has the request by now, so it stores this plan after it.
        for _ in range(2):
            sandbox = self._journal.state.sandboxes[key]
            if sandbox.plan is not None:
                break
            await self._plans.ensure_recorded(intent, request, deadline, readiness_wait)
        return self._journal.state.sandboxes[key]

    async def _make(
        self, intent: Event, request: AttachRequested, sandbox: Sandbox, deadline: Deadline, *, begun: bool
    ) -> AttachCompleted:
        """Make every attachment of *sandbox* that is planned only, and return the outcome; all of it is recorded.

        *begun*: an earlier worker may have begun with them.
        """
        if any(a.phase not in (AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED) for a in sandbox.attachments):
            raise RequestFailedError(deadline.failure)  # an earlier worker was undoing it already
        if begun and not self._detacher.delete_target(sandbox).netns:
            raise _gone(sandbox)  # what is at its path now may be another pod's
        async with EffectLog(self._journal, intent) as effects:
            for attachment in sandbox.attachments:
                self._guard.claim(sandbox.key, attachment.plan, attachment.result)  # of the earlier attempt
            missing = [each for each in sandbox.attachments if each.phase is AttachmentPhase.PLANNED]
            for attachment in missing if begun else ():
                await deadline.within(self._detacher.delete(sandbox, attachment))
            for batch in self._batches(missing):
                await self._prepare(batch, deadline)
                loop, target = asyncio.get_running_loop(), add_target(sandbox)
                started, timeout = loop.time(), min(self._delegate_timeout, deadline.left)
                adds = [loop.create_task(chain.add(self._runners, each.plan, target, timeout)) for each in batch]
                try:
                    await deadline.within(asyncio.gather(*adds, return_exceptions=True))
                except (RequestFailedError, asyncio.CancelledError) as error:
                    await self._record_adds(sandbox, batch, adds, effects, loop.time() - started, error)
                    raise
                for effect in await self._record_adds(sandbox, batch, adds, effects, loop.time() - started):
                    sandbox = sandbox.with_attached(effect)
            await self._move_default_route(sandbox)
            warnings = await warnings_of(sandbox, refuse_default_routes=self._refuse_default_routes)
            if not deadline.left:
                raise RequestFailedError(deadline.failure)
            outcome = replace(_outcome(intent, request, _result(sandbox)), warnings=warnings)
            self._statuses.expect(sandbox)
            return effects.finish(outcome)

    def _batches(self, attachments: list[Attachment]) -> Iterator[list[Attachment]]:
        """Yield *attachments*, in order, in batches: the native pool gets the ADDs of a batch together."""
        for is_one_job, group in groupby(attachments, lambda each: self._runners.is_one_pool_job(each.plan)):
            if is_one_job:
                yield list(group)
            else:
                yield from ([attachment] for attachment in group)

    async def _prepare(self, batch: list[Attachment], deadline: Deadline) -> None:
        await deadline.within(self._scheduler.collections_finished({each.plan.cni_name for each in batch}))
        await deadline.within(self._guard.ensure(each.plan for each in batch))
        for attachment in batch:
            await device_info.provide(attachment.plan)

    async def _record_adds(
        self,
        sandbox: Sandbox,
        batch: list[Attachment],
        adds: list[_Add],
        effects: EffectLog,
        seconds: float,
        interrupted: BaseException | None = None,
    ) -> list[InterfaceAttached]:
        """Record what came of *adds*, which have ended after *seconds*, and return what they made.

        Those that were cancelled failed with *interrupted*. Raises the first failure, after all are recorded.
        """
        made: list[InterfaceAttached] = []
        failures: list[BaseException] = []
        for plan, add in zip((attachment.plan for attachment in batch), adds, strict=True):
            if add.cancelled():
                error = _while_adding(plan, interrupted)
            else:
                error = self._claim_addresses(sandbox.key, plan, add)
            if error is None:
                made.append(await self._record_effect(plan, *add.result(), effects))
                continue
            if isinstance(error, RequestFailedError):
                runs = error.runs if isinstance(error, chain.PluginFailedError) else ()
                self._metrics.runs_done("ADD", runs)
                effects.append(_failed(sandbox, plan, error, seconds, runs))
            failures.append(error)
        if failures:
            raise failures[0]
        return made

    def _claim_addresses(self, key: SandboxKey, plan: PlannedAttachment, add: _Add) -> BaseException | None:
        """Claim the addresses of *add*'s result for *key*; return why *add* or the claim failed, None if neither did.

        The claim fails if another sandbox holds one of the addresses.
        """
        if (error := add.exception()) is not None:
            return error
        result, runs = add.result()
        try:
            self._guard.claim(key, plan, result)
        except RequestFailedError as conflict:
            return chain.PluginFailedError(conflict.failure, runs)
        return None

    async def _record_effect(
        self, plan: PlannedAttachment, result: str, runs: tuple[PluginRun, ...], effects: EffectLog
    ) -> InterfaceAttached:
        """Record the attachment of *plan*: carried (``EffectLog.carry``) if its ADD was one native job, else at once.

        A chain or an executed plugin may take long, and an executed plugin may be unable to repeat its ADD.
        """
        self._metrics.runs_done("ADD", runs)
        effect = InterfaceAttached(
            network=plan.network,
            ifname=plan.ifname,
            result=result,
            seconds=sum(run.seconds for run in runs),
            runs=runs,
            device_info=await device_info.recorded(plan),
        )
        if self._runners.is_one_pool_job(plan):
            effects.carry(effect)
        else:
            effects.append(effect)
        return effect

    async def _move_default_route(self, sandbox: Sandbox) -> None:
        """Give the pod's default routes to the attachments that claim them, if any does."""
        assert sandbox.plan is not None
        for route in claimed_routes(sandbox.attachments):
            await asyncio.to_thread(default_route.move, sandbox.plan.netns, route)

    async def _roll_back(self, intent: Event, request: AttachRequested, failure: Failure) -> Reply:
        """Undo what the attach has made, record that it failed, and return the answer for the runtime."""
        failure = about(subject_of(request.pod, intent.sandbox), failure)
        sandbox = self._journal.state.sandboxes.get(SandboxKey(intent.sandbox, request.ifname))
        own = replace(sandbox, failure=failure) if sandbox is not None and sandbox.intent == intent.id else None

        def outcome(left: Mapping[IfName, Failure]) -> AttachFailed:
            return AttachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=failure,
                left=tuple(left),
                seconds=seconds_since(intent.at),
            )

        try:
            await self._detacher.undo(own, intent, Phase.ROLLBACK, outcome)
        except RequestFailedError as error:
            log.warning("attach_outcome_not_recorded", error=error.failure.message)
        return error_reply(failure, request.config)


def _while_adding(plan: PlannedAttachment, interrupted: BaseException | None) -> BaseException:
    """Return the error of an ADD that was cancelled, because of *interrupted*."""
    if not isinstance(interrupted, RequestFailedError):
        return interrupted or asyncio.CancelledError()
    failure, network, ifname = interrupted.failure, plan.network, plan.ifname
    message = f"{failure.message}, while {ifname} of {network} was being added"
    return RequestFailedError(replace(failure, message=message, network=network, ifname=ifname))


def _failed(
    sandbox: Sandbox, plan: PlannedAttachment, error: RequestFailedError, seconds: float, runs: tuple[PluginRun, ...]
) -> InterfaceAttachFailed:
    failure = about(subject_of(sandbox.pod, sandbox.key.container_id), error.failure)
    return InterfaceAttachFailed(network=plan.network, ifname=plan.ifname, failure=failure, seconds=seconds, runs=runs)


def _outcome(intent: Event, request: AttachRequested, result: str) -> AttachCompleted:
    return AttachCompleted(
        request=request.request, ifname=request.ifname, result=result, seconds=seconds_since(intent.at)
    )


def _gone(sandbox: Sandbox) -> RequestFailedError:
    return failed(
        ErrorClass.NAMESPACE_INVALID,
        Phase.ADD,
        f"the namespace {sandbox.netns} is gone since its ADD was begun: make a new sandbox",
    )


def _result(sandbox: Sandbox) -> str:
    """Return the default network's result in the version that the runtime asked for."""
    assert sandbox.plan is not None
    first = sandbox.attachments[0]
    try:
        return results.convert(first.result, first.plan.cni_version, sandbox.plan.cni_version)
    except results.ResultError as error:
        raise failed(
            ErrorClass.INVALID_CONFIG,
            Phase.ADD,
            f"the result of network {first.plan.network} can't be expressed in cniVersion "
            f"{sandbox.plan.cni_version}: {error}",
            network=first.plan.network,
            ifname=first.plan.ifname,
        ) from error


def _recorded_result(sandbox: Sandbox, request: AttachRequested) -> str:
    """Return the recorded result for an ADD that comes again.

    Raises RequestFailedError for one that differs, and while the outcome of the request before it is not recorded.
    """
    first, name = sandbox.request, f"container {sandbox.key.container_id[:12]}"
    if sandbox.phase in (SandboxPhase.REQUESTED, SandboxPhase.PLANNED, SandboxPhase.DETACHING):
        raise failed(
            ErrorClass.LEDGER_UNAVAILABLE,
            Phase.INTAKE,
            f"the ledger has not yet confirmed the outcome of the previous request for {name}: try again",
        )
    if sandbox.phase is SandboxPhase.ATTACHED and first is not None:
        if (first.netns, first.config) == (request.netns, request.config):
            return sandbox.result
        reason = "it is attached with another configuration or namespace"
    else:
        reason = f"it is {sandbox.phase}"
    raise failed(
        ErrorClass.INVALID_REQUEST,
        Phase.INTAKE,
        f"{name} can't be attached again as {request.ifname}: {reason}; send DEL first",
    )


def _check(intent: Event, request: AttachRequested) -> None:
    """Raise RequestFailedError for CNI parameters that ADD can't do without (CNI specification 1.1, section 2)."""
    if not intent.sandbox:
        raise unusable_container_id(Phase.ADD)
    missing = [name for name, value in (("CNI_NETNS", request.netns), ("CNI_PATH", request.path)) if not value]
    if missing:
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"ADD needs {' and '.join(missing)} in its environment")
    if problem := ifname_problem(request.ifname):
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"CNI_IFNAME {shown(request.ifname)} {problem}")
