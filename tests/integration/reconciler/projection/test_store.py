from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import event as sqlalchemy_event

from events.schema import (
    NO_NODE,
    AttachPlanned,
    AttachRequested,
    ContainerId,
    DetachRequested,
    ErrorClass,
    Event,
    EventId,
    Failure,
    IfName,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    NetworkName,
    NodeName,
    Phase,
    Pod,
    RequestId,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    Unknown,
    WorkerStarted,
)
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.sql.engine import ProjectionError
from reconciler.projection.sql.tables import metadata, sandboxes
from reconciler.projection.store import Store
from reconciler.status.pending import PendingStatus, pending_status
from tests.support.reconciler.postgres import Postgres
from tests.support.reconciler.rows import Table, folded, stored_in
from tests.support.stories.events import container
from tests.support.stories.node import Node, busy_day
from tests.support.stories.values import failure_of


def stored(events: Iterable[Event]) -> list[Stored]:
    return [Stored(sequence, event) for sequence, event in enumerate(events, 1)]


def project(url: str, events: Sequence[Stored], cuts: Iterable[int] = (), *, restarts: bool = True) -> None:
    """Project *events* in batches that end at *cuts*, each with a new store unless *restarts* is false."""
    begin = 0
    store = Store(url, "NODE")
    for end in (*sorted(cuts), len(events)):
        if restarts:
            store.close()
            store = Store(url, "NODE")
        store.apply(events[begin:end])
        begin = end
    store.close()


def test_a_busy_day_in_one_batch_equals_the_fold(database: str) -> None:
    events = stored(busy_day(60))
    project(database, events)
    tables = stored_in(database)
    assert tables == folded(events)
    assert len(tables["sandboxes"]) == 60
    assert len(tables["attachments"]) == 180


def test_a_busy_day_event_by_event_equals_the_fold(database: str) -> None:
    events = stored(busy_day(12))
    project(database, events, range(1, len(events)))
    assert stored_in(database) == folded(events)


def test_a_repeated_batch_changes_nothing(database: str) -> None:
    events = stored(busy_day(5))
    project(database, events)
    before = stored_in(database)
    store = Store(database, "NODE")
    assert store.apply(events) is None
    assert store.apply([]) is None
    store.close()
    assert stored_in(database) == before


def test_an_overlapping_batch_adds_only_new_events(database: str) -> None:
    events = stored(busy_day(5))
    project(database, events[:20])
    project(database, events[10:])
    assert stored_in(database) == folded(events)


