"""Make and unmake the interfaces of a sandbox, one event after another.

Every step is idempotent by (container ID, network, interface name), and what has been done is read from the ledger's
fold, never remembered here. So a request that an earlier worker left half done is continued by the same code that does
a new one. Calls for one container come one after another (``nodeworker.sandboxes.dispatcher`` sees to it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from itertools import groupby
from typing import TypeVar

import structlog

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
from nodeworker.errors import RequestFailedError, failed, internal, naming, unusable_container_id
from nodeworker.journal.effect_log import EffectLog, confirmed, record
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.planner import Planner
from nodeworker.planning.resolve.default_route import wanted
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.exec import Runners
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.names import ifname_problem, shown
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.answers import Reply, refusal, reply_of
from nodeworker.sandboxes.collections_under_way import CollectionsUnderWay
from nodeworker.sandboxes.detach import Detacher, target_of
from nodeworker.sandboxes.status_wait import StatusWait
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Attacher:
    """Fulfils the intents of attaching and detaching."""

    def __init__(
        self,
        journal: Journal,
        detacher: Detacher,
        planner: Planner,
        runners: Runners,
        section: WorkerSection,
        metrics: WorkerMetrics,
        statuses: StatusWait,
        collections: CollectionsUnderWay,
    ) -> None:
        self._journal = journal
        self._detacher = detacher
        self._planner = planner
        self._runners = runners
        self._section = section
        self._metrics = metrics
        self._statuses = statuses
        self._collections = collections

    async def attach(self, event: Event, request: AttachRequested, patience: Deadline, *, resumed: bool) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime.

        *resumed*: an earlier attempt may have made what the ledger does not tell of. Nothing of a failed attach stays
        behind but what the answer's event names as ``left``.
        """
        key = SandboxKey(event.sandbox, request.ifname)
        sandbox = self._journal.state.sandboxes.get(key)
        try:
            if sandbox is not None and sandbox.intent != event.id:
                outcome = _outcome(event, request, _recorded_result(sandbox, request))
                await record(self._journal, outcome, event)
            else:
                outcome = await self._make(key, event, request, patience, resumed=resumed)
        except RequestFailedError as error:
            return await self._give_up(event, request, naming(request.pod, error.failure))
        except Exception as error:  # what nobody foresaw must not leave half an attach behind
            log.exception("attach_broke", sandbox=event.sandbox[:12])
            return await self._give_up(event, request, internal(Phase.ADD, error))
        finally:
            self._planner.forget(event)
        return reply_of(outcome, request.config)

    async def _make(
        self, key: SandboxKey, event: Event, request: AttachRequested, patience: Deadline, *, resumed: bool
    ) -> AttachCompleted:
        """Make every attachment of the sandbox and return the outcome, both recorded.

        The outcome is sent behind the last interface, or with all of them; it is awaited, and what it tells of with it.
        """
        _check(event, request)
        if self._sandbox(key).plan is None:
            wait = 0.0 if resumed else patience.left  # a worker that starts waits for what it resumes
            resumed = False  # without a plan in the ledger nothing was begun
            await self._plan(event, request, patience, wait)
            if self._sandbox(key).plan is None:  # the ledger had it before the request, where it counts for nothing
                await self._plan(event, request, patience, wait)
        sandbox = self._sandbox(key)
        if any(a.phase not in (AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED) for a in sandbox.attachments):
            raise RequestFailedError(patience.failure)  # an earlier worker was undoing it already
        if resumed and not self._detacher.target(sandbox).netns:
            raise _gone(sandbox)  # what is at its path by now may be somebody else's
        async with EffectLog(self._journal, event) as records:
            missing = [each for each in sandbox.attachments if each.phase is AttachmentPhase.PLANNED]
            for attachment in missing if resumed else ():  # which may have been begun all the same
                await self._within(patience, self._detacher.delete(sandbox, attachment))
            for batch in self._batches(missing):
                for effect in await self._add_all(sandbox, batch, records, patience):
                    sandbox = sandbox.with_attached(effect)
            await self._move_default_route(sandbox)
            if not patience.left:
                raise RequestFailedError(patience.failure)
            outcome = _outcome(event, request, _result(sandbox))
            self._statuses.expect(sandbox)
            return records.end(outcome)

    async def _plan(self, event: Event, request: AttachRequested, patience: Deadline, wait: float) -> None:
        await confirmed(await self._within(patience, self._planner.plan(event, request, wait)))

    def _batches(self, attachments: list[Attachment]) -> Iterator[list[Attachment]]:
        """Yield *attachments*, in order, in batches whose ADDs are asked for together."""
        for together, group in groupby(attachments, lambda each: self._runners.begins_at_once(each.plan)):
            if together:
                yield list(group)
            else:
                yield from ([attachment] for attachment in group)

    async def _add_all(
        self, sandbox: Sandbox, batch: list[Attachment], records: EffectLog, patience: Deadline
    ) -> list[InterfaceAttached]:
        """Make the attachments of *batch* in order, and return what has been put into *records* of each.

        Raises RequestFailedError for the first that failed; the others were made, or failed, all the same.
        """
        await self._within(patience, self._collections.ended({each.plan.cni_name for each in batch}))
        for attachment in batch:
            await device_info.provide(attachment.plan)
        told: set[IfName] = set()
        seconds = min(self._section.delegate_timeout, patience.left)
        adds = (self._add(sandbox, each.plan, records, told, seconds) for each in batch)
        started = asyncio.get_running_loop().time()
        try:
            outcomes = await self._within(patience, asyncio.gather(*adds, return_exceptions=True))
        except RequestFailedError as error:
            for attachment in batch:
                if attachment.plan.ifname not in told:
                    records.put(_failed(attachment.plan, error, asyncio.get_running_loop().time() - started))
            raise
        effects: list[InterfaceAttached] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            effects.append(outcome)
        return effects

    async def _add(
        self, sandbox: Sandbox, plan: PlannedAttachment, records: EffectLog, told: set[IfName], seconds: float
    ) -> InterfaceAttached:
        started = asyncio.get_running_loop().time()
        try:
            result, runs = await chain.add(self._runners, plan, target_of(sandbox), seconds)
        except chain.DelegateError as error:
            self._metrics.runs_done("ADD", error.runs)
            records.put(_failed(plan, error, asyncio.get_running_loop().time() - started, error.runs))
            told.add(plan.ifname)
            raise
        self._metrics.runs_done("ADD", runs)
        effect = InterfaceAttached(
            network=plan.network,
            ifname=plan.ifname,
            result=result,
            seconds=sum(run.seconds for run in runs),
            runs=runs,
            device_info=await device_info.recorded(plan),
        )
        # An executed plugin may take long, and may not be able to do it a second time.
        (records.hold if self._runners.begins_at_once(plan) else records.put)(effect)
        told.add(plan.ifname)
        return effect

    async def _move_default_route(self, sandbox: Sandbox) -> None:
        """Give the pod's default routes to the attachments that claim them, if any does."""
        assert sandbox.plan is not None
        for route in wanted(sandbox.attachments):
            await asyncio.to_thread(default_route.move, sandbox.plan.netns, route, sandbox.pod)

    async def _give_up(self, event: Event, request: AttachRequested, failure: Failure) -> Reply:
        """Undo what the attach has made, record that it failed, and return the answer for the runtime."""
        sandbox = self._journal.state.sandboxes.get(SandboxKey(event.sandbox, request.ifname))
        mine = sandbox if sandbox is not None and sandbox.intent == event.id else None

        def outcome(left: Mapping[IfName, Failure]) -> AttachFailed:
            return AttachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=failure,
                left=tuple(left),
                seconds=seconds_since(event.at),
            )

        try:
            await self._detacher.undo(mine, event, Phase.ROLLBACK, outcome)
        except RequestFailedError as error:
            log.warning("attach_outcome_not_recorded", sandbox=event.sandbox[:12], error=error.failure.message)
        return refusal(failure, request.config)

    def _sandbox(self, key: SandboxKey) -> Sandbox:
        return self._journal.state.sandboxes[key]

    async def _within(self, patience: Deadline, work: Awaitable[T]) -> T:
        """Return what *work* returns. Raises RequestFailedError when nobody waits for it any more."""
        try:
            async with patience:
                return await work
        except TimeoutError as error:
            raise RequestFailedError(patience.failure) from error


