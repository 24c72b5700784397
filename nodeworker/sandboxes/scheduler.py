"""One serial queue per container, many containers in parallel, and a bound over all of them.

A container has a queue and a task from its first request until the queue is empty (CNI specification 1.1, section
"Lifecycle & Ordering": no parallel operations for one container).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

from structlog.contextvars import bound_contextvars, get_contextvars

from events.schema import EventId

T = TypeVar("T")


class _Job(NamedTuple):
    work: Callable[[], Awaitable[Any]]
    done: Callable[[Any], None]
    """Takes what *work* returned, or the exception that it raised."""
    intent: EventId | None
    named: Mapping[str, Any]
    """The job's log lines name what the lines of its caller do: pod and sandbox."""


class Scheduler:
    """The queues of all containers. At most *concurrency* containers are worked on at the same time."""

    def __init__(self, tasks: asyncio.TaskGroup, concurrency: int) -> None:
        self._tasks = tasks
        self._slots = asyncio.Semaphore(concurrency)
        self._queues: dict[str, deque[_Job]] = {}
        self._queue_tasks: set[asyncio.Task[None]] = set()
        self._intents: set[EventId] = set()
        self._collections: dict[str, asyncio.Event] = {}
        self.in_progress = 0

    @property
    def queue_depth(self) -> int:
        """Requests that wait for the one before them, or for a free slot."""
        return sum(map(len, self._queues.values())) + len(self._queues) - self.in_progress

    @property
    def busy(self) -> bool:
        """Whether any intent is queued or in progress."""
        return bool(self._intents)

    def has(self, intent: EventId) -> bool:
        """Return whether *intent* is queued or in progress."""
        return intent in self._intents

    def would_start(self, container_id: str) -> bool:
        """Return whether a new request of the container would start at once."""
        return container_id not in self._queues and not self._slots.locked()

    def enqueue(
        self,
        queue: str,
        work: Callable[[], Awaitable[T]],
        done: Callable[[T | Exception], None],
        *,
        intent: EventId | None = None,
        bounded: bool = True,
    ) -> None:
        """Call *work* behind the jobs that are in *queue*, then *done* with its result or its exception.

        *intent* counts as in progress until then. A job that is not *bounded* takes no slot: it may itself wait for
        other queues, and must have its own queue.
        """
        if intent is not None:
            self._intents.add(intent)
        job = _Job(work, done, intent, get_contextvars())
        if (waiting := self._queues.get(queue)) is not None:
            waiting.append(job)
            return
        self._queues[queue] = deque()
        slots = self._slots if bounded else contextlib.nullcontext()
        running = self._run_queue(queue, job, slots)
        task = self._tasks.create_task(running, name=f"queue-{queue[:12]}", context=Context())
        self._queue_tasks.add(task)
        task.add_done_callback(self._queue_tasks.discard)

    async def take_turn(self, container_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns once the earlier requests for the container are done. Raises what it raises."""
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T | Exception) -> None:
            if turn.done():
                return  # the caller was cancelled
            if isinstance(result, Exception):
                turn.set_exception(result)
            else:
                turn.set_result(result)

        self.enqueue(container_id, work, done)
        return await turn

    async def finish(self, grace: float) -> None:
        """Wait up to *grace* seconds for the jobs in progress, then cancel them. The next worker resumes the rest."""
        if self._queue_tasks:
            await asyncio.wait(self._queue_tasks, timeout=grace)
        for task in self._queue_tasks:
            task.cancel()

    @contextlib.asynccontextmanager
    async def collection(self, network: str) -> AsyncIterator[None]:
        """Hold back the ADDs of *network* (the name that plugins know) while its garbage is collected.

        GC lists the attachments to keep before the plugins look. An attachment that is planned after that is not on the
        list, so it must have nothing yet that a plugin could take for garbage.
        """
        await self.collections_finished({network})
        self._collections[network] = finished = asyncio.Event()
        try:
            yield
        finally:
            del self._collections[network]
            finished.set()

    async def collections_finished(self, networks: Set[str]) -> None:
        """Return once no garbage collection of any of *networks* is in progress."""
        while running := [self._collections[network] for network in networks if network in self._collections]:
            await running[0].wait()

    async def _run_queue(self, queue: str, job: _Job | None, slots: AbstractAsyncContextManager[None]) -> None:
        """Run the jobs of one queue until it is empty."""
        waiting = self._queues[queue]
        while job is not None:
            with bound_contextvars(**job.named):
                async with slots:
                    self.in_progress += 1
                    try:
                        result = await job.work()
                    except Exception as error:  # noqa: BLE001  # one bad request never stops the others
                        result = error
                    finally:
                        self.in_progress -= 1
                        if job.intent is not None:
                            self._intents.discard(job.intent)
                job.done(result)
            job = waiting.popleft() if waiting else None
        del self._queues[queue]
