from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.schema import (
    NO_NODE,
    AttachCompleted,
    AttachWarning,
    ContainerId,
    Data,
    DetachRequested,
    Drift,
    DriftKind,
    DriftObserved,
    DriftRepaired,
    ErrorClass,
    Event,
    Failure,
    GcCompleted,
    GcRequested,
    IfName,
    InterfaceAttached,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    NetworkName,
    NodeCompared,
    NodeName,
    Phase,
    Pod,
    ReconcilerElected,
    RepairRequested,
    RequestId,
    StatusPublished,
    StatusPublishFailed,
    Stored,
    Unknown,
    WarningKind,
    WorkerStarted,
    WorkerStopped,
)
from reconciler.history.timeline import Line, Timeline, printable
from reconciler.history.words import words
from tests.support.stories.node import Node, busy_day
from tests.support.stories.values import ETH0, NETWORKS, SECRET

POD = Pod("shop", "web-0", "uid")


def shown(line: Line) -> str:
    """Return *line* in columns of a fixed width."""
    at, since, node, sandbox, words = line.cells
    return f"{at}  {since:>12}  {node}  {sandbox:<12}  {words}"


def lines_of(events: Iterable[Event]) -> list[str]:
    timeline = Timeline()
    return [shown(line) for sequence, event in enumerate(events, 1) for line in timeline.lines(Stored(sequence, event))]


def test_an_attach_and_a_detach() -> None:
    node = Node()
    events = [*node.attach("a" * 64, POD), *node.detach("a" * 64, POD)]
    expected_lines = """
2025-11-24T16:00:00.001Z                attach of shop/web-0 requested, interface eth0
2025-11-24T16:00:00.002Z       +1.2 ms  planned: eth0 on k8s-pod-network (bridge, default), net1 on default/storage (macvlan)
2025-11-24T16:00:00.003Z       +2.5 ms  eth0 attached to k8s-pod-network: 10.0.0.208/24 via 10.0.0.1 (bridge 3.5 ms)
2025-11-24T16:00:00.005Z       +3.8 ms  net1 attached to default/storage: 10.1.0.208/24 via 10.1.0.1 (macvlan 3.5 ms)
2025-11-24T16:00:00.006Z       +5.0 ms  attached: eth0 and all that was planned with it, in 20.0 ms
2025-11-24T16:00:00.007Z                detach of shop/web-0 requested, interface eth0
2025-11-24T16:00:00.008Z       +1.2 ms  net1 detached from default/storage (macvlan 1.5 ms)
2025-11-24T16:00:00.010Z       +2.5 ms  eth0 detached from k8s-pod-network (bridge 1.5 ms)
2025-11-24T16:00:00.011Z       +3.8 ms  detached: eth0 and all that was planned with it, in 10.0 ms
"""  # noqa: E501
    lines = lines_of(events)
    assert {line[40:62] for line in lines} == {"node-1  aaaaaaaaaaaa  "}
    assert [line[:40] + line[62:] for line in lines] == expected_lines.strip().splitlines()


def test_effects_inside_an_outcome_come_before_it() -> None:
    node, pod = Node(), "a" * 64
    apart = [*node.attach(pod, POD), *node.detach(pod, POD)]
    carried = [*node.attach(pod, POD, carried=True), *node.detach(pod, POD, carried=True)]
    assert len(carried) == len(apart) - 4
    one, other = ([line[62:] for line in lines_of(events)] for events in (apart, carried))
    assert one == other


def test_work_continued_by_a_later_worker_is_marked() -> None:
    requested, planned, *rest = Node().attach("a" * 64, POD)
    lines = lines_of([requested, planned, *(replace(event, epoch=event.epoch + 1) for event in rest)])
    continued = f"[by the worker of epoch {requested.epoch + 1}, after the worker of epoch {requested.epoch} ended]"
    assert [continued in line for line in lines] == [False, False, *(True for _ in rest)]


