"""The store writes the rows of each batch as the fold of all events computes them, in SQLite and PostgreSQL."""

from __future__ import annotations

import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import event as sqlalchemy_event

from events.schema import AttachPlanned, AttachRequested, EventId, IfName, Pod, Unknown, WorkerStarted
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.sql.engine import ProjectionError
from reconciler.projection.sql.tables import metadata, sandboxes
from reconciler.projection.store import Store
from tests.support.reconciler.projecting import WEB, project, published, status_event
from tests.support.reconciler.rows import folded, stored_in
from tests.support.stories.folded import numbered
from tests.support.stories.node import Node, busy_day


def test_a_busy_day_in_one_batch_equals_the_fold(database: str) -> None:
    events = numbered(busy_day(60))
    project(database, events)
    tables = stored_in(database)
    assert tables == folded(events)
    assert len(tables["sandboxes"]) == 60
    assert len(tables["attachments"]) == 180


def test_a_busy_day_event_by_event_equals_the_fold(database: str) -> None:
    events = numbered(busy_day(12))
    project(database, events, range(1, len(events)))
    assert stored_in(database) == folded(events)


def test_a_repeated_batch_changes_nothing(database: str) -> None:
    events = numbered(busy_day(5))
    project(database, events)
    before = stored_in(database)
    store = Store(database, "NODE")
    assert store.apply(events) is None
    assert store.apply([]) is None
    store.close()
    assert stored_in(database) == before


def test_an_overlapping_batch_adds_only_new_events(database: str) -> None:
    events = numbered(busy_day(5))
    project(database, events[:20])
    project(database, events[10:])
    assert stored_in(database) == folded(events)


