"""Scheduler and dispatcher: one request of a container at a time, containers in parallel, a bound over all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
from msgspec.structs import replace

from events.ledger.memory import MemoryLedger
from events.schema import (
    INTENTS,
    ContainerId,
    Data,
    ErrorClass,
    Event,
    EventId,
    GcRequested,
    Leak,
    LeakId,
    LeakKind,
    NodeName,
    Phase,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
    decode,
)
from nodeworker.deadline import Deadline, deadline_in
from nodeworker.metrics import WorkerMetrics
from nodeworker.sandboxes.answers import OK, Answers, Reply, error_reply
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.commands import CommandHandler
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.sandboxes.status_wait import StatusWait
from tests.support.repository import REPOSITORY
from tests.support.waiting import BOUND, until
from tests.support.worker.worker_harness import BOX, ETH0, NODE, attach, detach


class Work:
    """Stands for attacher, detacher, GC and commands: notes what runs, and blocks each request until ``go``."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: set[str] = set()
        self.deadlines: dict[str, Deadline] = {}
        self.released: dict[str, asyncio.Event] = {}

    async def attach(self, event: Event, data: object, deadline: Deadline, *, resumed: bool) -> Reply:
        self.deadlines[event.id] = deadline
        try:
            async with deadline:
                return await self.collect(event, data)
        except TimeoutError:
            return error_reply(deadline.failure, "")

    async def detach(self, event: Event, data: object) -> Reply:
        return await self.collect(event, data)

    async def fulfil(self, event: Event, order: object) -> Reply:
        return await self.collect(event, order)

    async def collect(self, event: Event, data: object) -> Reply:
        self.started.append(event.id)
        self.running.add(event.id)
        try:
            await self.released.setdefault(event.id, asyncio.Event()).wait()
        finally:
            self.running.remove(event.id)
        if event.id.startswith("bad"):
            raise RuntimeError("an unexpected error")
        return OK

    def go(self, *names: str) -> None:
        for name in names:
            self.released.setdefault(name, asyncio.Event()).set()


def stored(name: str, data: Data, sandbox: str = BOX) -> Stored:
    return Stored(
        1,
        Event(
            id=EventId(name),
            at="2026-01-01T00:00:00Z",
            node=NODE,
            boot_id="",
            epoch=1,
            sandbox=ContainerId(sandbox),
            cause=EventId(""),
            trace="",
            data=data,
        ),
    )


def adding(name: str, sandbox: str = BOX, seconds: float = 60.0) -> Stored:
    return stored(name, attach(name, deadline_in(seconds)), sandbox)


def deleting(name: str, sandbox: str = BOX) -> Stored:
    return stored(name, detach(name), sandbox)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@asynccontextmanager
async def dispatching(
    work: Work, answers: Answers, concurrency: int = 10, statuses: StatusWait | None = None
) -> AsyncIterator[tuple[Scheduler, Dispatcher]]:
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        scheduler = Scheduler(tasks, concurrency)
        yield (
            scheduler,
            Dispatcher(
                scheduler,
                cast("Attacher", work),
                cast("Detacher", work),
                cast("GarbageCollector", work),
                cast("CommandHandler", work),
                answers,
                statuses or StatusWait(MemoryLedger(), NodeName("node-1"), 0.0, WorkerMetrics()),
                tasks,
            ),
        )