def test_failures_show_message_and_class() -> None:
    node, timeline = Node(), Timeline()
    events = [*node.attach("a" * 64, POD, fails_at=1), *node.detach("a" * 64, POD, fails=True)]
    lines = [line for sequence, event in enumerate(events, 1) for line in timeline.lines(Stored(sequence, event))]
    why = "network default/storage: plugin macvlan failed: no free address [plugin_failed]"
    assert [line.words for line in lines if line.failed] == [
        f"net1 NOT attached to default/storage (macvlan 19.0 ms): {why}",
        f"attach FAILED after 60.0 ms: {why}",
        f"net1 NOT detached from default/storage (20.0 ms): {why}",
        f"detach FAILED after 30.0 ms: {why}; left on the node: net1",
    ]


R = RequestId("r")
UNKNOWN = Unknown(type="PortOpened", version=3, data=msgspec.Raw(b"{}"))
OLD_RESULT = '{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/8"}}'


MOVED = Drift(
    kind=DriftKind.MTU_CHANGED,
    network=NetworkName("shop/n"),
    ifname=IfName("net1"),
    expected="1500",
    found="1400",
)
HELD = Leak(
    id=LeakId("address/n/10.0.0.2"),
    kind=LeakKind.SANDBOX_GONE,
    what="10.0.0.2",
    holder=ContainerId("abcdef" * 6),
    network="shop/n",
)
HELD_IN_WORDS = "10.0.0.2 of shop/n, held by abcdefabcdef (sandbox_gone)"


WARNING = AttachWarning(kind=WarningKind.DEVICE_MISSING, network=NetworkName("n"), ifname=ETH0, message="look at it")


def attached(result: str) -> InterfaceAttached:
    return InterfaceAttached(network=NetworkName("n"), ifname=IfName("net1"), result=result, seconds=0.001)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            DetachRequested(request=R, ifname=ETH0, spooled=True),
            "detach requested, interface eth0, left in the spool while no worker answered",
        ),
        (
            DetachRequested(request=R, ifname=ETH0, retry=1),
            "detach requested, interface eth0, by the worker itself after 1 attempt",
        ),
        (GcRequested(request=R, config="{}"), "garbage collection requested with no list of valid attachments"),
        (
            GcRequested(request=R, config="{}", valid=(("a", "eth0"),)),
            "garbage collection requested with 1 valid attachment",
        ),
        (
            GcCompleted(request=R, detached=(("a", "eth0"), ("b", "eth0"))),
            "garbage collection done in 0.0 ms: 2 attachments detached",
        ),
        (
            WorkerStarted(version="1.2", pid=7, pending=2, spooled=1),
            "worker 1.2 started as epoch 1, process 7: 2 open requests, 1 spooled detach",
        ),
        (WorkerStopped(reason="SIGTERM"), "worker stopped: SIGTERM"),
        (
            DriftObserved(ifname=ETH0, pod=Pod("shop", "web"), drifts=(MOVED,)),
            "drift of shop/web: net1 of shop/n mtu_changed, expected 1500, found 1400",
        ),
        (DriftObserved(ifname=ETH0, pod=Pod("shop", "web")), "no drift of shop/web any more"),
        (
            RepairRequested(request=R, ifname=ETH0, drifts=(MOVED,), by="alice"),
            "repair requested by alice: net1 of shop/n mtu_changed, expected 1500, found 1400",
        ),
        (
            DriftRepaired(request=R, ifname=ETH0, drifts=(MOVED,), seconds=0.002),
            "repaired in 2.0 ms: net1 of shop/n mtu_changed, expected 1500, found 1400",
        ),
        (
            LeakObserved(leak=HELD, evidence=("the namespace is gone", "the runtime does not know it"), sightings=2),
            f"leak: {HELD_IN_WORDS}, seen 2 times: the namespace is gone; the runtime does not know it",
        ),
        (
            LeakObserved(leak=HELD, gone=True),
            "no leak any more: 10.0.0.2 of shop/n, held by abcdefabcdef (sandbox_gone)",
        ),
        (
            LeakReclaimed(request=R, leak=HELD),
            "reclaimed in 0.0 ms: 10.0.0.2 of shop/n, held by abcdefabcdef (sandbox_gone)",
        ),
        (
            NodeCompared(request=R, sandboxes=2, drifted=1, unseen=("the runtime: no socket",)),
            "compared with the ledger in 0.0 ms: 2 sandboxes, 1 with drift, 0 leaks; not seen: the runtime: no socket",
        ),
        (ReconcilerElected(replica="r-1"), "reconciler r-1 took over"),
        (UNKNOWN, "PortOpened version 3, which this version of Plumbline does not know"),
        (
            AttachCompleted(request=R, ifname=ETH0, result="", warnings=(WARNING, WARNING)),
            "attached: eth0 and all that was planned with it, in 0.0 ms; warning: look at it; warning: look at it",
        ),
        (attached("torn"), "net1 attached to n, with a result that can't be read (1.0 ms)"),
        (attached("{}"), "net1 attached to n, without address (1.0 ms)"),
        (attached(OLD_RESULT), "net1 attached to n: 10.0.0.2/8 (1.0 ms)"),
    ],
)
def test_other_events_in_words(data: Data, said: str) -> None:
    assert words(Node().event(data)) == said


