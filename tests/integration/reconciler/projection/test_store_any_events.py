"""The projection equals the fold for any events, any batches and any restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.schema import Event, Stored
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.projecting import delete_rows, nonsense, project
from tests.support.reconciler.rows import folded, stored_in


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), events=nonsense())
def test_the_projection_equals_the_fold_for_any_events_and_restarts(
    tmp_path: Path, empty_database: bytes, data: st.DataObject, events: list[Event]
) -> None:
    (tmp_path / "x.db").write_bytes(empty_database)
    url = f"sqlite:///{tmp_path}/x.db"
    ledger = [Stored(3 * sequence, event) for sequence, event in enumerate(events, 1)]
    cuts = data.draw(st.sets(st.integers(0, len(ledger))))
    project(url, ledger, cuts, restarts=data.draw(st.booleans()))
    assert stored_in(url) == folded(ledger)


@pytest.fixture(scope="module")
def postgres_database(postgres: Postgres, empty_postgres_database: str) -> str:
    """The URL of a PostgreSQL database for all examples."""
    return postgres.url(postgres.database(empty_postgres_database))


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), events=nonsense())
def test_the_projection_in_postgresql_equals_the_fold_too(
    postgres_database: str, data: st.DataObject, events: list[Event]
) -> None:
    delete_rows(postgres_database)
    ledger = [Stored(3 * sequence, event) for sequence, event in enumerate(events, 1)]
    cuts = data.draw(st.sets(st.integers(0, len(ledger)), max_size=3))
    project(postgres_database, ledger, cuts, restarts=data.draw(st.booleans()))
    assert stored_in(postgres_database) == folded(ledger)
