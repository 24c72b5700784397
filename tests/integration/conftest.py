"""The real servers that tests of several rooms need."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from tests.support.kube.server import KubeServer


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeServer]:
    """A kube-apiserver for the whole run. A test that kills it starts it again."""
    server = KubeServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A nats-server of the test's own, which it may kill."""
    server = EmbeddedServer(tmp_path / "store", tmp_path / "run")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The nats-server behind ``jetstream``, with its store in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as store:
        server = EmbeddedServer(Path(store), tmp_path_factory.mktemp("nats"))
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def jetstream(request: pytest.FixtureRequest) -> AsyncIterator[JetStreamLedger]:
    """An empty ledger: on the test's own ``server`` if it asks for one, else on the server that all tests share."""
    shared = "server" not in request.fixturenames
    server: EmbeddedServer = request.getfixturevalue("shared_server" if shared else "server")
    ledger = await JetStreamLedger.connect(server.address)
    yield ledger
    await ledger.close()
    if shared:
        await _delete_streams(server)


async def _delete_streams(server: EmbeddedServer) -> None:
    ledger = await JetStreamLedger.connect(server.address, ensure_stream=False)
    for stream in msgspec.json.decode(await ledger.api("STREAM.NAMES", {}))["streams"] or ():
        await ledger.api(f"STREAM.DELETE.{stream}", {})
    await ledger.close()