async def test_requests_of_one_container_run_one_after_another(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (scheduler, dispatcher):
        for name in ("d1", "d2", "d3"):
            dispatcher.dispatch(deleting(name))
        for number, name in enumerate(("d1", "d2", "d3"), 1):
            await until(lambda number=number: len(work.started) == number)
            assert work.running == {name}
            assert scheduler.queue_depth == 3 - number
            work.go(name)
            assert await answers.wait(RequestId(name)) == OK
    assert work.started == ["d1", "d2", "d3"]
    assert (scheduler.queue_depth, scheduler.in_progress) == (0, 0)


async def test_containers_run_in_parallel(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        for name in ("d1", "d2", "d3"):
            dispatcher.dispatch(deleting(name, sandbox=name))
        await until(lambda: work.running == {"d1", "d2", "d3"})
        work.go("d1", "d2", "d3")


async def test_concurrency_is_bounded(work: Work, answers: Answers) -> None:
    names = [f"d{number}" for number in range(20)]
    async with dispatching(work, answers, concurrency=3) as (scheduler, dispatcher):
        for name in names:
            dispatcher.dispatch(deleting(name, sandbox=name))
        for done in range(18):
            await until(lambda done=done: len(work.started) == done + 3)
            assert len(work.running) == scheduler.in_progress == 3
            assert scheduler.queue_depth == 17 - done
            work.go(work.started[done])
        work.go(*names)
    assert work.started == names


async def test_an_intent_in_progress_is_not_started_again(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (scheduler, dispatcher):
        dispatcher.dispatch(deleting("d1"))
        dispatcher.dispatch(deleting("d1"), resumed=True)
        assert scheduler.has(EventId("d1"))
        work.go("d1")
        await answers.wait(RequestId("d1"))
        assert not scheduler.has(EventId("d1"))
    assert work.started == ["d1"]


async def test_an_error_in_one_request_stops_no_other(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(deleting("bad"))
        dispatcher.dispatch(deleting("d2"))
        work.go("bad", "d2")
        reply = await answers.wait(RequestId("bad"))
        assert reply.failure is not None
        assert (reply.failure.error_class, reply.failure.phase) == (ErrorClass.INTERNAL, Phase.DEL)
        assert await answers.wait(RequestId("d2")) == OK


async def test_a_del_ends_the_add_of_its_container_only(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(adding("a1"))
        dispatcher.dispatch(adding("a2", sandbox="other"))
        await until(lambda: work.running == {"a1", "a2"})
        dispatcher.dispatch(deleting("d1"))
        reply = await answers.wait(RequestId("a1"))
        assert reply.failure is not None
        assert reply.failure.error_class is ErrorClass.OVERTAKEN
        await until(lambda: work.running == {"a2", "d1"})
        work.go("a2", "d1")
    assert await answers.wait(RequestId("a2")) == OK


async def test_a_del_ends_an_add_that_is_still_queued(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(deleting("d1"))
        dispatcher.dispatch(adding("a1"))
        dispatcher.dispatch(deleting("d2"))
        await until(lambda: work.running == {"d1"})
        work.go("d1", "d2")
        reply = await answers.wait(RequestId("a1"))
        assert reply.failure is not None
        assert reply.failure.error_class is ErrorClass.OVERTAKEN


async def test_an_abandoned_add_ends_and_an_abandoned_del_continues(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(adding("a1"))
        dispatcher.dispatch(deleting("d1", sandbox="other"))
        await until(lambda: work.running == {"a1", "d1"})
        for name in ("a1", "d1", "unknown"):
            dispatcher.abandon(RequestId(name))
        reply = await answers.wait(RequestId("a1"))
        assert reply.failure is not None
        assert reply.failure.error_class is ErrorClass.ABANDONED
        assert work.running == {"d1"}
        work.go("d1")


@pytest.mark.parametrize("case", ["answered", "too late"])
async def test_an_add_that_was_answered_or_is_late_has_no_time_left(work: Work, answers: Answers, case: str) -> None:
    if case == "answered":  # with an error, while the ledger did not confirm the intent
        answers.give(RequestId("a1"), OK)
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(adding("a1", seconds=60 if case == "answered" else -1))
        await until(lambda: "a1" in work.deadlines)
        assert not work.deadlines["a1"].left
        work.go("a1")


async def test_a_turn_runs_between_the_requests(work: Work, answers: Answers) -> None:
    asked: list[str] = []

    async def question() -> Reply:
        asked.extend(work.started)
        return OK

    async with dispatching(work, answers) as (scheduler, dispatcher):
        dispatcher.dispatch(deleting("d1"))
        await until(lambda: work.running == {"d1"})
        turn = asyncio.create_task(scheduler.take_turn(BOX, question))
        await until(lambda: scheduler.queue_depth == 1)
        dispatcher.dispatch(deleting("d2"))
        work.go("d1", "d2")
        assert await turn == OK
    assert asked == ["d1"]


async def test_an_error_in_a_turn_is_raised_to_its_caller(work: Work, answers: Answers) -> None:
    async def question() -> Reply:
        raise LookupError("what?")

    async with dispatching(work, answers) as (scheduler, dispatcher):
        with pytest.raises(LookupError):
            await scheduler.take_turn(BOX, question)
        dispatcher.dispatch(deleting("d1"))
        work.go("d1")
        assert await answers.wait(RequestId("d1")) == OK


async def test_gc_has_its_own_queue(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(stored("g1", GcRequested(request=RequestId("g1"), config="{}"), ""))
        dispatcher.dispatch(deleting("d1"))
        await until(lambda: work.running == {"g1", "d1"})
        work.go("g1", "d1")


async def test_requests_that_exceed_the_grace_stay_for_the_next_worker(work: Work, answers: Answers) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(deleting("d1"))
        dispatcher.dispatch(deleting("d2", sandbox="other"))
        await until(lambda: work.running == {"d1", "d2"})
        work.go("d1")
        await dispatcher.finish(0.05)
    assert answers.given(RequestId("d1"))
    assert not answers.given(RequestId("d2"))


@pytest.mark.parametrize("name", sorted(INTENTS))
async def test_an_intent_of_every_type_is_started(work: Work, answers: Answers, name: str) -> None:
    """The golden files of the schema have an event of every type."""
    intent = decode((REPOSITORY / f"tests/unit/events/golden/{name}.v1.json").read_bytes())
    async with dispatching(work, answers) as (_, dispatcher):
        dispatcher.dispatch(Stored(1, intent))
        await until(lambda: work.started == [intent.id])
        work.go(intent.id)


async def test_a_repair_is_queued_and_a_reclaim_has_its_own_queue(work: Work, answers: Answers) -> None:
    leak = Leak(id=LeakId("sandbox/box/eth0"), kind=LeakKind.SANDBOX_GONE, what="box")
    async with dispatching(work, answers, concurrency=1) as (scheduler, dispatcher):
        dispatcher.dispatch(deleting("d1"))
        dispatcher.dispatch(stored("repair", RepairRequested(request=RequestId("repair"), ifname=ETH0, drifts=())))
        dispatcher.dispatch(stored("reclaim", ReclaimRequested(request=RequestId("reclaim"), leak=leak)))
        await until(lambda: work.running == {"d1", "reclaim"})
        work.go("d1")
        await until(lambda: work.running == {"repair", "reclaim"})
        work.go("repair", "reclaim")
        await asyncio.gather(*(answers.wait(RequestId(name)) for name in ("d1", "repair", "reclaim")))
    assert (scheduler.queue_depth, scheduler.in_progress) == (0, 0)


async def test_lines_of_concurrent_requests_name_their_own_pod_and_sandbox(
    work: Work, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    async with dispatching(work, answers) as (_, dispatcher):
        for number in range(3):
            data = replace(attach(f"bad-{number}", deadline_in(60.0)), pod=Pod("shop", f"web-{number}"))
            dispatcher.dispatch(stored(f"bad-{number}", data, f"box-{number}"))
        await until(lambda: len(work.running) == 3)
        work.go("bad-2", "bad-0", "bad-1")
        for number in range(3):
            assert (await answers.wait(RequestId(f"bad-{number}"))).failure is not None
    lines = [line for line in capsys.readouterr().out.splitlines() if "request_broke" in line]
    named = {tuple(re.findall(r"(?:pod|sandbox)=(\S+)", line)) for line in lines}
    assert named == {(f"shop/web-{number}", f"box-{number}") for number in range(3)}
