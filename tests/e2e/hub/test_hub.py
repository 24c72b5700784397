"""A node whose ledger goes up to a hub: it attaches whether the hub is there or not, and the hub gets everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from events import subjects
from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.nats.server import free_port
from events.schema import (
    DriftRepaired,
    Event,
    NodeCompared,
    NodeName,
    RepairRequested,
    StatusPublished,
    WorkerStopped,
)
from tests.e2e.hub.test_commands import comparison
from tests.support.nats.hub_servers import HubServers, connect_hub
from tests.support.node.kernel import ip
from tests.support.node.node import ADD_EVENTS, DEL_EVENTS, MakeNode, Node, carried
from tests.support.run.fork_server import RECONCILER, plumbline
from tests.support.waiting import eventually

T = TypeVar("T")


class Cluster:
    """*node* without worker, and a hub of one server that runs. *hub* is what processes know of it beside its URL."""

    def __init__(self, node: Node, servers: HubServers, hub: dict[str, Any] | None = None) -> None:
        self.node = node
        self.servers = servers
        self.metrics = f"http://127.0.0.1:{free_port()}/metrics"
        settings = json.loads(node.config.read_text())
        settings["hub"] = {"url": servers.url, **(hub or {})}
        settings["worker"]["metrics"] = {"port": int(self.metrics.split(":")[2].split("/")[0])}
        settings["worker"]["statusWait"] = 20
        settings["ledger"] = {"url": node.server.url, "tokenFile": str(node.config.with_name("token"))}
        node.config.with_name("token").write_text(node.server.token)
        node.config.write_text(json.dumps(settings))

    def with_hub(self, work: Callable[[JetStreamLedger], Awaitable[T]]) -> T:
        """Return what *work* returns, given the hub's ledger, whose streams are made where they are not there."""

        async def run() -> T:
            ledger = await connect_hub(self.servers)
            await ensure_commands(ledger)
            try:
                return await work(ledger)
            finally:
                await ledger.close()

        return asyncio.run(run())

    def at_hub(self) -> list[Event]:
        """Return the node's events that the hub has."""

        async def read(ledger: JetStreamLedger) -> list[Event]:
            return [stored.event async for stored in ledger.read(subjects.pattern(self.node.name))]

        return self.with_hub(read)

    def at_node(self) -> list[Event]:
        return [stored.event for stored in self.node.events()]

    def assert_same(self) -> list[Event]:
        """Return the node's events once the hub has exactly these."""
        eventually(lambda: len(self.at_hub()) >= len(self.at_node()), "the hub has everything", 40.0)
        found = self.at_hub()
        assert found == self.at_node()[: len(found)]
        return found

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.metrics, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    @contextlib.contextmanager
    def reconciler(self, config: Path | None = None) -> Iterator[None]:
        """Run the reconciler meanwhile, with the worker's configuration or another one."""
        with self.node.log.open("ab") as said:
            program = ("-m", "reconciler", "--config", str(config or self.node.config))
            process = RECONCILER.start(*program, stdout=said, stderr=said)
        try:
            yield
        finally:
            process.terminate()
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()


@pytest.fixture
def cluster(make_node: MakeNode) -> Iterator[Cluster]:
    node = make_node()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers = HubServers(Path(folder))
        servers.start()
        try:
            yield Cluster(node, servers)
        finally:
            node.settle()
            node.terminate()
            assert node.ended() == 0
            servers.kill()


def types(events: list[Event], *wanted: str) -> list[str]:
    return [event.type for event in events if event.type in wanted]


