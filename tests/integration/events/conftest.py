from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from events.ledger.ledger import Ledger
from events.ledger.memory import MemoryLedger
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from tests.support.nats.hub_servers import HubServers, connect_hub


@pytest.fixture
def fast_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with its store in memory, for tests with many events."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as store:
        server = EmbeddedServer(Path(store), tmp_path / "run")
        server.start()
        yield server
        server.stop()


@pytest.fixture(params=["memory", "jetstream"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """Each implementation of the ``Ledger`` protocol, empty."""
    return MemoryLedger() if request.param == "memory" else request.getfixturevalue("jetstream")


@pytest.fixture
def three() -> Iterator[HubServers]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers = HubServers(Path(folder), 3)
        servers.start()
        yield servers
        servers.kill()


@pytest.fixture
async def hub(three: HubServers) -> AsyncIterator[JetStreamLedger]:
    ledger = await connect_hub(three)
    yield ledger
    await ledger.close()
