"""Decisions about drift: which repairs, in which order, how often, and when to give up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import (
    ContainerId,
    Drift,
    DriftKind,
    ErrorClass,
    EventId,
    Failure,
    IfName,
    NetworkName,
    NodeName,
    Phase,
    PlannedAttachment,
)
from reconciler.decisions import drift as module
from reconciler.decisions.drift import (
    COMMAND_TIMEOUT,
    FREE_REPAIRS,
    MAX_FAILURES,
    NODE_BURST,
    NODE_RATE,
    RepairSchedule,
    repairs,
)

NETWORKS = ("default", "ns/first", "ns/second")
IFNAMES = ("eth0", "net1", "net2")
AT = "2026-01-01T00:00:00.000000000Z"
KINDS = [kind for kind in DriftKind if kind not in {DriftKind.STATUS_CHANGED, DriftKind.UNKNOWN}]


def always(_: str) -> str:
    return "repair"


def drift(kind: DriftKind = DriftKind.LINK_DOWN, place: int = 0) -> Drift:
    return Drift(kind=kind, network=NetworkName(NETWORKS[place]), ifname=IfName(IFNAMES[place]))


def sandbox(*drifts: Drift, number: int = 0, cause: str = "seen") -> Sandbox:
    attachments = tuple(
        Attachment(
            plan=PlannedAttachment(
                network=NetworkName(network), ifname=IfName(ifname), cni_name="n", cni_version="1.0.0", plugins=("{}",)
            ),
            phase=AttachmentPhase.ATTACHED,
        )
        for network, ifname in zip(NETWORKS, IFNAMES, strict=True)
    )
    return Sandbox(
        key=SandboxKey(ContainerId(f"box-{number}"), IfName("eth0")),
        node=NodeName("node-1"),
        phase=SandboxPhase.ATTACHED,
        attachments=attachments,
        drifts=drifts,
        drift=EventId(cause if drifts else ""),
    )


def failure(error_class: ErrorClass = ErrorClass.PLUGIN_FAILED) -> Failure:
    return Failure(error_class=error_class, phase=Phase.REPAIR, message="no", code=100)


DRIFTS = st.lists(
    st.builds(drift, st.sampled_from(list(DriftKind)), st.integers(0, len(NETWORKS) - 1)), unique=True, max_size=12
)
POLICIES = st.fixed_dictionaries({network: st.sampled_from(["repair", "observe", "off"]) for network in NETWORKS})


@given(DRIFTS, POLICIES)
def test_only_networks_with_policy_repair_are_repaired(drifts: Sequence[Drift], policies: dict[str, str]) -> None:
    wanted = repairs(sandbox(*drifts), lambda network: policies[network])
    allowed = {each for each in drifts if policies[each.network] == "repair" and each.kind in KINDS}
    assert set(wanted) == allowed
    assert len(wanted) == len(allowed)


@given(DRIFTS)
def test_repairs_come_in_plan_order_and_dependencies_first(drifts: Sequence[Drift]) -> None:
    wanted = repairs(sandbox(*drifts), always)
    places = [IFNAMES.index(each.ifname) for each in wanted]
    assert places == sorted(places)
    for name in IFNAMES:
        ranks = [module._RANKS[each.kind] for each in wanted if each.ifname == name]
        assert ranks == sorted(ranks)


def test_drift_of_an_unplanned_interface_is_not_repaired() -> None:
    stranger = Drift(kind=DriftKind.LINK_DOWN, network=NetworkName("default"), ifname=IfName("eth7"))
    assert not repairs(sandbox(stranger), always)


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.integers(0, 80),
            st.sampled_from(["drift", "other", "repaired", "failed", "void", "gone"]),
        ),
        max_size=120,
    )
)
def test_orders_are_limited_and_rest_on_the_newest_observation(observations: list[tuple[float, int, str]]) -> None:
    now = 0.0
    judge = RepairSchedule(always)
    boxes: dict[int, Sandbox] = {}
    sent: list[tuple[float, SandboxKey]] = []
    under_way: set[SandboxKey] = set()
    for count, (pause, number, what) in enumerate(observations):
        now += pause
        box = boxes.get(number, sandbox(number=number))
        match what:
            case "drift" | "other":
                kind = DriftKind.LINK_DOWN if what == "drift" else DriftKind.MTU_CHANGED
                box = sandbox(drift(kind), number=number, cause=f"seen-{count}")
                judge.observed(box, AT, now)
                under_way.discard(box.key)
            case "repaired":
                box = sandbox(number=number)
                judge.repaired(box, now)
                under_way.discard(box.key)
            case "failed":
                judge.failed(box, failure(), now)
                under_way.discard(box.key)
            case "void":
                judge.failed(box, failure(ErrorClass.EVIDENCE_CHANGED), now)
            case _:
                box = sandbox(number=number)
                judge.forget(box.key)
                under_way.discard(box.key)
        boxes[number] = box
        orders, wait = judge.due(now)
        assert wait is None or wait > 0
        for order in orders:
            assert order.cause == box.drift if order.sandbox == box.key else order.cause
            assert order.drifts
            assert order.sandbox not in under_way or pause > COMMAND_TIMEOUT
            sent.append((now, order.sandbox))
            under_way.add(order.sandbox)
    for start, _ in sent:
        in_a_second = [at for at, _ in sent if start <= at < start + 1]
        assert len(in_a_second) <= NODE_BURST + NODE_RATE


@given(st.integers(1, 200))
def test_the_rate_limit_of_a_node_delays_but_drops_nothing(count: int) -> None:
    judge = RepairSchedule(always)
    for number in range(count):
        judge.observed(sandbox(drift(), number=number), AT, 0.0)
    now, done = 0.0, set[SandboxKey]()
    while True:
        orders, wait = judge.due(now)
        assert len(orders) <= NODE_BURST
        for order in orders:
            assert order.sandbox not in done
            done.add(order.sandbox)
            judge.repaired(sandbox(number=int(order.sandbox.container_id.removeprefix("box-"))), now)
        if wait is None:
            break
        now += wait + 1e-6
    assert len(done) == count
    assert now <= max(0, count - NODE_BURST) / NODE_RATE + 0.1
    assert not judge.open


def test_recurring_drift_is_repaired_with_growing_backoff() -> None:
    judge, now = RepairSchedule(always), 0.0
    times: list[float] = []
    for count in range(12):
        judge.observed(sandbox(drift(), cause=f"seen-{count}"), AT, now)
        orders, wait = judge.due(now)
        if not orders:
            assert wait is not None
            now += wait
            orders, _ = judge.due(now)
        assert len(orders) == 1
        times.append(now)
        judge.repaired(sandbox(), now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[: FREE_REPAIRS - 1] == [0.0] * (FREE_REPAIRS - 1)
    assert pauses[FREE_REPAIRS - 1 :] == sorted(pauses[FREE_REPAIRS - 1 :])
    assert pauses[-1] > 100
    assert max(pauses) <= module.MAX_BACKOFF


def test_after_a_quiet_time_repairs_are_immediate_again() -> None:
    judge, now = RepairSchedule(always), 0.0
    for count in range(6):
        judge.observed(sandbox(drift(), cause=f"seen-{count}"), AT, now)
        orders, wait = judge.due(now)
        now += wait or 0.0
        assert orders or judge.due(now)[0]
        judge.repaired(sandbox(), now)
    now += module.MAX_BACKOFF + module.QUIET_TIME
    judge.observed(sandbox(drift(), cause="late"), AT, now)
    assert judge.due(now)[0]


def fail_until_given_up(judge: RepairSchedule, error_class: ErrorClass) -> int:
    now, attempts = 0.0, 0
    while True:
        orders, wait = judge.due(now)
        if orders:
            attempts += 1
            if judge.failed(sandbox(drift()), failure(error_class), now):
                return attempts
        elif wait is None:
            pytest.fail("it was never given up")
        else:
            now += wait


def test_repeated_failures_are_given_up_until_the_drift_changes() -> None:
    judge = RepairSchedule(always)
    judge.observed(sandbox(drift()), AT, 0.0)
    assert fail_until_given_up(judge, ErrorClass.PLUGIN_FAILED) == MAX_FAILURES
    assert judge.due(1e9) == ([], None)
    assert judge.open == 1
    judge.observed(sandbox(drift(), cause="again"), AT, 1e9)
    assert judge.due(1e9) == ([], None)
    judge.observed(sandbox(drift(), drift(DriftKind.MTU_CHANGED), cause="more"), AT, 1e9)
    (order,), _ = judge.due(1e9)
    assert (order.cause, len(order.drifts)) == ("more", 2)


@pytest.mark.parametrize("error_class", [ErrorClass.NOT_REPAIRABLE, ErrorClass.NAMESPACE_INVALID])
def test_an_impossible_repair_is_requested_once(error_class: ErrorClass) -> None:
    judge = RepairSchedule(always)
    judge.observed(sandbox(drift()), AT, 0.0)
    assert fail_until_given_up(judge, error_class) == 1
    assert judge.due(1e9) == ([], None)


def test_an_order_without_answer_is_repeated_after_the_timeout() -> None:
    judge = RepairSchedule(always)
    judge.observed(sandbox(drift()), AT, 0.0)
    assert len(judge.due(0.0)[0]) == 1
    assert judge.due(1.0) == ([], COMMAND_TIMEOUT - 1.0)
    assert len(judge.due(COMMAND_TIMEOUT)[0]) == 1


def test_an_unsent_order_is_due_at_once() -> None:
    judge = RepairSchedule(always)
    judge.observed(sandbox(drift()), AT, 0.0)
    (order,), _ = judge.due(0.0)
    judge.not_sent(order)
    assert judge.due(1.0)[0] == [order]


def test_observed_returns_only_new_drift() -> None:
    judge = RepairSchedule(always)
    down, mtu = drift(), drift(DriftKind.MTU_CHANGED)
    assert judge.observed(sandbox(down), AT, 0.0) == (down,)
    assert judge.observed(sandbox(down, mtu), AT, 0.0) == (mtu,)
    assert judge.observed(replace(sandbox(), drifts=()), AT, 0.0) == ()
    assert judge.observed(sandbox(down), AT, 0.0) == (down,)