def test_hub_gets_events_of_its_absence_later(cluster: Cluster) -> None:
    node = cluster.node
    cluster.servers.kill()
    node.start()
    pods = [node.samplepod(f"pod-{number}") for number in range(3)]
    for pod in pods:
        assert pod.add().exit_code == 0
        assert pod.delete().exit_code == 0
    assert cluster.metric("plumbline_uplink_connected") == 0
    assert cluster.metric("plumbline_uplink_lag_seconds") > 0
    cluster.servers.start()
    events = cluster.assert_same()
    for pod in pods:
        recorded = tuple(event.type for event in events if event.sandbox == pod.container_id)
        assert recorded == carried((*ADD_EVENTS, *DEL_EVENTS))
    eventually(lambda: cluster.metric("plumbline_uplink_connected") == 1, "the worker says that it is connected")
    eventually(lambda: cluster.metric("plumbline_uplink_lag_events") == 0, "the worker says that nothing is missing")
    assert cluster.metric("plumbline_uplink_lag_seconds") == 0


def test_hub_cut_off_under_load_gets_every_event_once_in_order(cluster: Cluster) -> None:
    node = cluster.node
    cluster.at_hub()
    node.start()
    pods = [node.samplepod(f"pod-{number}") for number in range(12)]
    for index in range(0, len(pods), 4):
        calls = [pod.call("ADD") for pod in pods[index : index + 4]]
        cluster.servers.kill()
        answers = [call.answer() for call in calls]
        assert [answer.exit_code for answer in answers] == [0] * len(calls), answers
        cluster.servers.start()
    node.kill()
    node.start()
    for pod in pods:
        assert pod.delete().exit_code == 0
    events = cluster.assert_same()
    for pod in pods:
        recorded = tuple(event.type for event in events if event.sandbox == pod.container_id)
        assert recorded == carried((*ADD_EVENTS, *DEL_EVENTS))


