"""The store has the history of drift, leaks, addresses and network versions."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from events.schema import (
    AttachPlanned,
    Event,
    IfName,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    NetworkName,
    Phase,
    Pod,
)
from reconciler.projection.store import Store
from tests.support.reconciler.projecting import project
from tests.support.reconciler.rows import folded, stored_in
from tests.support.stories.folded import numbered
from tests.support.stories.node import Node
from tests.support.stories.values import failure_of


def test_drifting_lists_sandboxes_until_repair_or_detach(database: str) -> None:
    node, pod = Node(), Pod("d", "p", "u")
    attached = [*node.attach("a" * 64, pod), *node.attach("b" * 64, pod), *node.attach("c" * 64, pod)]
    drifted = [
        *node.drift("b" * 64, pod, ends="failed"),
        *node.drift("a" * 64, pod, ends="repaired"),
        *node.drift("c" * 64, pod),
    ]
    (asked, *_) = node.detach("c" * 64, pod)
    events = numbered([*attached, *drifted, asked])
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
    events = numbered([*before, *after])
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
    events = numbered([node.start(), *node.leak("a" * 64), *node.drift("b" * 64, Pod())])
    project(database, events, [3])
    (row,) = (dict(row) for row in stored_in(database)["nodes"])
    assert (row["epoch"], row["command"]) == (2, 8)
    assert [dict(row)["type"] for row in stored_in(database)["pending"]] == ["ReclaimRequested", "RepairRequested"]


def test_holders_returns_the_holder_at_any_time(database: str) -> None:
    node, first, second = Node(), Pod("d", "first", "u1"), Pod("d", "second", "u2")
    one, other = "ab" * 32, "ba" * 32  # with the same addresses
    before = [*node.attach(one, first), *node.detach(one, first, fails=True)]
    events = numbered([*before, *node.detach(one, first), *node.attach(other, second)])
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
    events = numbered(
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
    events = numbered([*drift, *node.drift("a" * 64, pod, ends="failed"), *node.leak("b" * 64, ends="reclaimed")])
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
    events = numbered([*begun, detached, node.event(failure, sandbox, begun[0].id)])
    project(database, events)
    assert stored_in(database) == folded(events)
    spans = [(dict(row)["sequence"], dict(row)["until_sequence"]) for row in stored_in(database)["addresses"]]
    assert sorted(spans) == [(3, 4), (5, None)]