def test_a_repeated_detach_keeps_the_rows_of_the_sandbox(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    events = stored([*node.attach("a" * 64, pod), *node.detach("a" * 64, pod), *node.detach("a" * 64, pod)])
    project(database, events, range(1, len(events)))
    (row,) = (dict(row) for row in stored_in(database)["sandboxes"])
    assert (row["phase"], row["live"], row["created"], row["sequence"]) == ("detached", False, 1, len(events))
    assert row["requested_at"] == events[0].event.at
    assert [dict(r)["addresses"] for r in stored_in(database)["attachments"]] == ["10.0.0.208/24", "10.1.0.208/24"]


def test_an_attach_with_fewer_networks_deletes_the_other_rows(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    first = [*node.attach("a" * 64, pod), *node.detach("a" * 64, pod)]
    project(database, stored([*first, *node.attach("a" * 64, pod, ["other"])]), [len(first)])
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
    events = stored([*first, *second, replace(gone, cause=EventId("nobody"))])
    project(database, events, [len(events) - 1])
    tables = stored_in(database)
    assert tables == folded(events)
    phases = {dict(row)["sandbox_ifname"]: dict(row)["phase"] for row in tables["attachments"]}
    assert phases == {"eth0": "detached", "net9": "attached"}


def test_a_request_is_pending_until_its_outcome(database: str) -> None:
    node = Node()
    events = stored(node.attach("a" * 64, Pod("d", "p", "u")))
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
    project(database, stored([started, unknown, stale]))
    assert [(dict(row)["sequence"], dict(row)["type"]) for row in stored_in(database)["anomalies"]] == [
        (2, "PortOpened"),
        (3, "WorkerStarted"),
    ]


def test_a_forged_epoch_does_not_stop_the_projection(database: str) -> None:
    node = Node()
    project(database, stored([node.event(WorkerStarted(version="0", pid=1), epoch=2**70), *busy_day(2, node)]))
    assert len(stored_in(database)["sandboxes"]) == 2


def published(sandbox: str, pod: Pod, text: str, intent: str = "i") -> Event:
    data = StatusPublished(node=NodeName("node-1"), ifname=IfName("eth0"), pod=pod, text=text)
    return replace(Node().event(data, sandbox, intent, epoch=0), node=NO_NODE)


def test_map_live_pods_gets_sandboxes_and_last_publication(database: str) -> None:
    events = [*busy_day(10), published(container(4), Pod("shop", "web-4", "uid-4"), "[]")]
    project(database, stored(events))
    store = Store(database, "NODE")
    told = store.map_live_pods(lambda pod, boxes, said: (pod, [box.key.container_id for box in boxes], said))
    assert store.live_pods() == [(pod, said) for pod, _, said in told]
    store.close()
    assert told == [
        (
            PodName("shop", "web-4"),
            [container(4)],
            Published("uid-4", "i", "[]", refused=False, sequence=len(events)),
        ),
        (PodName("shop", "web-9"), [container(9)], None),
    ]


def test_a_pod_with_two_live_sandboxes_appears_once(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    project(database, stored([*node.attach("a" * 64, pod), *node.attach("b" * 64, pod)]))
    with closing(Store(database, "NODE")) as store:
        assert store.live_pods() == [(PodName("d", "p"), None)]


@st.composite
def statuses_said(draw: st.DrawFn) -> list[Event]:
    """Draw sandboxes of two pods that are attached, published, refused, repaired and detached, some twice."""
    node = Node()
    events: list[Event] = []
    asked: list[tuple[Event, Pod]] = []
    for _ in range(draw(st.integers(1, 8))):
        sandbox, pod = draw(st.sampled_from(["a" * 64, "b" * 64])), draw(st.sampled_from([WEB, DB]))
        what = draw(st.sampled_from(["attach", "silent", "detach", "repair", "said", "refused"]))
        if what in ("attach", "silent"):
            part = list(node.attach(sandbox, pod, silent=what == "silent"))
            asked.append((part[0], pod))
            events += part
        elif what == "detach":
            events += node.detach(sandbox, pod)
        elif what == "repair" and asked:
            intent, _ = draw(st.sampled_from(asked))
            events += [
                event for event in list(events) if event.type == "InterfaceAttached" and event.cause == intent.id
            ]
        elif asked:
            intent, pod = draw(st.sampled_from(asked))
            events.append(told(intent, pod, "[]", refused=what == "refused"))
    return events


WEB, DB = Pod("d", "web", "u1"), Pod("d", "db", "u2")


def told(intent: Event, pod: Pod, text: str, *, refused: bool) -> Event:
    event = published(intent.sandbox, pod, text, intent.id)
    if not refused:
        return event
    failure = Failure(error_class=ErrorClass.POD_NOT_FOUND, phase=Phase.PUBLISH, message="gone", code=0)
    failed = StatusPublishFailed(node=NodeName("node-1"), ifname=IfName("eth0"), pod=pod, failure=failure, final=True)
    return replace(event, data=failed)


def due_of_all(store: Store) -> list[PendingStatus]:
    return [
        found for found in store.map_live_pods(lambda _, boxes, said: pending_status(boxes, said)) if found is not None
    ]


def due_of_unsettled(store: Store) -> list[PendingStatus]:
    found = store.map_some_live_pods(store.unsettled_pods(), lambda _, boxes, said: pending_status(boxes, said))
    return [each for each in found if each is not None]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=statuses_said())
def test_every_pending_status_is_of_an_unsettled_pod(
    tmp_path_factory: pytest.TempPathFactory, empty_database: bytes, events: list[Event]
) -> None:
    path = tmp_path_factory.mktemp("due") / "x.db"
    path.write_bytes(empty_database)
    project(f"sqlite:///{path}", stored(events))
    with closing(Store(f"sqlite:///{path}", "NODE")) as store:
        assert due_of_unsettled(store) == due_of_all(store)


def test_a_lookup_of_some_pods_equals_the_lookup_of_all(database: str) -> None:
    events = [*busy_day(20), told(next(iter(Node("node-2").attach(container(4), WEB))), WEB, "[]", refused=False)]
    project(database, stored(events))
    with closing(Store(database, "NODE")) as store:
        assert len(store.unsettled_pods()) > 1
        for pod in store.unsettled_pods():
            found = store.map_some_live_pods([pod], lambda _, boxes, said: pending_status(boxes, said))
            assert found == [each for each in due_of_all(store) if each.pod == pod]
        assert store.map_some_live_pods([], lambda *_: 1) == []
        assert store.map_some_live_pods([PodName("shop", "gone")], lambda *_: 1) == []


def test_no_fold_is_read_for_published_pods(database: str) -> None:
    node, before = Node(), "c" * 64
    events = [*node.attach("a" * 64, WEB), *node.attach("b" * 64, DB), *node.attach(before, Pod("d", "old", "u3"))]
    events += [told(events[0], WEB, "[]", refused=False), told(events[5], DB, "", refused=True)]
    events.append(told(events[10], Pod("d", "old", "u3"), "[]", refused=False))
    project(database, stored(events))
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).where(sandboxes.c.container_id == before).values(intent=""))
    engine.dispose()
    with closing(Store(database, "NODE")) as store:
        assert [pod.name for pod in store.unsettled_pods()] == ["old"], "its row is of before intents were kept"
        assert due_of_unsettled(store) == []
        assert store.live({PodName("d", "web"), PodName("d", "gone")}) == {PodName("d", "web")}


