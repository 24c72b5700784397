"""The hub's users have the rights that worker and reconciler need, and a node writes only its own events."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from events import subjects
from events.ledger.election import FencedCommands, FencedLedger, elect
from events.ledger.ledger import LedgerUnavailableError
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.server import binary
from events.nats.streams import command_stream, hub_stream
from events.nats.uplink import Uplink
from events.process.settings import LedgerAddress
from events.schema import NO_NODE, ComparisonRequested, NodeName, RequestId
from tests.support.nats.hub_servers import HubServers
from tests.support.repository import REPOSITORY
from tests.support.stories.events import EventFactory
from tests.support.waiting import BOUND

DEPLOY = REPOSITORY / "deploy" / "kubernetes" / "with-hub"
NODE = NodeName("worker-1.example.net")
OTHER = NodeName("worker-2")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """The folder of the generated users of two nodes."""
    spec = importlib.util.spec_from_file_location("hub_users", DEPLOY / "users.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path / "users", [NODE, OTHER])
    return tmp_path / "users"


@pytest.fixture
def servers(users: Path) -> Iterator[HubServers]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers = HubServers(Path(folder))
        config = Path(folder) / "hub-0.conf"
        text = config.read_text().rstrip().removesuffix("}")
        config.write_text(f'{text}, authorization {{ include "{users.name}/users.conf" }} }}')
        (Path(folder) / users.name).symlink_to(users)
        servers.start()
        yield servers
        servers.kill()


class Desk:
    """Connects as different users."""

    def __init__(self, servers: HubServers, users: Path) -> None:
        self._servers = servers
        self._users = users
        self._open: list[JetStreamLedger] = []

    async def connect(self, user: str, *, ensure_stream: bool = False) -> JetStreamLedger:
        password = (self._users / "passwords" / user).read_text()
        ledger = await JetStreamLedger.connect(
            LedgerAddress(self._servers.url, password, user),
            config=hub_stream(1),
            ensure_stream=ensure_stream,
            patience=1.0,
        )
        self._open.append(ledger)
        return ledger

    async def close(self) -> None:
        for ledger in self._open:
            await ledger.close()


@pytest.fixture
async def desk(servers: HubServers, users: Path) -> AsyncIterator[Desk]:
    desk = Desk(servers, users)
    yield desk
    await desk.close()


async def test_users_have_the_rights_that_they_need(desk: Desk, jetstream: JetStreamLedger) -> None:
    reconciler = await desk.connect("reconciler", ensure_stream=True)
    commands = JetStreamCommands(reconciler)
    await commands.make(command_stream())
    mandate = await elect(reconciler, commands, "a")
    worker = await desk.connect(NODE)
    factory = EventFactory(NODE)
    for number in range(20):
        await jetstream.append(factory.note(str(number)))
    copying = asyncio.create_task(Uplink(jetstream, worker, NODE).run())
    pattern = subjects.pattern(NODE)
    async with asyncio.timeout(BOUND), aclosing(reconciler.follow((pattern,))) as followed:
        copied = [(await anext(followed)).event for _ in range(20)]
    assert copied == [stored.event async for stored in jetstream.read(pattern)]
    copying.cancel()

    command = EventFactory(NODE).event(ComparisonRequested(request=RequestId("x")))
    async with asyncio.timeout(BOUND), aclosing(JetStreamCommands(worker).receive(NODE)) as received:
        receiving = asyncio.ensure_future(anext(received))
        await FencedCommands(commands, mandate).send(command)
        assert (await receiving).event == command

    published = subjects.down(NODE, "StatusPublished")
    async with worker.subscribe("plumbline.presence.publisher", published) as heard, asyncio.timeout(BOUND):
        hearing = asyncio.ensure_future(anext(heard))
        while not hearing.done():
            await reconciler.publish(published)
            await asyncio.wait({hearing}, timeout=0.05)
    await FencedLedger(reconciler, mandate).append(EventFactory(NO_NODE).note())


@pytest.mark.parametrize("node", [OTHER, NO_NODE])
async def test_node_may_not_write_events_of_another_node(desk: Desk, node: NodeName) -> None:
    reconciler = await desk.connect("reconciler", ensure_stream=True)
    worker = await desk.connect(NODE)
    await worker.append(EventFactory(NODE).note())
    end = await reconciler.last_sequence()
    with pytest.raises(LedgerUnavailableError):
        await worker.append(EventFactory(node).note())
    assert await reconciler.last_sequence() == end


async def test_node_may_not_send_commands_or_change_a_stream(desk: Desk) -> None:
    reconciler = await desk.connect("reconciler", ensure_stream=True)
    await JetStreamCommands(reconciler).make(command_stream())
    worker = await desk.connect(NODE)
    with pytest.raises(LedgerUnavailableError):
        await JetStreamCommands(worker).send(EventFactory(NODE).event(ComparisonRequested(request=RequestId("x"))))
    for call in ("STREAM.PURGE.LEDGER", "STREAM.DELETE.LEDGER", "STREAM.UPDATE.LEDGER", "STREAM.MSG.DELETE.LEDGER"):
        with pytest.raises(LedgerUnavailableError):
            await worker.api(call, {})


async def test_reconciler_may_not_write_or_purge_a_nodes_events(desk: Desk) -> None:
    reconciler = await desk.connect("reconciler", ensure_stream=True)
    with pytest.raises(LedgerUnavailableError):
        await reconciler.append(EventFactory(NODE).note())
    with pytest.raises(LedgerUnavailableError):
        await reconciler.purge("plumbline.ev.>", 10)


async def test_node_does_not_receive_notices_for_another(desk: Desk) -> None:
    reconciler = await desk.connect("reconciler", ensure_stream=True)
    worker = await desk.connect(NODE)
    async with worker.subscribe(subjects.down_pattern(OTHER)) as heard:
        for _ in range(20):
            await reconciler.publish(subjects.down(OTHER, "StatusPublished"))
        await reconciler.last_sequence()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(heard)


def test_adding_a_node_leaves_other_passwords_unchanged(users: Path) -> None:
    before = {path.name: path.read_text() for path in (users / "passwords").iterdir()}
    made = subprocess.run(
        [sys.executable, str(DEPLOY / "users.py"), str(users), NODE, OTHER, "worker-3"],
        env={"PYTHONPATH": str(DEPLOY.parents[2])},
        check=False,
    )
    assert made.returncode == 0
    after = {path.name: path.read_text() for path in (users / "passwords").iterdir()}
    assert set(after) - set(before) == {"worker-3"}
    assert before.items() <= after.items()
    assert len(set(after.values())) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in [users / "users.conf", *(users / "passwords").iterdir()])


def test_servers_accept_the_configuration(users: Path, tmp_path: Path) -> None:
    assert users.parent == tmp_path
    (tmp_path / "hub.conf").write_text((DEPLOY / "hub.conf").read_text())
    done = subprocess.run(
        [binary(), "-t", "--config", str(tmp_path / "hub.conf")],
        env={"POD_NAME": "plumbline-hub-0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sync_interval: always" in (DEPLOY / "hub.conf").read_text()