def _failed(
    plan: PlannedAttachment, error: RequestFailedError, seconds: float, runs: tuple[PluginRun, ...] = ()
) -> InterfaceAttachFailed:
    return InterfaceAttachFailed(
        network=plan.network, ifname=plan.ifname, failure=error.failure, seconds=seconds, runs=runs
    )


def _outcome(event: Event, request: AttachRequested, result: str) -> AttachCompleted:
    return AttachCompleted(
        request=request.request, ifname=request.ifname, result=result, seconds=seconds_since(event.at)
    )


def _gone(sandbox: Sandbox) -> RequestFailedError:
    return failed(
        ErrorClass.NAMESPACE_INVALID,
        Phase.ADD,
        f"the namespace {sandbox.netns} of pod {sandbox.pod} is gone since its ADD was begun: make a new sandbox",
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
            f"the result of network {first.plan.network} for pod {sandbox.pod} can't be said in cniVersion "
            f"{sandbox.plan.cni_version}: {error}",
            network=first.plan.network,
            ifname=first.plan.ifname,
        ) from error


def _recorded_result(sandbox: Sandbox, request: AttachRequested) -> str:
    """Return the recorded result for an ADD that comes again.

    Raises RequestFailedError for one that differs, and while the outcome of the request before it is not recorded.
    """
    first, name = sandbox.request, f"container {sandbox.key.container_id[:12]} of pod {request.pod}"
    if sandbox.phase in (SandboxPhase.REQUESTED, SandboxPhase.PLANNED, SandboxPhase.DETACHING):
        raise failed(
            ErrorClass.LEDGER_UNAVAILABLE,
            Phase.INTAKE,
            f"the ledger has not yet confirmed what became of the request for {name} before this one: try again",
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
        f"{name} can't be attached a second time as {request.ifname}: {reason}; send DEL first",
    )


def _check(event: Event, request: AttachRequested) -> None:
    """Raise RequestFailedError for CNI parameters that ADD can't do without (CNI specification 1.1, section 2)."""
    if not event.sandbox:
        raise unusable_container_id(Phase.ADD)
    missing = [name for name, value in (("CNI_NETNS", request.netns), ("CNI_PATH", request.path)) if not value]
    if missing:
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"ADD needs {' and '.join(missing)} in its environment")
    if problem := ifname_problem(request.ifname):
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"CNI_IFNAME {shown(request.ifname)} {problem}")
