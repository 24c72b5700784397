"""Make intents of the requests from entry points, and return the answers."""

from __future__ import annotations

import asyncio

import structlog

from events.fold import SandboxKey
from events.ledger.ledger import LedgerError
from events.process import logs
from events.schema import NO_SANDBOX, AttachRequested, ContainerId, Data, DetachRequested, Failure, IfName, Phase
from nodeworker.errors import RequestFailedError, about, class_of, failed, internal, subject_of
from nodeworker.intake.check import Checker
from nodeworker.intake.intents import environment, intent_data
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.plugins.spec.names import ifname_problem
from nodeworker.sandboxes.answers import OK, Answers, Reply, error_reply
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.plan_ahead import PlanAhead
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.shim.frame import Frame

log = structlog.get_logger(__name__)


class Requests:
    """Answers the requests of entry points."""

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        dispatcher: Dispatcher,
        plans: PlanAhead,
        checker: Checker,
        answers: Answers,
        spool: Spool,
        metrics: WorkerMetrics,
        request_log: RequestLog,
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._plans = plans
        self._checker = checker
        self._answers = answers
        self._spool = spool
        self._metrics = metrics
        self._request_log = request_log

    async def answer(self, frame: Frame) -> Reply:
        """Return the answer to one request, however long it takes; count and log the request."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        env = environment(frame)
        command = env.get("CNI_COMMAND", "")
        with logs.about(pod_of(env.get("CNI_ARGS", "")), env.get("CNI_CONTAINERID", "")):
            try:
                reply = await self._fulfil(command, frame)
            except Exception as error:  # one bad request never stops the others
                log.exception("intake_broke", command=command, request=frame.request)
                reply = _refusal(frame, internal(Phase.INTAKE, error))
        seconds = loop.time() - started
        known = command if command in ("ADD", "DEL", "CHECK", "GC", "STATUS") else "other"
        self._metrics.request_done(known, seconds, reply.failure)
        self._request_log.done(frame, reply, seconds)
        return reply

    def abandon(self, frame: Frame) -> None:
        """Give the request of *frame* up: its entry point is gone."""
        self._dispatcher.abandon(frame.request)

    def answer_sent(self, frame: Frame) -> None:
        """Note that the answer to *frame* was sent."""
        self._answers.answer_sent(frame.request)

    async def _fulfil(self, command: str, frame: Frame) -> Reply:
        config = frame.config
        if command == "STATUS":
            return await self._checker.status(config, frame.env.get("CNI_PATH", ""))
        if command == "CHECK":
            return await self._check(frame, config)
        try:
            request, sandbox = intent_data(command, frame)
        except RequestFailedError as error:
            return _refusal(frame, error.failure)
        if isinstance(request, AttachRequested) and self._spool.has_one_of(sandbox):
            try:  # the runtime considers that DEL done: it must not undo this ADD later
                await self._spool.drain()
            except LedgerError as error:
                return self._without_ledger(frame, request, error)
        if not self._answers.open(frame.request):  # the entry point has reconnected
            return await self._answers.wait(frame.request)
        if isinstance(request, DetachRequested) and self._is_over(request, sandbox):
            self._answers.give(frame.request, OK)
            return OK
        intent = self._journal.event(request, sandbox)
        with self._plans.ahead(intent, request, frame.seconds_left):
            try:
                await self._journal.append_intent(intent)
            except LedgerError as error:
                self._answers.give(frame.request, self._without_ledger(frame, request, error))
            return await self._answers.wait(frame.request)

    def _is_over(self, request: DetachRequested, sandbox: ContainerId) -> bool:
        """Return whether a usable DEL has nothing to do: a runtime may repeat it for days, and no event tells more."""
        state = self._journal.state
        return (
            sandbox != NO_SANDBOX
            and not ifname_problem(request.ifname)
            and self._journal.nothing_postponed
            and not self._journal.has_open_intent(sandbox)
            and SandboxKey(sandbox, request.ifname) not in state.sandboxes
            and all(pending.event.sandbox != sandbox for pending in state.pending.values())
        )

    async def _check(self, frame: Frame, config: str) -> Reply:
        env = environment(frame)
        container_id = ContainerId(env.get("CNI_CONTAINERID", ""))
        ifname = IfName(env.get("CNI_IFNAME", ""))
        pod = pod_of(env.get("CNI_ARGS", ""))
        return await self._scheduler.take_turn(
            container_id, lambda: self._checker.check(container_id, ifname, pod, config)
        )

    def _without_ledger(self, frame: Frame, request: Data, error: LedgerError) -> Reply:
        """Return the answer while the ledger accepts no intent: DEL is spooled, the runtime retries all else."""
        error_class = class_of(error)
        if not isinstance(request, DetachRequested):
            return _refusal(frame, failed(error_class, Phase.INTAKE, str(error)).failure)
        try:
            self._spool.put(frame)
        except OSError as problem:
            message = f"{error}; and DEL can't be spooled on disk either: {problem.strerror}"
            return _refusal(frame, failed(error_class, Phase.INTAKE, message).failure)
        log.warning("detach_spooled", request=frame.request, error=str(error))
        return OK


def _refusal(frame: Frame, failure: Failure) -> Reply:
    env = environment(frame)
    subject = subject_of(pod_of(env.get("CNI_ARGS", "")), env.get("CNI_CONTAINERID", ""))
    return error_reply(about(subject, failure), frame.config)
