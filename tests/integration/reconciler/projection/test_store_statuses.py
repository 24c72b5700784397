"""The store knows the live pods, their last network-status, and which statuses are pending."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from events.schema import ErrorClass, Event, Failure, IfName, NodeName, Phase, Pod, StatusPublishFailed, Stored
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.sql.tables import sandboxes
from reconciler.projection.store import Store
from reconciler.status.pending import PendingStatus, pending_status
from tests.support.reconciler.projecting import DB, WEB, project, published, status_event
from tests.support.reconciler.rows import folded, stored_in
from tests.support.stories.events import container
from tests.support.stories.folded import numbered
from tests.support.stories.node import Node, busy_day


def test_map_live_pods_gets_sandboxes_and_last_publication(database: str) -> None:
    events = [*busy_day(10), published(container(4), Pod("shop", "web-4", "uid-4"), "[]")]
    project(database, numbered(events))
    store = Store(database, "NODE")
    mapped = store.map_live_pods(lambda pod, boxes, said: (pod, [box.key.container_id for box in boxes], said))
    assert store.live_pods() == [(pod, said) for pod, _, said in mapped]
    store.close()
    assert mapped == [
        (
            PodName("shop", "web-4"),
            [container(4)],
            Published("uid-4", "i", "[]", refused=False, sequence=len(events)),
        ),
        (PodName("shop", "web-9"), [container(9)], None),
    ]


def test_a_pod_with_two_live_sandboxes_appears_once(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    project(database, numbered([*node.attach("a" * 64, pod), *node.attach("b" * 64, pod)]))
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
            events.append(status_event(intent, pod, "[]", refused=what == "refused"))
    return events


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
    tmp_path: Path, empty_database: bytes, events: list[Event]
) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(empty_database)
    project(f"sqlite:///{path}", numbered(events))
    with closing(Store(f"sqlite:///{path}", "NODE")) as store:
        assert due_of_unsettled(store) == due_of_all(store)


def test_a_lookup_of_some_pods_equals_the_lookup_of_all(database: str) -> None:
    intent = next(iter(Node("node-2").attach(container(4), WEB)))
    events = [*busy_day(20), status_event(intent, WEB, "[]", refused=False)]
    project(database, numbered(events))
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
    events += [status_event(events[0], WEB, "[]", refused=False), status_event(events[5], DB, "", refused=True)]
    events.append(status_event(events[10], Pod("d", "old", "u3"), "[]", refused=False))
    project(database, numbered(events))
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
    project(database, numbered(events))
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.update(sandboxes).where(sandboxes.c.container_id == before).values(silent=False))
    engine.dispose()
    with closing(Store(database, "NODE")) as store:
        looked_at = [pod.name for pod in store.unsettled_pods()]
        assert looked_at == ["db", "old"], "the second's row is of before it was kept"
        assert [each.pod.name for each in due_of_unsettled(store)] == ["db"]


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
    events = numbered([published("a" * 64, pod, "[1]"), published("b" * 64, pod, "[2]"), passing])
    project(database, events, [1])
    assert stored_in(database) == folded(events)
    assert [(dict(row)["text"], dict(row)["refused"]) for row in stored_in(database)["statuses"]] == [("[2]", False)]
    assert stored_in(database)["nodes"] == []
    project(database, [*events, *[Stored(4, final)]])
    assert [(dict(row)["text"], dict(row)["refused"]) for row in stored_in(database)["statuses"]] == [("", True)]
