"""Send native work to child processes of the worker, each of which does one job after another.

rtnetlink works in its sender's context, host-local waits for a lock, and each of the hundred system calls of an attach
releases the interpreter's lock: on threads of the worker a quarter of the time went into passing that lock around. The
processes are forked from the worker, which costs little memory, and end with it. If one process dies, the worker
restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import msgspec
import structlog

from events.process.child_process import die_with_parent
from nodeworker.plugins.native import process
from nodeworker.plugins.native.api import BLOCKED_TIMEOUT, TRY_AGAIN
from nodeworker.plugins.native.jobs import Job, JobResult

log = structlog.get_logger(__name__)

PROCESSES = 2
"""The kernel has one lock for all links, behind which more processes would only queue."""

_BATCH = 16
"""Jobs that a process gets together at most: a job that it has can't be cancelled any more."""
_RETRY_DELAY = 0.05
"""Seconds until a job that was blocked is retried; the process does other jobs meanwhile."""
_READ_BYTES = 256 * 1024

_results = msgspec.msgpack.Decoder(JobResult)


class NativePool:
    """The processes. Make them while the worker has no other threads: a fork copies the locks that those hold.

    The processes keep the descriptors *keep* open, and with them a lock that must not be free before they are gone.
    """

    def __init__(self, keep: Collection[int] = ()) -> None:
        gc.collect()
        gc.freeze()  # otherwise the first collection would copy all shared memory
        self.died = asyncio.Event()
        """Set once a process has ended by itself."""
        self._processes = [_Process(keep, self.died.set) for _ in range(PROCESSES)]

    @property
    def pids(self) -> list[int]:
        """The processes' IDs."""
        return [each.pid for each in self._processes]

    def submit(self, job: Job, queue: str) -> asyncio.Future[JobResult]:
        """Queue *job* and return the future of its result. The jobs of one *queue* run in the order of the calls.

        A job that is blocked by others (``TRY_AGAIN``) is retried for up to ``BLOCKED_TIMEOUT`` seconds; later jobs of
        its queue wait for that.

        If the task that awaits the future is cancelled, a job that has not started is dropped at once. For one that has
        started, the cancellation is raised when the job has ended: nothing goes on in the background. If the process
        has died, the future is cancelled: the worker ends too, and the next one resumes the work.
        """
        return self._process_for(queue).submit(job, queue)

    def _process_for(self, queue: str) -> _Process:
        """Return the process that has jobs of *queue*, else the one with the fewest jobs.

        On a node with little to do that is always the first one: its cache of host-local's folders stays valid.
        """
        for each in self._processes:
            if queue in each.open_jobs:
                return each
        return min(self._processes, key=lambda each: each.open_jobs.total())

    async def fail_when_process_died(self) -> NoReturn:
        """Raise ChildProcessError once a process has ended by itself: the next worker starts all of them."""
        await self.died.wait()
        raise ChildProcessError("a native process died, so the worker restarts")

    def close(self) -> None:
        """End the processes once they have done their jobs, and wait for that."""
        for each in self._processes:
            each.close()