def test_hub_restored_from_a_backup_gets_events_again(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.node
    cluster.at_hub()
    node.start()
    pod, later = node.samplepod(), node.samplepod("later")
    assert pod.add().exit_code == 0
    cluster.assert_same()
    cluster.servers.kill()
    cluster.servers.back_up(tmp_path / "backup")
    cluster.servers.start()
    assert later.add().exit_code == 0
    assert pod.delete().exit_code == 0
    cluster.assert_same()
    cluster.servers.kill()
    cluster.servers.restore(tmp_path / "backup")
    cluster.servers.start()
    assert types(cluster.assert_same(), "AttachCompleted", "DetachCompleted") == [
        "AttachCompleted",
        "AttachCompleted",
        "DetachCompleted",
    ]
    assert "hub_lost_history" in node.log.read_text()


def test_commands_beside_the_reconciler_read_the_hub(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.node
    node.start()
    pod = node.samplepod()
    with cluster.reconciler():
        assert pod.add().exit_code == 0
        cluster.assert_same()
        settings = json.loads(node.config.read_text())
        del settings["ledger"]  # it is the nodes', and not within the reconciler's reach
        config = tmp_path / "reconciler.json"
        config.write_text(json.dumps({**settings, "runDir": str(tmp_path)}))
        rebuilt = plumbline(config, "rebuild")
        assert rebuilt.returncode == 0, rebuilt.stderr
        last = cluster.with_hub(lambda ledger: ledger.last_sequence())
        assert 0 < int(rebuilt.stdout.split()[-1]) <= last
        done = plumbline(config, "timeline", "samplepod")
        assert done.returncode == 0, done.stderr
        assert "AttachCompleted" in plumbline(config, "timeline", "samplepod", "--json").stdout
        verified = plumbline(config, "verify")
        assert verified.returncode == 0, verified.stdout
    assert pod.delete().exit_code == 0


def test_command_arrives_from_the_hub_and_its_outcome_returns(cluster: Cluster) -> None:
    node = cluster.node
    cluster.at_hub()
    sent = comparison(node, 1)

    async def send(ledger: JetStreamLedger) -> None:
        await (await ensure_commands(ledger)).send(sent)

    cluster.with_hub(send)
    node.start()

    def outcome() -> bool:
        found = [event.data for event in cluster.at_hub() if isinstance(event.data, NodeCompared)]
        return [data.request for data in found if data.request] == [sent.id]

    eventually(outcome, "the hub has the outcome")


_HEARD = 2.5
"""Seconds in which a worker has certainly heard that there is a reconciler, which says so every second."""


def test_answer_waits_for_the_status_published_at_the_hub(cluster: Cluster) -> None:
    node = cluster.node
    with cluster.reconciler():
        node.start()

        def published() -> bool:
            """Try whether what the node does reaches the reconciler."""
            probe = node.samplepod(f"probe-{len(node.sandboxes)}")
            assert probe.add().exit_code == 0
            said = any(isinstance(event.data, StatusPublished) for event in statuses(cluster, probe.container_id))
            assert probe.delete().exit_code == 0
            return said

        eventually(published, "an attach is published", 40.0)
        time.sleep(_HEARD)
        pod = node.samplepod()
        assert pod.add().exit_code == 0
        assert [event.type for event in statuses(cluster, pod.container_id)] == ["StatusPublished"]
        assert not [event for event in cluster.at_node() if event.type == "StatusPublished"]


def statuses(cluster: Cluster, container_id: str) -> list[Event]:
    async def read(ledger: JetStreamLedger) -> list[Event]:
        return [stored.event async for stored in ledger.read(subjects.pattern("", container_id))]

    return cluster.with_hub(read)


def test_last_event_of_a_stopped_worker_reaches_the_hub(cluster: Cluster) -> None:
    cluster.at_hub()
    cluster.node.start()
    cluster.assert_same()
    cluster.node.terminate()
    assert cluster.node.ended() == 0
    assert isinstance(cluster.at_hub()[-1].data, WorkerStopped)
    cluster.node.start()


def test_drift_is_repaired_through_the_hub(cluster: Cluster) -> None:
    node = cluster.node
    cluster.at_hub()
    node.start()
    with cluster.reconciler():
        pod = node.samplepod()
        assert pod.add().exit_code == 0
        before = pod.links()
        ip("-n", pod.namespace, "link", "del", "net1")
        ip("-n", pod.namespace, "addr", "flush", "dev", "eth0")
        wanted = ["DriftObserved", "DriftRepaired"]

        def repair_events() -> list[str]:
            return types([event for event in cluster.at_hub() if event.sandbox == pod.container_id], *wanted)

        eventually(lambda: repair_events()[-1:] == ["DriftRepaired"], "the hub has the repair", 40.0)
        eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")
        assert pod.links() == before
        assert repair_events()[0] == "DriftObserved"
        repaired = {event.data.request for event in cluster.at_hub() if isinstance(event.data, DriftRepaired)}
        assert repaired <= {event.id for event in commands(cluster) if isinstance(event.data, RepairRequested)}


def test_drift_without_a_hub_is_repaired_once_it_returns(cluster: Cluster) -> None:
    node = cluster.node
    cluster.at_hub()
    node.start()
    with cluster.reconciler():
        pod = node.samplepod()
        assert pod.add().exit_code == 0
        cluster.assert_same()
        before = pod.links()
        cluster.servers.kill()
        ip("-n", pod.namespace, "link", "del", "net1")
        eventually(lambda: "DriftObserved" in node.event_types(pod), "the node sees it")
        assert set(pod.links()) == {"eth0"}
        cluster.servers.start()
        eventually(lambda: "DriftRepaired" in node.event_types(pod), "it is repaired", 60.0)
        eventually(lambda: not node.state().sandboxes[pod.key].drifts, "the ledger knows")
        assert pod.links() == before


def commands(cluster: Cluster) -> list[Event]:
    """Return what the hub has asked of the node."""

    async def read(ledger: JetStreamLedger) -> list[Event]:
        found: list[Event] = []

        async def receive() -> None:
            async for stored in (await ensure_commands(ledger)).receive(NodeName(cluster.node.name)):
                found.append(stored.event)  # noqa: PERF401  # it has no end

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(receive(), 1.0)
        return found

    return cluster.with_hub(read)
