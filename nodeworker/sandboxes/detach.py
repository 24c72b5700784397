"""Unmake the interfaces of a sandbox: for a DEL, and for an ADD that failed.

Everything comes from the ledger's fold: which attachments may have left something, with which bytes they were made.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import structlog
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey
from events.schema import (
    AttachPlanned,
    ContainerId,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    ErrorClass,
    Event,
    Failure,
    IfName,
    InterfaceDetached,
    InterfaceDetachFailed,
    Phase,
    PluginRun,
)
from nodeworker.deadline import seconds_since
from nodeworker.errors import RequestFailedError, failed, naming, unusable_container_id
from nodeworker.journal.effect_log import EffectLog
from nodeworker.journal.journal import Journal
from nodeworker.kernel.namespaces import is_namespace, loss
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.resolve.default_route import adjusted
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.exec import Runners
from nodeworker.plugins.spec.names import ifname_problem, shown
from nodeworker.sandboxes.answers import OK, Reply, refusal, reply_of
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)


class Detacher:
    """Fulfils the intents of detaching, and undoes attaches."""

    def __init__(self, journal: Journal, runners: Runners, section: WorkerSection, metrics: WorkerMetrics) -> None:
        self._journal = journal
        self._runners = runners
        self._section = section
        self._metrics = metrics

    async def detach(self, event: Event, request: DetachRequested) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime.

        Where the worker will see to the rest by itself, the runtime is told of success. So when the ledger can't take
        the last event: the intent is in it, and is repeated until it has an outcome. And for a sandbox whose ADD
        failed: a plugin that could not add may be as unable to delete, and a pod that never ran must not hang in its
        deletion.
        """
        key = SandboxKey(event.sandbox, request.ifname)
        before = self._journal.state.sandboxes.get(key)
        refused = _detach_problem(event, request)

        def outcome(left: Mapping[IfName, Failure]) -> Data:
            seconds = seconds_since(event.at)
            if not refused and not left:
                return DetachCompleted(request=request.request, ifname=request.ifname, seconds=seconds)
            return DetachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=naming(request.pod, refused or _together(list(left.values()))),
                left=tuple(left),
                seconds=seconds,
            )

        try:
            recorded = await self.undo(None if refused else before, event, Phase.DEL, outcome)
        except RequestFailedError as error:
            log.warning("detach_outcome_not_recorded", sandbox=event.sandbox[:12], error=error.failure.message)
            return refusal(refused, request.config) if refused else OK
        never_attached = before is not None and not before.result
        gave_up = isinstance(recorded, DetachFailed) and bool(recorded.left)
        return OK if gave_up and never_attached else reply_of(recorded, request.config)

    async def undo(
        self, sandbox: Sandbox | None, event: Event, phase: Phase, outcome: Callable[[Mapping[IfName, Failure]], Data]
    ) -> Data:
        """Detach, last first, whatever may be there of *sandbox*; return its outcome, which is recorded behind that.

        *outcome* says it, and is told what could not be detached, and why. Raises RequestFailedError when the ledger
        did not take an event, after all has been tried; it is offered all of them again.
        """
        async with EffectLog(self._journal, event) as records:
            left = {} if sandbox is None else await self._detach_all(sandbox, phase, records)
            return records.end(outcome(left))

    async def _detach_all(self, sandbox: Sandbox, phase: Phase, records: EffectLog) -> dict[IfName, Failure]:
        """Detach what may be there, and put what came of it into *records*; return what could not be, and why."""
        left: dict[IfName, Failure] = {}
        there = [each for each in reversed(sandbox.attempted()) if each.phase is not AttachmentPhase.DETACHED]
        if sandbox.plan is not None:
            await self._runners.clear([each.plan for each in there], self.target(sandbox).netns)
        for attachment in there:
            done = await self._detach_one(sandbox, attachment, phase)
            if isinstance(done, InterfaceDetachFailed):
                left[done.ifname] = done.failure
            if isinstance(done, InterfaceDetached) and self._runners.begins_at_once(attachment.plan):
                records.hold(done)
            else:
                records.put(done)  # an executed plugin may take long, and a failure is not to wait
        return left

    async def _detach_one(
        self, sandbox: Sandbox, attachment: Attachment, phase: Phase
    ) -> InterfaceDetached | InterfaceDetachFailed:
        loop = asyncio.get_running_loop()
        started = loop.time()
        network, ifname = attachment.plan.network, attachment.plan.ifname
        try:
            runs = await self.delete(sandbox, attachment)
        except chain.DelegateError as error:
            self._metrics.runs_done("DEL", error.runs)
            log.warning("interface_detach_failed", pod=str(sandbox.pod), phase=phase.value, error=error.failure.message)
            return InterfaceDetachFailed(
                network=network, ifname=ifname, failure=error.failure, seconds=loop.time() - started, runs=error.runs
            )
        self._metrics.runs_done("DEL", runs)
        return InterfaceDetached(network=network, ifname=ifname, seconds=loop.time() - started, runs=runs)

    async def delete(self, sandbox: Sandbox, attachment: Attachment) -> tuple[PluginRun, ...]:
        """Run DEL of one attachment with what was recorded of it; return the runs. Raises DelegateError.

        The plugins are not given a namespace that is gone (CNI specification 1.1, section 2, "DEL"): there is nothing
        in it to delete, and some refuse a path that is none. What is at its path by now may be somebody else's.
        """
        target = self.target(sandbox)
        runs = await chain.delete(
            self._runners,
            attachment.plan,
            target,
            adjusted(sandbox.attachments, attachment) or None,
            self._section.delegate_timeout,
        )
        await device_info.withdraw(attachment.plan)
        return runs

    def target(self, sandbox: Sandbox) -> chain.Target:
        """Return *sandbox*, which has a plan, as the plugins of a DEL are told of it."""
        target = target_of(sandbox)
        assert sandbox.plan is not None
        rebooted = sandbox.boot_id not in ("", self._journal.boot_id)
        if rebooted or not is_namespace(target.netns) or loss(target.netns, sandbox.plan.netns_inode):
            return replace(target, netns="")
        return target


def target_of(sandbox: Sandbox) -> chain.Target:
    """Return *sandbox*, which has a plan, as its plugins are told of it."""
    assert sandbox.plan is not None
    return planned_target(sandbox.key.container_id, sandbox.plan)


def planned_target(container_id: ContainerId, plan: AttachPlanned) -> chain.Target:
    """Return the sandbox that *plan* is for, as its plugins will be told of it."""
    folders = tuple(folder for folder in plan.path.split(os.pathsep) if folder)
    return chain.Target(container_id=container_id, netns=plan.netns, path=folders)


def _detach_problem(event: Event, request: DetachRequested) -> Failure | None:
    """Return what makes a DEL unusable, if anything. Its namespace may be gone (CNI specification 1.1, section 2)."""
    if not event.sandbox:
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
