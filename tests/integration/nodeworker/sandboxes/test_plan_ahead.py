"""Plans that are started before the ledger has their request."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from events.fold import SandboxKey
from events.ledger.memory import MemoryLedger
from events.schema import AttachRequested, ErrorClass, Event, Pod, RequestId, WorkerStarted
from nodeworker.deadline import Deadline
from nodeworker.errors import RequestFailedError
from nodeworker.journal.journal import Journal
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.planning.resolve.objects import Nad, PodObject
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.sandboxes.plan_ahead import PlanAhead
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.settings import WorkerSection
from tests.support.worker.worker_harness import BOX, ETH0, NODE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

KEY = SandboxKey(BOX, ETH0)
LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}


class Cluster:
    """Knows every pod, once it may say so."""

    claims = None

    def __init__(self) -> None:
        self.asked = 0
        self.given_up = 0
        self.may_answer = asyncio.Event()

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        self.asked += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return PodObject(namespace, name, uid) if name != "absent" else None

    async def nad(self, namespace: str, name: str) -> Nad | None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def ready(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"plumbline-test-{os.urandom(4).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
async def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    journal = Journal(MemoryLedger(), NODE)
    await journal.open_epoch(WorkerStarted(version="1", pid=1))
    yield journal
    await journal.close()


@pytest.fixture
async def plans(journal: Journal, cluster: Cluster) -> AsyncIterator[PlanAhead]:
    defaults = WorkerSection().network
    executor, native = PluginExecutor(marker="test"), ("loopback",)
    planner = Planner(cluster, [], executor, Readiness(seats=1), node_defaults=defaults, native=native, info_folder="/")
    async with asyncio.TaskGroup() as tasks:
        yield PlanAhead(journal, Scheduler(tasks, 2), planner)


def request(netns: str, name: str = "pod") -> AttachRequested:
    return AttachRequested(
        request=RequestId("request"),
        ifname=ETH0,
        netns=netns,
        config=json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "plumbline", "delegates": [LOOPBACK]}),
        path="/usr/lib/cni",
        pod=Pod("default", name),
    )


async def consumed(journal: Journal, intent: Event) -> None:
    """Append and consume *intent*, as the worker does."""
    await journal.append_intent(intent)
    async for _ in journal.intents():
        return


async def test_an_early_plan_is_made_once_and_recorded_behind_its_request(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster
) -> None:
    asked = request(netns)
    intent = journal.event(asked, BOX)
    with plans.ahead(intent, asked, 5.0):
        cluster.may_answer.set()
        await consumed(journal, intent)
        await plans.ensure_recorded(intent, asked, Deadline(5.0), 5.0)
    assert cluster.asked == 1
    plan = journal.state.sandboxes[KEY].plan
    assert plan is not None
    assert [each.ifname for each in plan.attachments] == [ETH0]
    assert not journal.state.anomalies


async def test_an_attach_without_early_plan_is_planned_when_it_starts(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster
) -> None:
    asked = request(netns)
    intent = journal.event(asked, BOX)
    cluster.may_answer.set()
    await consumed(journal, intent)
    assert journal.state.sandboxes[KEY].plan is None
    await plans.ensure_recorded(intent, asked, Deadline(5.0), 5.0)
    assert journal.state.sandboxes[KEY].plan is not None


async def test_a_known_container_is_not_planned_early(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster
) -> None:
    asked = request(netns)
    first, second, third = (journal.event(asked, BOX) for _ in range(3))
    coming = asyncio.create_task(journal.append_intent(first))
    await asyncio.sleep(0)
    with plans.ahead(second, asked, 5.0):  # while another request of it is on its way
        await coming
        async for _ in journal.intents():
            break
        with plans.ahead(third, asked, 5.0):
            await asyncio.sleep(0.01)
    assert cluster.asked == 0


async def test_an_error_of_an_early_plan_is_raised_to_the_attach(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster
) -> None:
    cluster.may_answer.set()
    asked = request(netns, "absent")
    intent = journal.event(asked, BOX)
    with plans.ahead(intent, asked, 5.0):
        await asyncio.sleep(0.01)
        with pytest.raises(RequestFailedError) as raised:
            await plans.ensure_recorded(intent, asked, Deadline(5.0), 5.0)
    assert raised.value.failure.error_class is ErrorClass.POD_NOT_FOUND


async def test_an_early_plan_without_attach_is_cancelled_silently(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    asked, absent = request(netns), request(netns, "absent")
    first, second = journal.event(asked, BOX), journal.event(absent, BOX)
    with plans.ahead(first, asked, 5.0):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    assert cluster.given_up == 1
    cluster.may_answer.set()
    with plans.ahead(second, absent, 5.0):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text


async def test_a_cancelled_attach_cancels_its_planning(
    netns: str, journal: Journal, plans: PlanAhead, cluster: Cluster
) -> None:
    asked = request(netns)
    intent = journal.event(asked, BOX)
    with plans.ahead(intent, asked, 5.0):
        waiting = asyncio.create_task(plans.ensure_recorded(intent, asked, Deadline(5.0), 5.0))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert cluster.given_up == 1