def test_no_fold_is_read_for_pods_without_publication(database: str) -> None:
    node, before = Node(), "c" * 64
    events = [*node.attach("a" * 64, WEB, silent=True), *node.attach("b" * 64, DB)]
    events += node.attach(before, Pod("d", "old", "u3"), silent=True)
    project(database, stored(events))
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).where(sandboxes.c.container_id == before).values(silent=False))
    engine.dispose()
    with closing(Store(database, "NODE")) as store:
        looked_at = [pod.name for pod in store.unsettled_pods()]
        assert looked_at == ["db", "old"], "the second's row is of before it was kept"
        assert [each.pod.name for each in due_of_unsettled(store)] == ["db"]


def test_uncompressed_folds_of_older_versions_are_read(database: str) -> None:
    events = stored(busy_day(12))
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
    node, told_of = Node(), Node("node-2")
    events = [*busy_day(20, node), *told_of.leak("b" * 64, ends="failed"), *told_of.leak("c" * 64)]
    for number in range(2):
        intent, *rest = told_of.attach(f"{number}" * 64, WEB)
        events += [intent, *rest, told(intent, WEB, "[]", refused=False)]
    plans: list[str] = []

    def explain(connection: sa.Connection, _cursor: object, statement: str, given: object, *_: object) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            driver: Any = connection.connection.driver_connection
            one = given[0] if isinstance(given, list) else given
            plans.extend(row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", one))

    sqlalchemy_event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        project(f"sqlite:///{tmp_path}/x.db", stored(events), [len(events) // 2])
    finally:
        sqlalchemy_event.remove(sa.Engine, "before_cursor_execute", explain)
    searched = {plan.split()[1] for plan in plans if plan.startswith("SEARCH")}
    assert searched >= {"sandboxes", "statuses", "leaks", "pending", "nodes", "addresses"}
    assert not {plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in metadata.tables} - {
        "SCAN position"  # which has one row
    }


def test_sandboxes_are_counted_by_phase(database: str) -> None:
    project(database, stored(busy_day(10)))
    store = Store(database, "NODE")
    assert store.live_phases() == {"attached": 2}
    store.close()


def test_changes_list_attached_and_detached_pods(database: str) -> None:
    node, stays, goes = Node(), Pod("d", "stays", "u1"), Pod("d", "goes", "u2")
    before = [*node.attach("a" * 64, stays), *node.attach("b" * 64, goes)]
    said = published("a" * 64, stays, "[]")
    after = [*node.attach("c" * 64, stays), *node.detach("a" * 64, stays), *node.detach("b" * 64, goes)]
    events = stored([*before, said, *after])
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


def test_the_last_status_record_is_stored_and_adds_no_node(database: str) -> None:
    pod = Pod("d", "p", "u")
    failure = Failure(error_class=ErrorClass.API_REFUSED, phase=Phase.PUBLISH, message="no", code=0)
    passing, final = (
        replace(
            published("c" * 64, pod, ""),
            data=StatusPublishFailed(
                node=NodeName("node-1"), ifname=IfName("eth0"), pod=pod, failure=failure, final=final
            ),
        )
        for final in (False, True)
    )
    events = stored([published("a" * 64, pod, "[1]"), published("b" * 64, pod, "[2]"), passing])
    project(database, events, [1])
    assert stored_in(database) == folded(events)
    assert [(dict(row)["text"], dict(row)["refused"]) for row in stored_in(database)["statuses"]] == [("[2]", False)]
    assert stored_in(database)["nodes"] == []
    project(database, [*events, *[Stored(4, final)]])
    assert [(dict(row)["text"], dict(row)["refused"]) for row in stored_in(database)["statuses"]] == [("", True)]


def test_rows_of_another_ledger_are_refused(database: str) -> None:
    project(database, stored(busy_day(1)))
    store = Store(database, "LEDGER")
    with pytest.raises(ProjectionError, match="projection of the ledger NODE, not of LEDGER"):
        store.apply(stored(busy_day(1)))
    store.close()


@pytest.mark.parametrize("fold", [b"{}", b"x", zlib.compress(b"{}")])
def test_unreadable_rows_are_reported_in_one_sentence(database: str, fold: bytes) -> None:
    events = stored(busy_day(1))
    project(database, events[:4])
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).values(fold=fold))
    engine.dispose()
    with closing(Store(database, "NODE")) as store, pytest.raises(ProjectionError, match="can't read"):
        store.apply(events[4:])


def test_drifting_lists_sandboxes_until_repair_or_detach(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    attached = [*node.attach("a" * 64, pod), *node.attach("b" * 64, pod), *node.attach("c" * 64, pod)]
    drifted = [
        *node.drift("b" * 64, pod, ends="failed"),
        *node.drift("a" * 64, pod, ends="repaired"),
        *node.drift("c" * 64, pod),
    ]
    (asked, *_) = node.detach("c" * 64, pod)
    events = stored([*attached, *drifted, asked])
    project(database, events, [len(attached), len(events) - 1])
    store = Store(database, "NODE")
    drifting = store.drifting()
    store.close()
    assert stored_in(database) == folded(events)
    assert [(box.key.container_id, [drift.kind for drift in box.drifts]) for box in drifting] == [
        ("b" * 64, ["link_down"])
    ]


def test_leaks_lists_leaks_until_they_close(database: str) -> None:
    node, other = Node(), Node("node-2")
    before = [*node.leak("a" * 64), *other.leak("a" * 64, ends="failed")]
    after = [*node.leak("b" * 64, ends="reclaimed"), *node.leak("a" * 64, ends="gone"), *other.leak("c" * 64)]
    events = stored([*before, *after])
    project(database, events[: len(before)])
    store = Store(database, "NODE")
    open_before = store.leaks()
    changes = store.apply(events[len(before) :])
    open_after = store.leaks()
    store.close()
    assert changes is not None
    assert stored_in(database) == folded(events)
    assert [(name, leaked.observed.sightings, leaked.refused is None) for name, leaked in open_before] == [
        ("node-1", 2, True),
        ("node-2", 2, False),
    ]
    assert [(name, leaked.observed.leak.holder[0]) for name, leaked in open_after] == [("node-2", "a"), ("node-2", "c")]
    assert [(name, leaked.observed.leak.holder[0]) for name, leaked in changes.leaks] == [("node-2", "c")]


def test_a_node_row_has_the_last_command_that_the_node_took(database: str) -> None:
    node = Node()
    events = stored([node.start(), *node.leak("a" * 64), *node.drift("b" * 64, Pod())])
    project(database, events, [3])
    (row,) = (dict(row) for row in stored_in(database)["nodes"])
    assert (row["epoch"], row["command"]) == (2, 8)
    assert [dict(row)["type"] for row in stored_in(database)["pending"]] == ["ReclaimRequested", "RepairRequested"]


def test_holders_returns_the_holder_at_any_time(database: str) -> None:
    node, first, second = Node(), Pod("d", "first", "u1"), Pod("d", "second", "u2")
    one, other = "ab" * 32, "ba" * 32  # with the same addresses
    before = [*node.attach(one, first), *node.detach(one, first, fails=True)]
    events = stored([*before, *node.detach(one, first), *node.attach(other, second)])
    project(database, events, [4, len(before), len(before) + 2])
    assert stored_in(database) == folded(events)
    store = Store(database, "NODE")
    held = [[holder.pod for holder in store.holders("10.1.0.240", event.at)] for _, event in events]
    (last,) = store.holders("10.1.0.240", events[-1].event.at)
    store.close()
    gone = next(n for n, (_, event) in enumerate(events) if event.type == "InterfaceDetached" and n > len(before))
    made = [n for n, (_, event) in enumerate(events) if event.type == "InterfaceAttached"]
    assert held == [
        ["first"] if made[1] <= n < gone else ["second"] if n >= made[3] else [] for n in range(len(events))
    ]
    assert (last.network, last.prefix_length, last.until) == ("default/storage", 24, None)


def test_network_versions_omit_keys_of_a_single_pod(database: str) -> None:
    def plan(node: Node, sandbox: str, config: dict[str, object]) -> list[Event]:
        asked, planned, *_ = node.attach(sandbox, Pod("d", "p", "u"), ["one"])
        assert isinstance(planned.data, AttachPlanned)
        (attachment,) = planned.data.attachments
        attachment = replace(attachment, plugins=(json.dumps(config),))
        return [asked, replace(planned, data=replace(planned.data, attachments=(attachment,)))]

    node = Node()
    events = stored(
        [
            *plan(node, "a" * 64, {"type": "bridge", "vlan": 1, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}),
            *plan(node, "b" * 64, {"type": "bridge", "vlan": 2}),
            *plan(node, "c" * 64, {"vlan": 1, "type": "bridge", "runtimeConfig": {"mac": "02:00:00:00:00:02"}}),
        ]
    )
    project(database, events, [3])
    assert stored_in(database) == folded(events)
    rows = sorted((dict(row) for row in stored_in(database)["network_versions"]), key=lambda row: row["first_sequence"])
    assert [(row["first_sequence"], row["last_sequence"], row["uses"]) for row in rows] == [(2, 6, 2), (4, 4, 1)]
    assert json.loads(rows[0]["config"]) == {"cniVersion": "1.1.0", "plugins": [{"type": "bridge", "vlan": 1}]}


def test_the_history_of_drift_and_leaks_is_stored(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    drift = [*node.attach("a" * 64, pod), *node.drift("a" * 64, pod, ends="repaired")]
    events = stored([*drift, *node.drift("a" * 64, pod, ends="failed"), *node.leak("b" * 64, ends="reclaimed")])
    project(database, events, [len(drift)])
    tables = stored_in(database)
    assert tables == folded(events)
    assert [dict(row)["outcome"] for row in tables["leak_history"]] == ["observed", "observed", "reclaimed"]
    assert sorted((dict(row)["pod"], dict(row)["outcome"]) for row in tables["drift_history"]) == [
        ("p", "failed"),
        ("p", "observed"),
        ("p", "observed"),
        ("p", "repaired"),
    ]


@pytest.mark.parametrize("failed", [InterfaceAttachFailed, InterfaceDetachFailed])
def test_a_failure_after_a_detach_holds_the_address_again(
    database: str, failed: type[InterfaceAttachFailed] | type[InterfaceDetachFailed]
) -> None:
    node, sandbox = Node(), "a" * 64
    begun = list(node.attach(sandbox, Pod("d", "p", "u")))[:3]
    network, ifname = NetworkName("k8s-pod-network"), IfName("eth0")
    detached = node.event(InterfaceDetached(network=network, ifname=ifname, seconds=0.0), sandbox, begun[0].id)
    failure = failed(network=network, ifname=ifname, failure=failure_of(Phase.ADD, network), seconds=0.0)
    events = stored([*begun, detached, node.event(failure, sandbox, begun[0].id)])
    project(database, events)
    assert stored_in(database) == folded(events)
    spans = [(dict(row)["sequence"], dict(row)["until_sequence"]) for row in stored_in(database)["addresses"]]
    assert sorted(spans) == [(3, 4), (5, None)]


@st.composite
def nonsense(draw: st.DrawFn) -> list[Event]:
    """Draw stories that are cut, mixed, repeated and assigned to other sandboxes."""
    node = Node()
    sandboxes = ["a" * 64, "b" * 64, "c" * 64]
    pods = [Pod("d", "p", "u1"), Pod("d", "p", "u2"), Pod("", "", "")]
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 6))):
        sandbox, pod = draw(st.sampled_from(sandboxes)), draw(st.sampled_from(pods))
        story = draw(st.sampled_from(["attach", "fail", "detach", "start", "lone", "drift", "leak", "unknown"]))
        if story == "attach":
            part = list(node.attach(sandbox, pod))
        elif story == "fail":
            part = list(node.attach(sandbox, pod, fails_at=draw(st.integers(0, 1))))
        elif story == "detach":
            part = list(node.detach(sandbox, pod, fails=draw(st.booleans())))
        elif story == "start":
            part = [node.start()]
        elif story == "drift":
            part = list(node.drift(sandbox, pod, ends=draw(st.sampled_from(["", "repaired", "failed"]))))
        elif story == "leak":
            part = list(node.leak(sandbox, ends=draw(st.sampled_from(["", "reclaimed", "failed", "gone"]))))
        elif story == "lone":
            asked = DetachRequested(
                request=RequestId("r"), ifname=IfName(draw(st.sampled_from(["eth0", "net9"]))), pod=pod
            )
            part = [node.event(asked, sandbox)]
        else:
            part = [node.event(Unknown(type="New", version=2, data=msgspec.Raw(b"{}")), sandbox)]
        events += part[: draw(st.integers(1, len(part)))]
    events += draw(st.lists(st.sampled_from(events), max_size=4))
    if draw(st.booleans()):
        events = draw(st.permutations(events))
    if draw(st.booleans()):
        index = draw(st.integers(0, len(events) - 1))
        change = draw(st.sampled_from(["sandbox", "cause", "epoch"]))
        wrong = {"sandbox": ContainerId("b" * 64), "cause": EventId("nobody"), "epoch": 0}
        events[index] = replace(events[index], **{change: wrong[change]})
    return events


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), events=nonsense())
def test_the_projection_equals_the_fold_for_any_events_and_restarts(
    tmp_path_factory: pytest.TempPathFactory, empty_database: bytes, data: st.DataObject, events: list[Event]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.db"
    path.write_bytes(empty_database)
    url = f"sqlite:///{path}"
    ledger = [Stored(3 * sequence, event) for sequence, event in enumerate(events, 1)]
    cuts = data.draw(st.sets(st.integers(0, len(ledger))))
    project(url, ledger, cuts, restarts=data.draw(st.booleans()))
    assert stored_in(url) == folded(ledger)


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
    tmp_path_factory: pytest.TempPathFactory, empty_database: bytes, data: st.DataObject, events: list[Event]
) -> None:
    path = tmp_path_factory.mktemp("old") / "x.db"
    path.write_bytes(empty_database)
    url, ledger = f"sqlite:///{path}", stored(events)
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
    project(database, stored(events))
    before = events[len(events) // 2].at
    with closing(Store(database, "NODE")) as store:
        rounds = [store.forget(before, 5)]
        while rounds[-1].more:
            rounds.append(store.forget(before, 5))
        assert len(rounds) > 2
        assert store.forget(before, 5).rows == 0
    assert stored_in(database) == remembered(stored(events), before)


def test_a_deleted_sandbox_starts_anew_at_its_next_event(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    first = [*node.attach("a" * 64, pod), *node.detach("a" * 64, pod)]
    again = list(node.attach("a" * 64, pod, ["other"]))
    events = stored([*first, *again])
    with closing(Store(database, "NODE")) as store:
        store.apply(events[: len(first)])
        assert store.forget("9", 100).containers == {"a" * 64}
        store.apply(events[len(first) :])
    tables = stored_in(database)
    assert [dict(row)["created"] for row in tables["sandboxes"]] == [len(first) + 1]
    assert [dict(row)["network"] for row in tables["attachments"]] == ["other"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), events=nonsense())
def test_the_projection_in_postgresql_equals_the_fold_too(
    postgres: Postgres, empty_postgres_database: str, data: st.DataObject, events: list[Event]
) -> None:
    url = postgres.url(postgres.database(empty_postgres_database))
    ledger = [Stored(3 * sequence, event) for sequence, event in enumerate(events, 1)]
    cuts = data.draw(st.sets(st.integers(0, len(ledger)), max_size=3))
    project(url, ledger, cuts, restarts=data.draw(st.booleans()))
    assert stored_in(url) == folded(ledger)