def test_a_repeated_detach_keeps_the_rows_of_the_sandbox(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    events = numbered([*node.attach("a" * 64, pod), *node.detach("a" * 64, pod), *node.detach("a" * 64, pod)])
    project(database, events, range(1, len(events)))
    (row,) = (dict(row) for row in stored_in(database)["sandboxes"])
    assert (row["phase"], row["live"], row["created"], row["sequence"]) == ("detached", False, 1, len(events))
    assert row["requested_at"] == events[0].event.at
    assert [dict(r)["addresses"] for r in stored_in(database)["attachments"]] == ["10.0.0.208/24", "10.1.0.208/24"]


def test_an_attach_with_fewer_networks_deletes_the_other_rows(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    first = [*node.attach("a" * 64, pod), *node.detach("a" * 64, pod)]
    project(database, numbered([*first, *node.attach("a" * 64, pod, ["other"])]), [len(first)])
    assert [dict(row)["network"] for row in stored_in(database)["attachments"]] == ["other"]


def test_an_effect_without_request_belongs_to_the_older_open_one(
    database: str,
) -> None:
    node, pod = Node(), Pod("", "", "")
    first = list(node.attach("a" * 64, pod, ["one"]))
    asked, planned, made, *_ = node.attach("a" * 64, pod, ["one"])
    assert isinstance(asked.data, AttachRequested)
    assert isinstance(planned.data, AttachPlanned)
    second = [
        replace(asked, data=replace(asked.data, ifname=IfName("net9"))),
        replace(planned, data=replace(planned.data, ifname=IfName("net9"))),
        made,
    ]
    *_, gone, _ = node.detach("a" * 64, pod, ["one"])
    events = numbered([*first, *second, replace(gone, cause=EventId("nobody"))])
    project(database, events, [len(events) - 1])
    tables = stored_in(database)
    assert tables == folded(events)
    phases = {dict(row)["sandbox_ifname"]: dict(row)["phase"] for row in tables["attachments"]}
    assert phases == {"eth0": "detached", "net9": "attached"}


def test_a_request_is_pending_until_its_outcome(database: str) -> None:
    node = Node()
    events = numbered(node.attach("a" * 64, Pod("d", "p", "u")))
    project(database, events[:-1])
    (row,) = (dict(row) for row in stored_in(database)["pending"])
    assert (row["event_id"], row["type"], row["sequence"]) == (events[0].event.id, "AttachRequested", 1)
    project(database, events[-1:])
    assert stored_in(database)["pending"] == []


def test_contradictory_events_are_stored_as_anomalies(database: str) -> None:
    node = Node()
    started = node.start()
    unknown = node.event(Unknown(type="PortOpened", version=3, data=msgspec.Raw(b"{}")))
    stale = node.event(WorkerStarted(version="0", pid=1), epoch=0)
    project(database, numbered([started, unknown, stale]))
    assert [(dict(row)["sequence"], dict(row)["type"]) for row in stored_in(database)["anomalies"]] == [
        (2, "PortOpened"),
        (3, "WorkerStarted"),
    ]


def test_a_forged_epoch_does_not_stop_the_projection(database: str) -> None:
    node = Node()
    project(database, numbered([node.event(WorkerStarted(version="0", pid=1), epoch=2**70), *busy_day(2, node)]))
    assert len(stored_in(database)["sandboxes"]) == 2


def test_uncompressed_folds_of_older_versions_are_read(database: str) -> None:
    events = numbered(busy_day(12))
    project(database, events[:90])
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        for fold in connection.scalars(sa.select(sandboxes.c.fold)).all():
            plain = zlib.decompress(fold)
            connection.execute(sa.update(sandboxes).where(sandboxes.c.fold == fold).values(fold=plain, intent=""))
    engine.dispose()
    with closing(Store(database, "NODE")) as store:
        assert len(store.map_live_pods(lambda _, boxes, __: boxes)) > 0
        store.apply(events[90:])
    tables = stored_in(database)
    assert tables["attachments"] == folded(events)["attachments"]
    assert [dict(row)["phase"] for row in tables["sandboxes"]] == [
        dict(row)["phase"] for row in folded(events)["sandboxes"]
    ]


def test_a_batch_causes_no_full_table_scan_in_sqlite(tmp_path: Path, empty_database: bytes) -> None:
    (tmp_path / "x.db").write_bytes(empty_database)
    node, other_node = Node(), Node("node-2")
    events = [*busy_day(20, node), *other_node.leak("b" * 64, ends="failed"), *other_node.leak("c" * 64)]
    for number in range(2):
        intent, *rest = other_node.attach(f"{number}" * 64, WEB)
        events += [intent, *rest, status_event(intent, WEB, "[]", refused=False)]
    plans: list[str] = []

    def explain(connection: sa.Connection, _cursor: object, statement: str, given: object, *_: object) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            driver: Any = connection.connection.driver_connection
            one = given[0] if isinstance(given, list) else given
            plans.extend(row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", one))

    sqlalchemy_event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        project(f"sqlite:///{tmp_path}/x.db", numbered(events), [len(events) // 2])
    finally:
        sqlalchemy_event.remove(sa.Engine, "before_cursor_execute", explain)
    searched = {plan.split()[1] for plan in plans if plan.startswith("SEARCH")}
    assert searched >= {"sandboxes", "statuses", "leaks", "pending", "nodes", "addresses"}
    assert not {plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in metadata.tables} - {
        "SCAN position"  # which has one row
    }


def test_sandboxes_are_counted_by_phase(database: str) -> None:
    project(database, numbered(busy_day(10)))
    store = Store(database, "NODE")
    assert store.live_phases() == {"attached": 2}
    store.close()


def test_changes_list_attached_and_detached_pods(database: str) -> None:
    node, stays, goes = Node(), Pod("d", "stays", "u1"), Pod("d", "goes", "u2")
    before = [*node.attach("a" * 64, stays), *node.attach("b" * 64, goes)]
    said = published("a" * 64, stays, "[]")
    after = [*node.attach("c" * 64, stays), *node.detach("a" * 64, stays), *node.detach("b" * 64, goes)]
    events = numbered([*before, said, *after])
    project(database, events[: len(before) + 1])
    store = Store(database, "NODE")
    changes = store.apply(events[len(before) + 1 :])
    store.close()
    assert changes is not None
    assert [event for event, _ in changes.events] == after
    assert [key.container_id for key in changes.folded] == ["a" * 64, "b" * 64, "c" * 64]
    assert changes.attached_pods == {PodName("d", "stays")}
    assert changes.published == {
        PodName("d", "stays"): Published("u1", "i", "[]", refused=False, sequence=len(before) + 1)
    }
    assert changes.detached_pods == {PodName("d", "goes")}


def test_rows_of_another_ledger_are_refused(database: str) -> None:
    project(database, numbered(busy_day(1)))
    store = Store(database, "LEDGER")
    with pytest.raises(ProjectionError, match="projection of the ledger NODE, not of LEDGER"):
        store.apply(numbered(busy_day(1)))
    store.close()


@pytest.mark.parametrize("fold", [b"{}", b"x", zlib.compress(b"{}")])
def test_unreadable_rows_are_reported_in_one_sentence(database: str, fold: bytes) -> None:
    events = numbered(busy_day(1))
    project(database, events[:4])
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).values(fold=fold))
    engine.dispose()
    with closing(Store(database, "NODE")) as store, pytest.raises(ProjectionError, match="can't read"):
        store.apply(events[4:])