def test_a_publication_shows_the_node_of_the_pod() -> None:
    node, failure = Node(), Failure(error_class=ErrorClass.API_REFUSED, phase=Phase.PUBLISH, message="no.", code=0)
    events = [
        replace(node.event(data, "a" * 64, epoch=0), node=NO_NODE)
        for data in (
            StatusPublishFailed(node=NodeName("node-7"), ifname=ETH0, pod=POD, failure=failure),
            StatusPublished(node=NodeName("node-7"), ifname=ETH0, pod=POD, text="[]", seconds=0.0031),
        )
    ]
    failed, published = (line[40:] for line in lines_of(events))
    who = "node-7  aaaaaaaaaaaa  network-status of shop/web-0"
    assert failed == f"{who} NOT published: no. [api_refused]; it is tried again"
    assert published == f"{who} published, 3.1 ms after it was due"


@pytest.mark.parametrize(
    ("found", "said"),
    [("", "network-status was removed"), ('[\n  {"name": "x"}\n]', 'network-status was changed to [ {"name": "x"} ]')],
)
def test_a_status_change_shows_only_the_found_text(found: str, said: str) -> None:
    drift = Drift(kind=DriftKind.STATUS_CHANGED, network=NetworkName(""), ifname=IfName(""), expected="[]", found=found)
    data = DriftObserved(ifname=ETH0, pod=POD, node=NodeName("node-7"), drifts=(drift,))
    assert words(Node().event(data)) == f"drift of shop/web-0: {said}"


def test_no_configuration_and_no_plugin_input_is_printed() -> None:
    events = list(busy_day(30))
    assert any(SECRET in str(event) for event in events)
    assert SECRET not in "\n".join(lines_of(events))


def test_a_secret_in_a_plugins_message_is_redacted() -> None:
    node = Node()
    *_, failed = node.attach("a" * 64, POD, fails_at=0)
    message = 'cannot parse {"type": "rest", "password": "hunter2"}'
    data = replace(failed.data, failure=replace(failed.data.failure, message=message))  # type: ignore[union-attr]
    assert words(replace(failed, data=data)).endswith(
        'cannot parse {"type": "rest", "password": (redacted)} [plugin_failed]'
    )


@given(st.text())
def test_any_name_stays_on_its_line_without_control_characters(name: str) -> None:
    line = lines_of([Node().event(WorkerStopped(reason=name))])[0]
    assert line.splitlines() == [line]
    assert line.isprintable()


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb c\\x202e"


def test_an_outcome_without_known_request_has_no_relative_time() -> None:
    node = Node()
    (line,) = Timeline().lines(
        Stored(9, node.event(AttachCompleted(request=RequestId("r"), ifname=ETH0, result=""), "a", "x"))
    )
    assert line.since_request is None


def test_a_plan_with_unreadable_plugins_is_shown() -> None:
    planned = list(Node().attach("a" * 64, POD, NETWORKS[:1]))[1]
    attachment = replace(planned.data.attachments[0], plugins=("{", json.dumps({"type": "tuning"})))  # type: ignore[union-attr]
    assert "(?+tuning, default)" in words(replace(planned, data=replace(planned.data, attachments=(attachment,))))  # type: ignore[arg-type]
