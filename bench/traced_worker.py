"""A worker that notes when each part of its work begins and ends, for ``bench.breakdown``.

The parts are wrapped from outside, so the worker itself has no code for measurement. All processes of the machine share
the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import inspect
import os
import time
from asyncio import events as loop_events
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from events.ledger.ledger import Ledger
from events.process import logs
from events.process.settings import load
from nodeworker import __main__ as worker
from nodeworker.intake.requests import Requests
from nodeworker.planning.planner import Planner
from nodeworker.plugins import chain
from nodeworker.plugins.native.jobs import Job, JobResult
from nodeworker.plugins.native.pool import NativePool
from nodeworker.sandboxes.attach import Attacher
from nodeworker.settings import WorkerSettings

_PARTS: tuple[tuple[Any, str, str], ...] = (
    (Requests, "answer", "answer"),
    (Attacher, "attach", "attach"),
    (Planner, "plan", "plan"),
    (chain, "add", "attachment"),
)


class Trace(msgspec.Struct):
    """What was noted, in seconds."""

    spans: list[tuple[str, float, float]] = []
    """Name, begin and end."""
    steps: list[tuple[float, float]] = []
    """Long steps of the event loop: begin, and seconds without the wait for a processor."""


trace = Trace()


def traced(work: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    """Return *work*, which notes when it begins and ends."""

    @functools.wraps(work)
    def call(*args: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*args, **more)
        finally:
            trace.spans.append((name(*args), begin, time.perf_counter()))

    @functools.wraps(work)
    async def wait(*args: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        try:
            return await work(*args, **more)
        finally:
            trace.spans.append((name(*args), begin, time.perf_counter()))

    return wait if inspect.iscoroutinefunction(work) else call


def with_noted_work(submit: Callable[..., asyncio.Future[JobResult]]) -> Callable[..., asyncio.Future[JobResult]]:
    """Return *submit*, which notes the time that the native process reports, as if the answer came at once."""

    @functools.wraps(submit)
    def noting(self: NativePool, job: Job, queue: str) -> asyncio.Future[JobResult]:
        reply = submit(self, job, queue)
        reply.add_done_callback(note)
        return reply

    def note(reply: asyncio.Future[JobResult]) -> None:
        if reply.cancelled():
            return
        result, end = reply.result(), time.perf_counter()
        begin = end - result.seconds
        assigned = begin + result.ipam_seconds
        trace.spans += [("ipam", begin, assigned), ("plugin", assigned, end)]

    return noting


_LONG = 0.001


def watch_steps() -> None:
    """Note which steps of the event loop take long."""
    run = loop_events.Handle._run
    schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def timed(self: loop_events.Handle) -> None:
        delay, begin = _delay(schedule), time.perf_counter()
        run(self)
        held_up = time.perf_counter() - begin - (_delay(schedule) - delay)
        if held_up > _LONG:
            trace.steps.append((begin, held_up))

    loop_events.Handle._run = timed  # type: ignore[method-assign]


def _delay(schedule: int) -> float:
    return int(os.pread(schedule, 64, 0).split()[1]) / 1e9


def with_traced_appends(ledger: Ledger) -> Ledger:
    """Return *ledger*, which notes its appends."""
    ledger.append = traced(ledger.append, lambda event, *_: f"ack {event.type}")  # type: ignore[method-assign]
    return ledger


def main() -> None:
    """Run the worker, and write the notes to disk when it stops."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    settings = load(options.config, WorkerSettings)
    logs.configure(settings.log_level, "worker")
    for owner, attribute, name in _PARTS:
        setattr(owner, attribute, traced(getattr(owner, attribute), lambda *_, name=name: name))
    NativePool.submit = with_noted_work(NativePool.submit)  # type: ignore[method-assign]
    watch_steps()
    asyncio.run(worker.run(settings, wrap=with_traced_appends))
    options.config.with_suffix(".trace").write_bytes(msgspec.json.encode(trace))


if __name__ == "__main__":
    main()
