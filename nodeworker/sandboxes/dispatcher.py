"""Give every sandbox its turn: one request of a container at a time, many containers side by side, a bound over all.

A container has a queue and a task from its first request until the queue is empty (CNI specification 1.1, section
"Lifecycle & Ordering": no parallel operations for one container). Intents come from the ledger; CHECK, which changes
nothing and is not recorded, takes its turn among them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias, TypeVar

import structlog

from events.fold import Pending, SandboxKey
from events.schema import (
    AttachRequested,
    ComparisonRequested,
    DetachRequested,
    ErrorClass,
    Event,
    EventId,
    GcRequested,
    Phase,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
)
from nodeworker.deadline import Deadline, seconds_until
from nodeworker.errors import failed, internal
from nodeworker.sandboxes.answers import Answers, Reply, refusal
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import Orders
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.status_wait import StatusWait

log = structlog.get_logger(__name__)

T = TypeVar("T")
Job: TypeAlias = Callable[[], Awaitable[None]]

_ABANDONED = failed(
    ErrorClass.ABANDONED, Phase.ADD, "the runtime gave up waiting; what had been attached was undone"
).failure
_OVERTAKEN = failed(
    ErrorClass.OVERTAKEN, Phase.ADD, "a DEL of the same container came meanwhile; what had been attached was undone"
).failure


class Dispatcher:
    """Takes intents to whoever fulfils them, and their answers to whoever waits."""

    def __init__(
        self,
        attacher: Attacher,
        detacher: Detacher,
        collector: GarbageCollector,
        orders: Orders,
        answers: Answers,
        statuses: StatusWait,
        tasks: asyncio.TaskGroup,
        concurrency: int,
    ) -> None:
        self._attacher = attacher
        self._detacher = detacher
        self._collector = collector
        self._orders = orders
        self._answers = answers
        self._statuses = statuses
        self._tasks = tasks
        self._places = asyncio.Semaphore(concurrency)
        self._queues: dict[str, deque[Job]] = {}
        self._under_way: set[EventId] = set()
        self._at_work: set[asyncio.Task[None]] = set()
        self._held: set[asyncio.Task[None]] = set()
        self._patience: dict[RequestId, tuple[SandboxKey, Deadline]] = {}
        self.in_progress = 0

    @property
    def queue_depth(self) -> int:
        """Requests that wait for the one before them, or for a free place."""
        return sum(map(len, self._queues.values())) + len(self._queues) - self.in_progress

    @property
    def busy(self) -> bool:
        """Whether any intent is queued or being fulfilled."""
        return bool(self._under_way)

    def would_begin(self, container_id: str) -> bool:
        """Return whether a request of the container would be taken up at once."""
        return container_id not in self._queues and not self._places.locked()

    def under_way(self, intent: EventId) -> bool:
        """Return whether *intent* is queued or being fulfilled."""
        return intent in self._under_way

    def dispatch(self, intent: Stored | Pending, *, resumed: bool = False) -> None:
        """Queue *intent*. *resumed*: somebody may have begun to fulfil it before."""
        event, data = intent.event, intent.event.data
        if event.id in self._under_way:
            return
        match data:
            case AttachRequested():
                patience = Deadline(0 if self._answers.given(data.request) else seconds_until(data.deadline))
                self._patience[data.request] = (SandboxKey(event.sandbox, data.ifname), patience)
                self._queue(event, data.request, data.config, lambda: self._attach(event, data, patience, resumed))
            case DetachRequested():
                self._overtake(SandboxKey(event.sandbox, data.ifname))
                self._queue(event, data.request, data.config, lambda: self._detacher.detach(event, data))
            case GcRequested():
                self._queue(event, data.request, data.config, lambda: self._collector.collect(event, data))
            case RepairRequested():
                self._queue(event, data.request, "", lambda: self._orders.fulfil(event, data))
            case ReclaimRequested() | ComparisonRequested():
                self._queue(event, data.request, "", lambda: self._orders.fulfil(event, data), aside=True)
            case _:
                raise TypeError(f"{event.type} is not an intent")

    async def take_turn(self, container_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns when the requests for the container that came before are done."""
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def job() -> None:
            try:
                done = await work()
            except Exception as error:  # noqa: BLE001  # it is the asker's, not the queue's
                if not turn.done():
                    turn.set_exception(error)
            else:
                if not turn.done():
                    turn.set_result(done)

        self._enqueue(container_id, job, self._places)
        return await turn

    def abandon(self, request: RequestId) -> None:
        """Undo *request* if it is an attach under way: nobody waits for it any more."""
        if (waiting := self._patience.get(request)) is not None:
            waiting[1].end(_ABANDONED)

    async def finish(self, grace: float) -> None:
        """Let what is under way end within *grace* seconds; the rest stays open in the ledger, for the next worker.

        Answers that wait for a status are given at once.
        """
        for task in self._held:
            task.cancel()
        if self._at_work:
            await asyncio.wait(self._at_work, timeout=grace)
        for task in self._at_work:
            task.cancel()

    def _overtake(self, key: SandboxKey) -> None:
        for attached, patience in self._patience.values():
            if attached == key:
                patience.end(_OVERTAKEN)

    async def _attach(self, event: Event, data: AttachRequested, patience: Deadline, resumed: bool) -> Reply:
        try:
            return await self._attacher.attach(event, data, patience, resumed=resumed)
        finally:
            self._patience.pop(data.request, None)

    def _queue(
        self,
        event: Event,
        request: RequestId,
        config: str,
        work: Callable[[], Awaitable[Reply]],
        *,
        aside: bool = False,
    ) -> None:
        """Have *work* done in its container's turn; *aside*: at once, as it may itself ask for detaches and wait."""
        self._answers.open(request)
        self._under_way.add(event.id)

        async def job() -> None:
            try:
                reply = await work()
            except Exception as error:  # rule: one bad request never stops the others
                log.exception("request_broke", type=event.type, sandbox=event.sandbox[:12])
                reply = refusal(internal(Phase.INTAKE, error), config)
            finally:
                self._under_way.discard(event.id)
            self._answer(event, request, reply)

        self._enqueue(event.id if aside else event.sandbox, job, contextlib.nullcontext() if aside else self._places)

    def _answer(self, intent: Event, request: RequestId, reply: Reply) -> None:
        """Give the answer; where the pod's status is to be published first, later, in nobody's place or queue."""
        if reply.failure is not None or not self._statuses.expects(intent.id):
            self._statuses.forget(intent.id)
            self._answers.give(request, reply)
            return
        assert isinstance(intent.data, AttachRequested)
        task = self._tasks.create_task(self._statuses.wait(intent.id, seconds_until(intent.data.deadline)))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        task.add_done_callback(lambda _: self._answers.give(request, reply))  # also where it is cancelled

    def _enqueue(self, name: str, job: Job, places: AbstractAsyncContextManager[None]) -> None:
        if (queue := self._queues.get(name)) is not None:
            queue.append(job)
            return
        self._queues[name] = deque()
        task = self._tasks.create_task(self._work(name, job, places), name=f"queue-{name[:12]}")
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _work(self, name: str, job: Job | None, places: AbstractAsyncContextManager[None]) -> None:
        """Do the jobs of one queue until there are none."""
        queue = self._queues[name]
        while job is not None:
            async with places:
                self.in_progress += 1
                try:
                    await job()
                finally:
                    self.in_progress -= 1
            job = queue.popleft() if queue else None
        del self._queues[name]
