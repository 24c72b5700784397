"""Make and unmake the interfaces of a sandbox, one event after another.

Every step is idempotent by (container ID, network, interface name), and what has been done is read from the ledger's
fold, never remembered here. So a request that an earlier worker left half done is continued by the same code that does
a new one. Calls for one container come one after another (``nodeworker.dispatch`` sees to it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import structlog
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ErrorClass,
    Event,
    Failure,
    IfName,
    InterfaceAttached,
    InterfaceAttachFailed,
    Phase,
)
from nodeworker import default_route
from nodeworker.answers import Reply, refusal, reply_of
from nodeworker.cluster.gather import gather
from nodeworker.cluster.source import Source
from nodeworker.collections_under_way import CollectionsUnderWay
from nodeworker.delegates import chain, results
from nodeworker.delegates.exec import Runners
from nodeworker.detach import Detacher, planned_target, target_of
from nodeworker.devices import info
from nodeworker.devices.source import DeviceSource, find
from nodeworker.errors import RequestFailedError, failed, internal, naming, unusable_container_id
from nodeworker.interfaces import registry
from nodeworker.metrics import WorkerMetrics
from nodeworker.namespace import inode, interfaces_present
from nodeworker.patience import Patience, seconds_since
from nodeworker.publication import StatusWait
from nodeworker.readiness import Readiness
from nodeworker.recorder import Recorder
from nodeworker.recording import Pipeline, record
from nodeworker.resolve.default_route import wanted
from nodeworker.resolve.grammar import ifname_problem, shown
from nodeworker.resolve.netconf import parse_netconf
from nodeworker.resolve.plan import plan
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Attacher:
    """Fulfils the intents of attaching and detaching."""

    def __init__(
        self,
        recorder: Recorder,
        detacher: Detacher,
        source: Source | None,
        runners: Runners,
        section: WorkerSection,
        metrics: WorkerMetrics,
        readiness: Readiness,
        device_sources: Sequence[DeviceSource],
        statuses: StatusWait,
        collections: CollectionsUnderWay,
    ) -> None:
        self._recorder = recorder
        self._detacher = detacher
        self._source = source
        self._runners = runners
        self._section = section
        self._metrics = metrics
        self._readiness = readiness
        self._device_sources = device_sources
        self._statuses = statuses
        self._collections = collections

    async def attach(self, event: Event, request: AttachRequested, patience: Patience, *, resumed: bool) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime.

        *resumed*: an earlier attempt may have made what the ledger does not tell of. Nothing of a failed attach stays
        behind but what the answer's event names as ``left``.
        """
        key = SandboxKey(event.sandbox, request.ifname)
        sandbox = self._recorder.state.sandboxes.get(key)
        try:
            if sandbox is not None and sandbox.intent != event.id:
                result = _recorded_result(sandbox, request)
            else:
                result = await self._make(key, event, request, patience, resumed=resumed)
                self._statuses.expect(self._sandbox(key))
            outcome = AttachCompleted(
                request=request.request, ifname=request.ifname, result=result, seconds=seconds_since(event.at)
            )
            await record(self._recorder, outcome, event)
        except RequestFailedError as error:
            return await self._give_up(event, request, naming(request.pod, error.failure))
        except Exception as error:  # what nobody foresaw must not leave half an attach behind
            log.exception("attach_broke", sandbox=event.sandbox[:12])
            return await self._give_up(event, request, internal(Phase.ADD, error))
        return reply_of(outcome, request.config)

    async def _make(
        self, key: SandboxKey, event: Event, request: AttachRequested, patience: Patience, *, resumed: bool
    ) -> str:
        """Return the result for the runtime once every attachment of the sandbox is made."""
        _check(event, request)
        if self._sandbox(key).plan is None:
            wait = 0.0 if resumed else patience.left  # a worker that starts waits for what it resumes
            resumed = False  # without a plan in the ledger nothing was begun
            await record(self._recorder, await self._within(patience, self._plan(event, request, wait)), event)
        sandbox = self._sandbox(key)
        if any(a.phase not in (AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED) for a in sandbox.attachments):
            raise RequestFailedError(patience.failure)  # an earlier worker was undoing it already
        async with Pipeline(self._recorder, event) as effects:
            for attachment in sandbox.attachments:
                if attachment.phase is AttachmentPhase.PLANNED:
                    if resumed:  # the next may have been begun before the ledger had the last
                        await self._within(patience, self._detacher.delete(sandbox, attachment))
                    effects.put(await self._add(sandbox, attachment, event, patience))
        await self._move_default_route(self._sandbox(key))
        if not patience.left:
            raise RequestFailedError(patience.failure)
        return self._result(self._sandbox(key))

    async def _plan(self, event: Event, request: AttachRequested, wait: float) -> AttachPlanned:
        """Return the plan, having made sure of what would spoil it.

        Its plugins are there, and its interface names are free: what is not ours is never deleted.
        """
        conf = parse_netconf(request.config, self._section.network)
        await self._readiness.wait(conf.readiness_file, wait, Phase.RESOLVE)
        pod, networks = await gather(conf, request.pod, self._source)
        devices = await find(conf, request.pod, pod, networks, self._device_sources)
        info_folder = self._section.devices.info_folder
        planned = await self._with_ways(plan(request, event.sandbox, conf, pod, networks, devices, info_folder))
        for attachment in planned.attachments:
            chain.require(self._runners, attachment, planned_target(event.sandbox, planned))
        names = {attachment.ifname for attachment in planned.attachments}
        taken = interfaces_present(request.netns, names, Phase.RESOLVE)
        for attachment in planned.attachments:
            if attachment.ifname in taken:
                raise failed(
                    ErrorClass.INTERFACE_EXISTS,
                    Phase.RESOLVE,
                    f"interface {attachment.ifname} for network {attachment.network} of pod {request.pod} exists in "
                    f"{request.netns} already and is not Plumbline's: remove it, or ask for another name",
                    network=attachment.network,
                    ifname=attachment.ifname,
                )
        return replace(planned, netns_inode=inode(request.netns))

    async def _with_ways(self, planned: AttachPlanned) -> AttachPlanned:
        """Return *planned* with the decision which plugins the worker itself stands in for."""
        if modules := registry.unloaded(plugin for each in planned.attachments for plugin in each.plugins):
            await asyncio.to_thread(registry.load, modules)
        ways = (registry.choose(attachment.plugins, self._section.native) for attachment in planned.attachments)
        attachments = (
            replace(each, native=way if any(way) else ()) for each, way in zip(planned.attachments, ways, strict=True)
        )
        return replace(planned, attachments=tuple(attachments))

    async def _add(
        self, sandbox: Sandbox, attachment: Attachment, event: Event, patience: Patience
    ) -> InterfaceAttached:
        loop = asyncio.get_running_loop()
        started = loop.time()
        plan = attachment.plan
        seconds = min(self._section.delegate_timeout, patience.left)
        try:
            await self._within(patience, self._collections.ended(plan.cni_name))
            await info.provide(plan)
            result, runs = await self._within(patience, chain.add(self._runners, plan, target_of(sandbox), seconds))
        except RequestFailedError as error:
            runs = error.runs if isinstance(error, chain.DelegateError) else ()
            self._metrics.runs_done("ADD", runs)
            await record(
                self._recorder,
                InterfaceAttachFailed(
                    network=plan.network,
                    ifname=plan.ifname,
                    failure=error.failure,
                    seconds=loop.time() - started,
                    runs=runs,
                ),
                event,
            )
            raise
        self._metrics.runs_done("ADD", runs)
        return InterfaceAttached(
            network=plan.network,
            ifname=plan.ifname,
            result=result,
            seconds=loop.time() - started,
            runs=runs,
            device_info=await info.recorded(plan),
        )

    async def _move_default_route(self, sandbox: Sandbox) -> None:
        """Give the pod's default routes to the attachments that claim them, if any does."""
        assert sandbox.plan is not None
        for route in wanted(sandbox.attachments):
            await asyncio.to_thread(default_route.move, sandbox.plan.netns, route, sandbox.pod)

    def _result(self, sandbox: Sandbox) -> str:
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

    async def _give_up(self, event: Event, request: AttachRequested, failure: Failure) -> Reply:
        """Undo what the attach has made, record that it failed, and return the answer for the runtime."""
        key = SandboxKey(event.sandbox, request.ifname)
        sandbox = self._recorder.state.sandboxes.get(key)
        try:
            left: dict[IfName, Failure] = {}
            if sandbox is not None and sandbox.intent == event.id:
                left = await self._detacher.undo(key, event, Phase.ROLLBACK)
            outcome = AttachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=failure,
                left=tuple(left),
                seconds=seconds_since(event.at),
            )
            await record(self._recorder, outcome, event)
        except RequestFailedError as error:
            log.warning("attach_outcome_not_recorded", sandbox=event.sandbox[:12], error=error.failure.message)
        return refusal(failure, request.config)

    def _sandbox(self, key: SandboxKey) -> Sandbox:
        return self._recorder.state.sandboxes[key]

    async def _within(self, patience: Patience, work: Awaitable[T]) -> T:
        """Return what *work* returns. Raises RequestFailedError when nobody waits for it any more."""
        try:
            async with patience:
                return await work
        except TimeoutError as error:
            raise RequestFailedError(patience.failure) from error


def _recorded_result(sandbox: Sandbox, request: AttachRequested) -> str:
    """Return the recorded result for an ADD that comes again. Raises RequestFailedError for one that differs."""
    first = sandbox.request
    if sandbox.phase is SandboxPhase.ATTACHED and first is not None:
        if (first.netns, first.config) == (request.netns, request.config):
            return sandbox.result
        reason = "it is attached with another configuration or namespace"
    else:
        reason = f"it is {sandbox.phase}"
    raise failed(
        ErrorClass.INVALID_REQUEST,
        Phase.INTAKE,
        f"container {sandbox.key.container_id[:12]} of pod {request.pod} can't be attached a second time as "
        f"{request.ifname}: {reason}; send DEL first",
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
