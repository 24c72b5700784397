from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from kube_publishing import annotation, cluster, namespace

from events.jetstream import JetStreamLedger
from events.server import EmbeddedServer
from reconciler.projection.schema import upgrade
from tests.kube.kube_fixtures import kube

__all__ = ["annotation", "cluster", "kube", "namespace"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A migrated database, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "ledger", tmp_path / "run")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def ledger(server: EmbeddedServer) -> AsyncIterator[JetStreamLedger]:
    ledger = await JetStreamLedger.connect(server.url, server.token)
    yield ledger
    await ledger.close()
