from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.nats.ledger import JetStreamLedger
from reconciler.projection.sql.schema import upgrade
from tests.support.kube.publishing import annotation, cluster, namespace
from tests.support.reconciler.postgres import Postgres

__all__ = ["annotation", "cluster", "namespace"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="plumbline-pg-") as folder:  # a socket's path must be short
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "pg")
        yield server
        server.stop()


@pytest.fixture(scope="session")
def empty_postgres_database(postgres: Postgres) -> str:
    """The name of a migrated PostgreSQL database, to be copied."""
    name = postgres.database()
    upgrade(postgres.url(name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty migrated database of each kind."""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        return postgres.url(postgres.database(request.getfixturevalue("empty_postgres_database")))
    (tmp_path / "x.db").write_bytes(request.getfixturevalue("empty_database"))
    return f"sqlite:///{tmp_path}/x.db"


@pytest.fixture
def ledger(jetstream: JetStreamLedger) -> JetStreamLedger:
    """A node's ledger, empty."""
    return jetstream
