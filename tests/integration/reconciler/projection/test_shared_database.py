"""Reconcilers with a shared database: only the last election's winner writes, whatever the others do."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa

from events.schema import Stored
from reconciler.projection.rebuild.shadow_database import ShadowDatabase
from reconciler.projection.sql.engine import DatabaseUnavailableError, ReplacedError, open_engine, transaction
from reconciler.projection.sql.tables import position
from reconciler.projection.store import Store
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import folded, stored_in
from tests.support.stories.node import Node, busy_day


@pytest.fixture
def shared(postgres: Postgres, empty_postgres_database: str) -> str:
    return postgres.url(postgres.database(empty_postgres_database))


@pytest.fixture
def events() -> list[Stored]:
    return [Stored(sequence, event) for sequence, event in enumerate(busy_day(4, Node()), 1)]


@pytest.fixture
def first(shared: str) -> Iterator[Store]:
    with closing(Store(shared, "NODE")) as store:
        yield store


@pytest.fixture
def second(shared: str) -> Iterator[Store]:
    with closing(Store(shared, "NODE")) as store:
        yield store


def elected(url: str, election: int, events: list[Stored]) -> dict[str, list[tuple[object, ...]]]:
    """Return the tables for *events*, written by the winner of *election*."""
    sequence = events[-1].sequence if events else 0
    place = (("election", election), ("forgotten", ""), ("ledger", "NODE"), ("sequence", sequence))
    return {**folded(events), "position": [place]}


@pytest.mark.parametrize("done", [0, 20])
def test_a_replaced_leader_writes_nothing(
    shared: str, events: list[Stored], first: Store, second: Store, done: int
) -> None:
    first.claim(7)
    if done:
        first.apply(events[:done])
    second.claim(9)
    for write in (
        lambda: first.apply(events[: done + 10]),
        lambda: first.skip_to(1000),
        lambda: first.claim(7),
    ):
        with pytest.raises(ReplacedError, match="election 9 took the database from election 7"):
            write()
    assert stored_in(shared) == elected(shared, 9, events[:done])
    assert second.position() == done
    second.apply(events)
    assert stored_in(shared) == elected(shared, 9, events)


def test_a_reelected_leader_writes_again(shared: str, events: list[Stored], first: Store, second: Store) -> None:
    first.claim(7)
    first.apply(events[:20])
    second.claim(9)
    second.apply(events[:40])
    first.claim(11)
    first.apply(events[30:])
    assert stored_in(shared) == elected(shared, 11, events)
    with pytest.raises(ReplacedError):
        second.apply(events)


def test_of_two_claims_of_an_empty_database_the_newer_wins(shared: str, events: list[Stored]) -> None:
    begin = threading.Barrier(2)

    def take(election: int) -> None:
        with closing(Store(shared, "NODE")) as store:
            begin.wait()
            try:
                store.claim(election)
                store.apply(events[:20])
            except ReplacedError:
                assert election == 7

    threads = [threading.Thread(target=take, args=(election,)) for election in (7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored_in(shared) == elected(shared, 9, events[:20])


def test_a_leader_frozen_in_a_batch_blocks_for_seconds_only(
    shared: str, events: list[Stored], first: Store, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.claim(7)
    frozen, thaw = threading.Event(), threading.Event()

    def freeze(connection: sa.Connection, ledger: str, sequence: int) -> None:
        frozen.set()
        assert thaw.wait(60)
        set_position(connection, ledger, sequence)

    writer = copy.copy(first._writer)  # the stores of a process share one  # pyright: ignore[reportPrivateUsage]
    set_position = writer.set_position  # the last step of a batch
    monkeypatch.setattr(writer, "set_position", freeze)
    monkeypatch.setattr(first, "_writer", writer)
    failures: list[BaseException] = []

    def batch() -> None:
        try:
            first.apply(events[:20])
        except DatabaseUnavailableError as error:
            failures.append(error)

    thread = threading.Thread(target=batch)
    thread.start()
    assert frozen.wait(60)
    second.claim(9)
    second.apply(events[:30])
    thaw.set()
    thread.join()
    assert len(failures) == 1
    with pytest.raises(ReplacedError):
        first.apply(events)
    assert stored_in(shared) == elected(shared, 9, events[:30])


def test_a_rebuild_keeps_the_fence(shared: str, events: list[Stored], first: Store, second: Store) -> None:
    first.claim(7)
    second.claim(9)
    second.apply(events[:20])
    beside = ShadowDatabase(shared)
    with closing(Store(beside.url, "NODE")) as store:
        store.prepare()
        store.apply(events[:30])
    with beside.swapping() as (connection, _):
        beside.swap(connection)
    beside.close()
    with pytest.raises(ReplacedError):
        first.apply(events)
    second.apply(events)
    assert stored_in(shared) == elected(shared, 9, events)


def test_an_unshared_database_needs_no_election(database: str, events: list[Stored]) -> None:
    with closing(Store(database, "NODE")) as store:
        store.apply(events)
    engine = open_engine(database)
    with transaction(engine) as connection:
        assert connection.scalar(sa.select(position.c.election)) == 0
    engine.dispose()
