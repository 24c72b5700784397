"""Project events into a database, also events that make no sense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa
from hypothesis import strategies as st
from msgspec.structs import replace

from events.schema import (
    NO_NODE,
    ContainerId,
    DetachRequested,
    ErrorClass,
    Event,
    EventId,
    Failure,
    IfName,
    NodeName,
    Phase,
    Pod,
    RequestId,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    Unknown,
)
from reconciler.projection.sql.tables import metadata
from reconciler.projection.store import Store
from tests.support.stories.node import Node


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


def published(sandbox: str, pod: Pod, text: str, intent: str = "i") -> Event:
    data = StatusPublished(node=NodeName("node-1"), ifname=IfName("eth0"), pod=pod, text=text)
    return replace(Node().event(data, sandbox, intent, epoch=0), node=NO_NODE)


WEB, DB = Pod("d", "web", "u1"), Pod("d", "db", "u2")


def status_event(intent: Event, pod: Pod, text: str, *, refused: bool) -> Event:
    event = published(intent.sandbox, pod, text, intent.id)
    if not refused:
        return event
    failure = Failure(error_class=ErrorClass.POD_NOT_FOUND, phase=Phase.PUBLISH, message="gone", code=0)
    failed = StatusPublishFailed(node=NodeName("node-1"), ifname=IfName("eth0"), pod=pod, failure=failure, final=True)
    return replace(event, data=failed)


def delete_rows(url: str) -> None:
    """Delete all rows of the projection in the database at *url*, which takes a tenth of making a database."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("; ".join(f"DELETE FROM {table.name}" for table in metadata.sorted_tables))


@st.composite
def nonsense(draw: st.DrawFn) -> list[Event]:
    """Draw event sequences that are cut, mixed, repeated and assigned to other sandboxes."""
    node = Node()
    sandboxes = ["a" * 64, "b" * 64, "c" * 64]
    pods = [Pod("d", "p", "u1"), Pod("d", "p", "u2"), Pod("", "", "")]
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 6))):
        sandbox, pod = draw(st.sampled_from(sandboxes)), draw(st.sampled_from(pods))
        kind = draw(st.sampled_from(["attach", "fail", "detach", "start", "lone", "drift", "leak", "unknown"]))
        if kind == "attach":
            part = list(node.attach(sandbox, pod))
        elif kind == "fail":
            part = list(node.attach(sandbox, pod, fails_at=draw(st.integers(0, 1))))
        elif kind == "detach":
            part = list(node.detach(sandbox, pod, fails=draw(st.booleans())))
        elif kind == "start":
            part = [node.start()]
        elif kind == "drift":
            part = list(node.drift(sandbox, pod, ends=draw(st.sampled_from(["", "repaired", "failed"]))))
        elif kind == "leak":
            part = list(node.leak(sandbox, ends=draw(st.sampled_from(["", "reclaimed", "failed", "gone"]))))
        elif kind == "lone":
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
