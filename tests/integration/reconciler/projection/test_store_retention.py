"""Retention deletes only rows that have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.schema import Event, Pod, Stored, WorkerStarted
from reconciler.projection.store import Store
from tests.support.reconciler.projecting import nonsense, project, published
from tests.support.reconciler.rows import Table, folded, stored_in
from tests.support.stories.events import container
from tests.support.stories.folded import numbered
from tests.support.stories.node import Node, busy_day


def remembered(events: Sequence[Stored], before: str) -> dict[str, Table]:
    """Return the tables for *events* without the rows that ended before that time."""
    tables = {name: [dict(row) for row in rows] for name, rows in folded(events).items()}
    awaited = {row["container_id"] for row in tables["pending"]}
    gone = {
        (row["container_id"], row["ifname"])
        for row in tables["sandboxes"]
        if not row["live"] and row["changed_at"] < before and row["container_id"] not in awaited
    }
    live = {(row["namespace"], row["pod"]) for row in tables["sandboxes"] if row["live"]}
    stays: dict[str, Callable[[dict[str, Any]], bool]] = {
        "sandboxes": lambda row: (row["container_id"], row["ifname"]) not in gone,
        "attachments": lambda row: (row["container_id"], row["sandbox_ifname"]) not in gone,
        "addresses": lambda row: row["until"] is None or row["until"] >= before,
        "statuses": lambda row: row["at"] >= before or (row["namespace"], row["pod"]) in live,
        **dict.fromkeys(("drift_history", "leak_history", "anomalies"), lambda row: row["at"] >= before),
    }
    for row in tables["position"]:
        row["forgotten"] = before
    return {
        name: [tuple(sorted(row.items())) for row in rows if stays.get(name, lambda _: True)(row)]
        for name, rows in tables.items()
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), events=nonsense())
def test_retention_deletes_only_ended_rows_at_any_step_size(
    tmp_path: Path, empty_database: bytes, data: st.DataObject, events: list[Event]
) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(empty_database)
    url, ledger = f"sqlite:///{path}", numbered(events)
    project(url, ledger)
    before = data.draw(st.sampled_from([event.at for event in events] + ["9"]))
    with closing(Store(url, "NODE")) as store:
        while store.forget(before, data.draw(st.integers(1, 20))).more:
            pass
    assert stored_in(url) == remembered(ledger, before)


def test_retention_works_in_every_database(database: str) -> None:
    events = [*busy_day(30), published(container(1), Pod("shop", "web-1", "uid-1"), "[]")]
    events += [*Node("node-2").leak("b" * 64, ends="reclaimed"), *Node("node-2").drift("c" * 64, Pod(), ends="failed")]
    events += [Node("node-2").event(WorkerStarted(version="0", pid=1), epoch=0) for _ in range(2)]
    project(database, numbered(events))
    before = events[len(events) // 2].at
    with closing(Store(database, "NODE")) as store:
        rounds = [store.forget(before, 5)]
        while rounds[-1].more:
            rounds.append(store.forget(before, 5))
        assert len(rounds) > 2
        assert store.forget(before, 5).rows == 0
    assert stored_in(database) == remembered(numbered(events), before)


def test_a_deleted_sandbox_is_recreated_by_its_next_event(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    first = [*node.attach("a" * 64, pod), *node.detach("a" * 64, pod)]
    again = list(node.attach("a" * 64, pod, ["other"]))
    events = numbered([*first, *again])
    with closing(Store(database, "NODE")) as store:
        store.apply(events[: len(first)])
        assert store.forget("9", 100).containers == {"a" * 64}
        store.apply(events[len(first) :])
    tables = stored_in(database)
    assert [dict(row)["created"] for row in tables["sandboxes"]] == [len(first) + 1]
    assert [dict(row)["network"] for row in tables["attachments"]] == ["other"]