class _PendingJob(asyncio.Future[JobResult]):
    """The future of one job's result; its own ``cancel`` does what ``NativePool.submit`` promises."""

    def __init__(self, job: Job, queue: str) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self.job = job
        self.queue = queue
        self.fails_at = loop.time() + BLOCKED_TIMEOUT
        """The loop's time at which being blocked becomes an error."""
        self.sent = False
        """The process has the job."""
        self.unwanted = False
        """The awaiting task was cancelled."""

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel, unless the process has the job: then the task gets its cancellation when the result is there."""
        self.unwanted = True
        return False if self.sent else super().cancel(msg)

    def drop(self) -> None:
        """Cancel in any case."""
        super().cancel()


class _Process:
    """One process, with a pipe for each direction.

    It gets all jobs together that are submitted at the same time, or while it is busy: waking it for each would take a
    tenth of the time of an attach.
    """

    def __init__(self, keep: Collection[int], on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._waiting: deque[_PendingJob] = deque()
        self._sent: deque[_PendingJob] = deque()
        self._blocked: dict[str, list[_PendingJob]] = {}
        """By queue: the jobs to retry, and all that came behind them, in order."""
        self._received = bytearray()
        self._dead = False
        self.open_jobs: Counter[str] = Counter()
        """The number of jobs of each queue that have no result yet."""
        theirs, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        tie = die_with_parent()
        self.pid = os.fork()
        if not self.pid:
            process.run(tie, {theirs, answers, *keep}, theirs, answers)
        os.close(theirs)
        os.close(answers)
        os.set_blocking(self._replies, False)
        asyncio.get_running_loop().add_reader(self._replies, self._read)

    def submit(self, job: Job, queue: str) -> _PendingJob:
        """Queue *job* behind the earlier ones."""
        pending = _PendingJob(job, queue)
        if self._dead:
            pending.drop()
            return pending
        self.open_jobs[queue] += 1
        pending.add_done_callback(self._forget)
        self._waiting.append(pending)
        if len(self._waiting) == 1 and not self._sent:
            asyncio.get_running_loop().call_soon(self._send_batch)
        return pending

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        if not self._dead:
            asyncio.get_running_loop().remove_reader(self._replies)
        self._dead = True
        os.close(self._requests)
        os.close(self._replies)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _forget(self, pending: asyncio.Future[JobResult]) -> None:
        assert isinstance(pending, _PendingJob)
        self.open_jobs[pending.queue] -= 1
        if not self.open_jobs[pending.queue]:
            del self.open_jobs[pending.queue]

    def _send_batch(self) -> None:
        """Send what waits, if the process is idle."""
        if self._sent or self._dead:
            return
        while self._waiting and len(self._sent) < _BATCH:
            pending = self._waiting.popleft()
            if pending.queue in self._blocked:
                self._blocked[pending.queue].append(pending)
            elif not pending.cancelled():
                pending.sent = True
                self._sent.append(pending)
        if not self._sent:
            return
        try:
            # The idle process reads at once, so that a message that does not fit the pipe does not block for long.
            process.write(self._requests, msgspec.msgpack.encode([pending.job for pending in self._sent]))
        except OSError:
            self._die()

    def _read(self) -> None:
        try:
            data = os.read(self._replies, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._die()
            return
        self._received += data
        start, size = 0, process.LENGTH.size
        while len(self._received) >= start + size:
            end = start + size + process.LENGTH.unpack_from(self._received, start)[0]
            if end > len(self._received):
                break
            self._take(self._sent.popleft(), _results.decode(self._received[start + size : end]))
            start = end
        del self._received[:start]
        self._send_batch()

    def _take(self, pending: _PendingJob, result: JobResult) -> None:
        """Pass *result* on, or retry the job later, with all jobs of its queue behind it."""
        loop = asyncio.get_running_loop()
        pending.sent = False
        if result.code != TRY_AGAIN or (result.attempted and loop.time() > pending.fails_at):
            pending.set_result(result)
        elif pending.unwanted:
            pending.drop()
        else:
            if pending.queue not in self._blocked:
                self._blocked[pending.queue] = []
                loop.call_later(_RETRY_DELAY, self._retry, pending.queue)
            self._blocked[pending.queue].append(pending)

    def _retry(self, queue: str) -> None:
        if any(pending.queue == queue for pending in self._sent):  # one of them may be blocked, too
            asyncio.get_running_loop().call_later(_RETRY_DELAY, self._retry, queue)
            return
        behind = [pending for pending in self._waiting if pending.queue == queue]
        self._waiting = deque(pending for pending in self._waiting if pending.queue != queue)
        self._waiting.extend([*self._blocked.pop(queue), *behind])
        self._send_batch()

    def _die(self) -> None:
        if self._dead:
            return
        self._dead = True
        asyncio.get_running_loop().remove_reader(self._replies)
        log.error("native_process_ended", pid=self.pid)
        for pending in (*self._sent, *self._waiting, *itertools.chain(*self._blocked.values())):
            pending.drop()
        self._on_death()
