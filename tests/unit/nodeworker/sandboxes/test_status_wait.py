"""The wait for the status: it ends with the status or a timeout, or does not start; it takes no slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from events import subjects
from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.ledger import notices
from events.ledger.memory import MemoryLedger
from events.ledger.notices import PUBLISHER_PRESENT
from events.schema import (
    NO_NODE,
    ContainerId,
    Data,
    Event,
    EventId,
    Pod,
    RequestId,
    StatusPublished,
    StatusPublishFailed,
    encode,
    new_event_id,
)
from nodeworker.metrics import WorkerMetrics
from nodeworker.sandboxes import status_wait
from nodeworker.sandboxes.answers import OK, Answers, Reply, error_reply
from nodeworker.sandboxes.status_wait import StatusWait
from tests.support.waiting import BOUND, until
from tests.support.worker.worker_harness import BOX, ETH0, FAILURE, NODE, PLANNED
from tests.unit.nodeworker.sandboxes.test_dispatcher import Work, adding, deleting, dispatching

POD = Pod("shop", "web", "u")
PUBLISHED = StatusPublished(node=NODE, ifname=ETH0, pod=POD, text="[]")
FAILED = StatusPublishFailed(node=NODE, ifname=ETH0, pod=POD, failure=FAILURE)
FOREVER = 3600.0


class Stage:
    """A wait that listens on a ledger in memory, and a scripted reconciler."""

    def __init__(self, seconds: float) -> None:
        self.ledger = MemoryLedger()
        self.metrics = WorkerMetrics()
        self.statuses = StatusWait(self.ledger, NODE, seconds, self.metrics)

    async def be_present(self) -> None:
        """Send the presence until it is received."""
        async with asyncio.timeout(BOUND):
            while not self._would_wait():
                await self.ledger.publish(PUBLISHER_PRESENT)
                await asyncio.sleep(0)

    def _would_wait(self) -> bool:
        probe = EventId("probe")
        self.statuses.expect(sandbox("probe"))
        found = self.statuses.expects(probe)
        self.statuses.forget(probe)
        return found

    async def say(self, data: Data, cause: str) -> None:
        event = Event(
            id=new_event_id(1, cause.encode().ljust(10)),
            at="2026-01-01T00:00:00Z",
            node=NO_NODE,
            boot_id="",
            epoch=0,
            sandbox=BOX,
            cause=EventId(cause),
            trace="",
            data=data,
        )
        await self.ledger.publish(subjects.down(NODE, event.type), encode(event))

    def waited(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("plumbline_status_wait_seconds_count", {"result": result})


def sandbox(intent: str, *, publish: bool = True) -> Sandbox:
    return Sandbox(
        key=SandboxKey(BOX, ETH0),
        node=NODE,
        phase=SandboxPhase.PLANNED,
        intent=EventId(intent),
        plan=replace(PLANNED, publish=publish),
    )


@pytest.fixture
def seconds() -> float:
    return FOREVER


@pytest.fixture
async def stage(seconds: float) -> AsyncIterator[Stage]:
    stage = Stage(seconds)
    listening = asyncio.create_task(stage.statuses.run())
    yield stage
    listening.cancel()
    await asyncio.wait({listening})


@pytest.mark.parametrize(("data", "result"), [(PUBLISHED, "published"), (FAILED, "failed")])
async def test_the_wait_ends_when_its_status_is_published(stage: Stage, data: Data, result: str) -> None:
    await stage.be_present()
    stage.statuses.expect(sandbox("a1"))
    waiting = asyncio.create_task(stage.statuses.wait(EventId("a1"), FOREVER))
    await stage.say(data, "another")
    await stage.ledger.publish(subjects.down(NODE, "StatusPublished"), b"no event")
    await until(lambda: not waiting.done())
    await stage.say(data, "a1")
    async with asyncio.timeout(BOUND):
        await waiting
    assert stage.waited(result) == 1
    assert not stage.statuses.expects(EventId("a1"))


async def test_a_status_that_comes_before_the_wait_is_not_lost(stage: Stage) -> None:
    await stage.be_present()
    stage.statuses.expect(sandbox("a1"))
    await stage.say(PUBLISHED, "a1")
    async with asyncio.timeout(BOUND):
        await stage.statuses.wait(EventId("a1"), FOREVER)
    assert stage.waited("published") == 1


@pytest.mark.parametrize(("seconds", "deadline"), [(0.05, FOREVER), (FOREVER, 0.15)])
async def test_the_wait_ends_at_its_timeout_and_at_the_runtimes_deadline(stage: Stage, deadline: float) -> None:
    await stage.be_present()
    stage.statuses.expect(sandbox("a1"))
    async with asyncio.timeout(BOUND):
        await stage.statuses.wait(EventId("a1"), deadline)
    assert stage.waited("timeout") == 1


async def test_a_status_that_is_not_published_is_not_expected(stage: Stage) -> None:
    await stage.be_present()
    stage.statuses.expect(sandbox("a1", publish=False))
    stage.statuses.expect(replace(sandbox("a2"), plan=None))
    assert not stage.statuses.expects(EventId("a1"))
    assert not stage.statuses.expects(EventId("a2"))


async def test_no_status_is_expected_before_the_reconciler_is_present(stage: Stage) -> None:
    stage.statuses.expect(sandbox("a1"))
    assert not stage.statuses.expects(EventId("a1"))


async def test_no_status_is_expected_once_the_reconciler_is_down(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.be_present()
    monkeypatch.setattr(status_wait, "PRESENCE_LOST", 0.0)
    stage.statuses.expect(sandbox("a1"))
    assert not stage.statuses.expects(EventId("a1"))
    assert notices.PRESENCE_LOST > 2 * notices.PRESENCE_INTERVAL


async def test_with_zero_seconds_the_wait_does_not_listen() -> None:
    stage = Stage(0.0)
    async with asyncio.timeout(BOUND):
        await stage.statuses.run()


# --- with the dispatcher ---------------------------------------------------------------------------------------------


class Attaching(Work):
    """Expects the status, as the attacher does."""

    def __init__(self, statuses: StatusWait, *, fails: bool = False) -> None:
        super().__init__()
        self._statuses = statuses
        self._fails = fails

    async def attach(self, event: Event, data: object, deadline: object, *, resumed: bool) -> Reply:
        self.started.append(event.id)
        self._statuses.expect(sandbox(event.id))
        return error_reply(FAILURE, "") if self._fails else OK


@pytest.fixture
def answers() -> Answers:
    return Answers()


async def test_an_answer_that_waits_takes_no_queue_and_no_slot(stage: Stage, answers: Answers) -> None:
    await stage.be_present()
    work = Attaching(stage.statuses)
    async with dispatching(work, answers, concurrency=1, statuses=stage.statuses) as (_, dispatcher):
        dispatcher.dispatch(adding("a1"))
        dispatcher.dispatch(deleting("d1"))
        dispatcher.dispatch(adding("a2", sandbox=ContainerId("other")))
        work.go("d1")
        await answers.wait(RequestId("d1"))
        await until(lambda: work.started == ["a1", "d1", "a2"] or work.started == ["a1", "a2", "d1"])
        assert not answers.given(RequestId("a1"))
        for name in ("a2", "a1"):
            await stage.say(PUBLISHED, name)
            assert await answers.wait(RequestId(name)) == OK


async def test_a_failure_is_answered_at_once(stage: Stage, answers: Answers) -> None:
    await stage.be_present()
    work = Attaching(stage.statuses, fails=True)
    async with dispatching(work, answers, statuses=stage.statuses) as (_, dispatcher):
        dispatcher.dispatch(adding("a1"))
        assert (await answers.wait(RequestId("a1"))).failure == FAILURE
        assert not stage.statuses.expects(EventId("a1"))


async def test_a_worker_that_stops_gives_the_waiting_answers(stage: Stage, answers: Answers) -> None:
    await stage.be_present()
    work = Attaching(stage.statuses)
    async with dispatching(work, answers, statuses=stage.statuses) as (scheduler, dispatcher):
        dispatcher.dispatch(adding("a1"))
        await until(lambda: work.started == ["a1"] and not scheduler.in_progress)
        await dispatcher.finish(FOREVER)
        assert await answers.wait(RequestId("a1")) == OK
