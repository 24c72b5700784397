"""Plans that are begun before the ledger has their request."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from events.schema import AttachRequested, ContainerId, ErrorClass, IfName, Pod, RequestId
from nodeworker.delegates.exec import PluginExecutor
from nodeworker.errors import RequestFailedError
from nodeworker.planner import Planner
from nodeworker.readiness import Readiness
from nodeworker.resolve.objects import Nad, PodObject
from nodeworker.settings import WorkerSection

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

BOX = ContainerId("box")
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
async def planner(cluster: Cluster) -> Planner:
    section = WorkerSection(native=("loopback",))
    return Planner(cluster, PluginExecutor(marker="test"), section, Readiness(seats=1), [])


def request(netns: str, name: str = "pod") -> AttachRequested:
    return AttachRequested(
        request=RequestId("request"),
        ifname=IfName("eth0"),
        netns=netns,
        config=json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "plumbline", "delegates": [LOOPBACK]}),
        path="/usr/lib/cni",
        pod=Pod("default", name),
    )


async def test_what_was_begun_is_not_looked_up_again(netns: str, planner: Planner, cluster: Cluster) -> None:
    asked = request(netns)
    planner.begin(asked, BOX, 5.0)
    await asyncio.sleep(0)
    cluster.may_answer.set()
    begun = await planner.plan(asked, BOX, 5.0)
    assert cluster.asked == 1
    assert await planner.plan(asked, BOX, 5.0) == begun
    assert cluster.asked == 2


async def test_what_goes_wrong_early_is_told_to_who_asks(netns: str, planner: Planner, cluster: Cluster) -> None:
    cluster.may_answer.set()
    asked = request(netns, "absent")
    planner.begin(asked, BOX, 5.0)
    await asyncio.sleep(0.01)
    with pytest.raises(RequestFailedError) as raised:
        await planner.plan(asked, BOX, 5.0)
    assert raised.value.failure.error_class is ErrorClass.POD_NOT_FOUND


async def test_what_nobody_asks_for_is_given_up_in_silence(
    netns: str, planner: Planner, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    planner.begin(request(netns), BOX, 5.0)
    await asyncio.sleep(0.01)
    planner.forget(RequestId("request"))
    await asyncio.sleep(0.01)
    assert cluster.given_up == 1
    cluster.may_answer.set()
    planner.begin(request(netns, "absent"), BOX, 5.0)
    await asyncio.sleep(0.01)
    planner.forget(RequestId("request"))
    planner.forget(RequestId("request"))
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text


async def test_who_stops_waiting_stops_the_look_up(netns: str, planner: Planner, cluster: Cluster) -> None:
    asked = request(netns)
    planner.begin(asked, BOX, 5.0)
    waiting = asyncio.create_task(planner.plan(asked, BOX, 5.0))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert cluster.given_up == 1
