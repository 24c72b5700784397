"""Make and unmake the interfaces of a sandbox, one event after another.

Every step is idempotent by (container ID, network, interface name), and what has been done is read from the ledger's
fold, never remembered here. So a request that an earlier worker left half done is continued by the same code that does
a new one. Calls for one container come one after another (``nodeworker.dispatch`` sees to it).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable
from typing import TypeVar

import structlog
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.ledger import LedgerError, LedgerFullError
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    ErrorClass,
    Event,
    Failure,
    IfName,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    Phase,
    PluginRun,
    Pod,
)
from nodeworker.answers import OK, Reply, refusal, reply_of
from nodeworker.cluster.gather import gather
from nodeworker.cluster.source import Source
from nodeworker.delegates import chain, results
from nodeworker.delegates.exec import PluginExecutor
from nodeworker.errors import RequestFailedError, failed
from nodeworker.metrics import WorkerMetrics
from nodeworker.namespace import interfaces_present
from nodeworker.patience import Patience, seconds_since
from nodeworker.recorder import Recorder
from nodeworker.resolve.grammar import ifname_problem, shown
from nodeworker.resolve.netconf import parse_netconf
from nodeworker.resolve.plan import plan
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class Attacher:
    """Fulfils the intents of attaching and detaching."""

    def __init__(
        self,
        recorder: Recorder,
        source: Source | None,
        executor: PluginExecutor,
        section: WorkerSection,
        metrics: WorkerMetrics,
    ) -> None:
        self._recorder = recorder
        self._source = source
        self._executor = executor
        self._section = section
        self._metrics = metrics

    async def attach(self, event: Event, request: AttachRequested, patience: Patience, *, resumed: bool) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime.

        *resumed*: an earlier attempt may have left its last step half done. Nothing of a failed attach stays behind but
        what the answer's event names as ``left``.
        """
        key = SandboxKey(event.sandbox, request.ifname)
        sandbox = self._recorder.state.sandboxes.get(key)
        try:
            if sandbox is not None and sandbox.intent != event.id:
                result = _recorded_result(sandbox, request)
            else:
                result = await self._make(key, event, request, patience, resumed=resumed)
            outcome = AttachCompleted(
                request=request.request, ifname=request.ifname, result=result, seconds=seconds_since(event.at)
            )
            await self._record(outcome, event)
        except RequestFailedError as error:
            return await self._give_up(event, request, _naming(request.pod, error.failure))
        except Exception as error:  # what nobody foresaw must not leave half an attach behind
            log.exception("attach_broke", sandbox=event.sandbox[:12])
            return await self._give_up(event, request, internal(Phase.ADD, error))
        return reply_of(outcome, request.config)

    async def detach(self, event: Event, request: DetachRequested) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime.

        The runtime is told of success also when the ledger can't take the last event: the intent is in it, and is
        repeated until the ledger has its outcome.
        """
        key = SandboxKey(event.sandbox, request.ifname)
        refused = _detach_problem(event, request)
        try:
            left = {} if refused else await self._undo(key, event, Phase.DEL)
            seconds = seconds_since(event.at)
            outcome: Data = DetachCompleted(request=request.request, ifname=request.ifname, seconds=seconds)
            if refused or left:
                outcome = DetachFailed(
                    request=request.request,
                    ifname=request.ifname,
                    failure=_naming(request.pod, refused or _together(list(left.values()))),
                    left=tuple(left),
                    seconds=seconds,
                )
            await self._record(outcome, event)
        except RequestFailedError as error:
            log.warning("detach_outcome_not_recorded", sandbox=event.sandbox[:12], error=error.failure.message)
            return refusal(refused, request.config) if refused else OK
        return reply_of(outcome, request.config)

    async def _make(
        self, key: SandboxKey, event: Event, request: AttachRequested, patience: Patience, *, resumed: bool
    ) -> str:
        """Return the result for the runtime once every attachment of the sandbox is made."""
        _check(event, request)
        if self._sandbox(key).plan is None:
            await self._record(await self._within(patience, self._plan(event, request)), event)
        sandbox = self._sandbox(key)
        if any(a.phase not in (AttachmentPhase.PLANNED, AttachmentPhase.ATTACHED) for a in sandbox.attachments):
            raise RequestFailedError(patience.failure)  # an earlier worker was undoing it already
        recording: list[asyncio.Task[None]] = []
        try:
            for attachment in sandbox.attachments:
                if attachment.phase is AttachmentPhase.PLANNED:
                    if resumed:
                        await self._within(patience, self._delete(sandbox, attachment))
                        resumed = False
                    attached = await self._add(sandbox, attachment, event, patience)
                    recording.append(asyncio.create_task(self._record(attached, event)))
        finally:
            # Appended while the next interface is made; what follows, good or bad, builds on their being there.
            recorded = await asyncio.gather(*recording, return_exceptions=True)
        for problem in recorded:
            if problem is not None:
                raise problem
        if not patience.left:
            raise RequestFailedError(patience.failure)
        return self._result(self._sandbox(key))

    async def _plan(self, event: Event, request: AttachRequested) -> AttachPlanned:
        """Return the plan, having made sure that its interface names are free: what is not ours is never deleted."""
        conf = parse_netconf(request.config, self._section.network)
        pod, networks = await gather(conf, request.pod, self._source)
        planned = plan(request, event.sandbox, conf, pod, networks)
        names = {attachment.ifname for attachment in planned.attachments}
        taken = await asyncio.to_thread(interfaces_present, request.netns, names, Phase.RESOLVE)
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
        return planned

    async def _add(
        self, sandbox: Sandbox, attachment: Attachment, event: Event, patience: Patience
    ) -> InterfaceAttached:
        loop = asyncio.get_running_loop()
        started = loop.time()
        plan = attachment.plan
        seconds = min(self._section.delegate_timeout, patience.left)
        try:
            result, runs = await self._within(patience, chain.add(self._executor, plan, target_of(sandbox), seconds))
        except RequestFailedError as error:
            runs = error.runs if isinstance(error, chain.DelegateError) else ()
            self._count("ADD", runs)
            await self._record(
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
        self._count("ADD", runs)
        return InterfaceAttached(
            network=plan.network, ifname=plan.ifname, result=result, seconds=loop.time() - started, runs=runs
        )

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
                left = await self._undo(key, event, Phase.ROLLBACK)
            outcome = AttachFailed(
                request=request.request,
                ifname=request.ifname,
                failure=failure,
                left=tuple(left),
                seconds=seconds_since(event.at),
            )
            await self._record(outcome, event)
        except RequestFailedError as error:
            log.warning("attach_outcome_not_recorded", sandbox=event.sandbox[:12], error=error.failure.message)
        return refusal(failure, request.config)

    async def _undo(self, key: SandboxKey, event: Event, phase: Phase) -> dict[IfName, Failure]:
        """Detach, last first, whatever may be there of the sandbox; return what could not be detached, and why.

        Raises RequestFailedError when the ledger did not take an event, after all has been tried.
        """
        sandbox = self._recorder.state.sandboxes.get(key)
        left: dict[IfName, Failure] = {}
        unrecorded: RequestFailedError | None = None
        for attachment in reversed(sandbox.attempted() if sandbox is not None else ()):
            if sandbox is None or attachment.phase is AttachmentPhase.DETACHED:
                continue
            done = await self._detach_one(sandbox, attachment, phase)
            if isinstance(done, InterfaceDetachFailed):
                left[done.ifname] = done.failure
            try:
                await self._record(done, event)
            except RequestFailedError as error:
                unrecorded = error
        if unrecorded is not None:
            raise unrecorded
        return left

    async def _detach_one(
        self, sandbox: Sandbox, attachment: Attachment, phase: Phase
    ) -> InterfaceDetached | InterfaceDetachFailed:
        loop = asyncio.get_running_loop()
        started = loop.time()
        network, ifname = attachment.plan.network, attachment.plan.ifname
        try:
            runs = await self._delete(sandbox, attachment)
        except chain.DelegateError as error:
            self._count("DEL", error.runs)
            log.warning("interface_detach_failed", pod=str(sandbox.pod), phase=phase.value, error=error.failure.message)
            return InterfaceDetachFailed(
                network=network, ifname=ifname, failure=error.failure, seconds=loop.time() - started, runs=error.runs
            )
        self._count("DEL", runs)
        return InterfaceDetached(network=network, ifname=ifname, seconds=loop.time() - started, runs=runs)

    async def _delete(self, sandbox: Sandbox, attachment: Attachment) -> tuple[PluginRun, ...]:
        """Run DEL of one attachment with what was recorded of it; return the runs. Raises DelegateError."""
        return await chain.delete(
            self._executor,
            attachment.plan,
            target_of(sandbox),
            attachment.result or None,
            self._section.delegate_timeout,
        )

    def _sandbox(self, key: SandboxKey) -> Sandbox:
        return self._recorder.state.sandboxes[key]

    async def _record(self, data: Data, event: Event) -> None:
        """Record what was done for the intent *event*. Raises RequestFailedError when the ledger does not take it."""
        try:
            await self._recorder.record(data, event.sandbox, event.id)
        except LedgerError as error:
            full = isinstance(error, LedgerFullError)
            raise failed(
                ErrorClass.LEDGER_FULL if full else ErrorClass.LEDGER_UNAVAILABLE, Phase.INTAKE, str(error)
            ) from error

    async def _within(self, patience: Patience, work: Awaitable[T]) -> T:
        """Return what *work* returns. Raises RequestFailedError when nobody waits for it any more."""
        try:
            async with patience:
                return await work
        except TimeoutError as error:
            raise RequestFailedError(patience.failure) from error

    def _count(self, command: str, runs: tuple[PluginRun, ...]) -> None:
        for run in runs:
            self._metrics.delegate_done(command, run.type, run.seconds, ok=not run.exit_code)


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
        raise _unusable_container_id(Phase.ADD)
    missing = [name for name, value in (("CNI_NETNS", request.netns), ("CNI_PATH", request.path)) if not value]
    if missing:
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"ADD needs {' and '.join(missing)} in its environment")
    if problem := ifname_problem(request.ifname):
        raise failed(ErrorClass.INVALID_REQUEST, Phase.INTAKE, f"CNI_IFNAME {shown(request.ifname)} {problem}")


def _detach_problem(event: Event, request: DetachRequested) -> Failure | None:
    """Return what makes a DEL unusable, if anything. Its namespace may be gone (CNI specification 1.1, section 2)."""
    if not event.sandbox:
        return _unusable_container_id(Phase.DEL).failure
    if problem := ifname_problem(request.ifname):
        return failed(ErrorClass.INVALID_REQUEST, Phase.DEL, f"CNI_IFNAME {shown(request.ifname)} {problem}").failure
    return None


def internal(phase: Phase, error: Exception) -> Failure:
    """Return the failure for an error that is a mistake in Plumbline."""
    return failed(
        ErrorClass.INTERNAL,
        phase,
        f"Plumbline made a mistake ({type(error).__name__}: {error}): its log says where; please report it",
    ).failure


def usable_container_id(text: str) -> bool:
    """Return whether *text* can be a container ID (CNI specification 1.1, section 2, "Parameters")."""
    return _CONTAINER_ID.fullmatch(text) is not None


def _unusable_container_id(phase: Phase) -> RequestFailedError:
    return failed(
        ErrorClass.INVALID_REQUEST,
        phase,
        "CNI_CONTAINERID is missing, or is not a letter or digit followed by letters, digits and any of ._-",
    )


def target_of(sandbox: Sandbox) -> chain.Target:
    """Return *sandbox*, which has a plan, as its plugins are told of it."""
    assert sandbox.plan is not None
    return chain.Target(
        container_id=sandbox.key.container_id,
        netns=sandbox.plan.netns,
        path=tuple(folder for folder in sandbox.plan.path.split(os.pathsep) if folder),
    )


def _naming(pod: Pod, failure: Failure) -> Failure:
    """Return *failure* with the pod in its sentence; a plugin does not know whom it works for."""
    if not pod.name or str(pod) in failure.message:
        return failure
    return replace(failure, message=f"pod {pod}: {failure.message}")


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
