"""Route each intent to the part that fulfils it, and each answer to the entry point that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import structlog

from events.fold import Pending, SandboxKey
from events.process import logs
from events.schema import (
    AttachRequested,
    ComparisonRequested,
    Data,
    DetachRequested,
    ErrorClass,
    Event,
    GcRequested,
    Phase,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
)
from nodeworker.deadline import Deadline, seconds_until
from nodeworker.errors import about, failed, internal, subject_of
from nodeworker.sandboxes.answers import Answers, Reply, error_reply
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import CommandHandler
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait

log = structlog.get_logger(__name__)

_ABANDONED = failed(
    ErrorClass.ABANDONED, Phase.ADD, "the runtime gave up waiting; what had been attached was undone"
).failure
_OVERTAKEN = failed(
    ErrorClass.OVERTAKEN,
    Phase.ADD,
    "a DEL of the same container and interface came meanwhile; what had been attached was undone",
).failure

_PHASES: Final[Mapping[type[Data], Phase]] = {
    AttachRequested: Phase.ADD,
    DetachRequested: Phase.DEL,
    GcRequested: Phase.GC,
    RepairRequested: Phase.REPAIR,
    ReclaimRequested: Phase.RECLAIM,
    ComparisonRequested: Phase.CHECK,
}
"""The phase in which an intent fails if its work raises an unexpected error."""


class Dispatcher:
    """Schedules intents and answers their requests."""

    def __init__(
        self,
        scheduler: Scheduler,
        attacher: Attacher,
        detacher: Detacher,
        collector: GarbageCollector,
        commands: CommandHandler,
        answers: Answers,
        statuses: StatusWait,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._scheduler = scheduler
        self._attacher = attacher
        self._detacher = detacher
        self._collector = collector
        self._commands = commands
        self._answers = answers
        self._statuses = statuses
        self._tasks = tasks
        self._status_waits: set[asyncio.Task[None]] = set()
        self._deadlines: dict[RequestId, tuple[SandboxKey, Deadline]] = {}

    async def run(self, intents: AsyncIterator[Stored]) -> None:
        """Dispatch each of *intents*, which the ledger sends back after ``Journal.append_intent``, without end."""
        async for intent in intents:
            self.dispatch(intent)

    def dispatch(self, stored: Stored | Pending, *, resumed: bool = False) -> None:
        """Queue the intent *stored* unless it is queued already. *resumed*: an earlier attempt may have had effects."""
        intent, request = stored.event, stored.event.data
        if self._scheduler.has(intent.id):
            return
        match request:
            case AttachRequested():
                # If the ledger did not confirm the intent, the runtime was answered with an error. No time is left
                # then, so the attach undoes itself.
                deadline = Deadline(0 if self._answers.given(request.request) else seconds_until(request.deadline))
                self._deadlines[request.request] = (SandboxKey(intent.sandbox, request.ifname), deadline)
                attach, config = self._attacher.attach, request.config
                self._enqueue(
                    intent, request.request, config, lambda: attach(intent, request, deadline, resumed=resumed)
                )
            case DetachRequested():
                self._overtake(SandboxKey(intent.sandbox, request.ifname))
                self._enqueue(intent, request.request, request.config, lambda: self._detacher.detach(intent, request))
            case GcRequested():
                self._enqueue(intent, request.request, request.config, lambda: self._collector.collect(intent, request))
            case RepairRequested():
                self._enqueue(intent, request.request, "", lambda: self._commands.fulfil(intent, request))
            case ReclaimRequested() | ComparisonRequested():
                # Such a command may ask for detaches and wait for them, so it has its own queue.
                fulfil = self._commands.fulfil
                self._enqueue(intent, request.request, "", lambda: fulfil(intent, request), own_queue=True)
            case _:
                raise TypeError(f"{intent.type} is not an intent")

    def abandon(self, request: RequestId) -> None:
        """End the time of *request* if it is an attach in progress; it then undoes itself. Its entry point is gone."""
        if (in_progress := self._deadlines.get(request)) is not None:
            _, deadline = in_progress
            deadline.end(_ABANDONED)

    async def finish(self, grace: float) -> None:
        """Give the answers that wait for a status, and stop the queues after at most *grace* seconds."""
        for task in self._status_waits:
            task.cancel()
        await self._scheduler.finish(grace)

    def _overtake(self, key: SandboxKey) -> None:
        for sandbox, deadline in self._deadlines.values():
            if sandbox == key:
                deadline.end(_OVERTAKEN)

    def _enqueue(
        self,
        intent: Event,
        request: RequestId,
        config: str,
        work: Callable[[], Awaitable[Reply]],
        *,
        own_queue: bool = False,
    ) -> None:
        """Schedule *work* for *intent*, and answer *request* with its reply."""
        pod = intent.data.pod if isinstance(intent.data, AttachRequested | DetachRequested) else Pod()

        def done(reply: Reply | Exception) -> None:
            self._deadlines.pop(request, None)
            if isinstance(reply, Exception):
                log.error("request_broke", type=intent.type, exc_info=reply)
                failure = about(subject_of(pod, intent.sandbox), internal(_PHASES[type(intent.data)], reply))
                reply = error_reply(failure, config)
            self._answer(intent, request, reply)

        self._answers.open(request)
        queue = intent.id if own_queue else intent.sandbox
        with logs.about(pod, intent.sandbox):
            self._scheduler.enqueue(queue, work, done, intent=intent.id, bounded=not own_queue)

    def _answer(self, intent: Event, request: RequestId, reply: Reply) -> None:
        """Give the answer, after the pod's status is published where that is expected.

        The wait for the status takes neither a slot nor the container's queue.
        """
        if reply.failure is not None or not self._statuses.expects(intent.id):
            self._statuses.forget(intent.id)
            self._answers.give(request, reply)
            return
        assert isinstance(intent.data, AttachRequested)
        task = self._tasks.create_task(self._statuses.wait(intent.id, seconds_until(intent.data.deadline)))
        self._status_waits.add(task)
        task.add_done_callback(self._status_waits.discard)
        task.add_done_callback(lambda _: self._answers.give(request, reply))  # also if it was cancelled
