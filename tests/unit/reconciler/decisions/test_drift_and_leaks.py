"""Drift and leaks of one node, decided together, for any events in any order.

No live address is released, every dead one finally is, and drift is repaired: the real fold, the real judgement of
leaks, and the real decisions about both, against a model of the node.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from events.fold import Leaked, Sandbox, SandboxKey, SandboxPhase, State
from events.schema import (
    ContainerId,
    Data,
    DetachCompleted,
    DetachRequested,
    Drift,
    DriftKind,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    ErrorClass,
    Event,
    EventId,
    Failure,
    IfName,
    InterfaceDetached,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NetworkName,
    Phase,
    Pod,
    RequestId,
    Stored,
)
from nodeworker.leaks.judge import Facts, Inventory, judge
from reconciler.decisions import leaks
from reconciler.decisions.drift import COMMAND_TIMEOUT, RepairOrder, RepairSchedule
from reconciler.decisions.leaks import LastReclaim, LeakKey, Reclaim
from tests.support.stories.node import Node
from tests.support.stories.values import ETH0, NETWORKS

BOXES = [f"{letter}" * 64 for letter in "abcd"]
BOOT = "5d1e5a6e-0000-4000-8000-000000000001"  # the boot of the sandboxes
WRONG = [
    Drift(kind=kind, network=NetworkName(NETWORKS[place]), ifname=IfName(ifname), expected=kind.value)
    for kind in (DriftKind.LINK_MISSING, DriftKind.ADDRESS_MISSING, DriftKind.ROUTE_MISSING)
    for place, ifname in enumerate(("eth0", "net1"))
]


class Box:
    """The actual state of a pod's sandbox."""

    def __init__(self) -> None:
        self.namespace = True
        self.runtime = "running"
        """``ended``, or empty: unknown."""
        self.address = True
        """True if its addresses are reserved."""
        self.wrong: set[Drift] = set()

    @property
    def alive(self) -> bool:
        return self.namespace or bool(self.runtime)


class Together(RuleBasedStateMachine):
    """A node, its worker, and the reconciler; commands wait until the worker takes them, or are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.node = Node()
        self.state = State()
        self.boxes: dict[str, Box] = {}
        self.first_seen: dict[str, float] = {}
        self.orders: list[RepairOrder] = []
        self.reclaims: list[tuple[Reclaim, EventId]] = []
        self.plugins_work = True
        self.failed: set[str] = set()
        """Sandboxes with a failed repair, which may be given up."""
        self.violations: list[str] = []
        self.restart_reconciler()

    # --- the ledger ---

    def say(self, data: Data, box: str, cause: str = "") -> Event:
        event = self.node.event(data, box, cause)
        self.append(event)
        return event

    def append(self, event: Event) -> None:
        """Append *event*, and pass it to the reconciler's decisions."""
        before = set(self.state.leaks)
        sandbox = self.state.apply(Stored(self.state.sequence + 1, event))
        self.asked = leaks.without_freed(self.asked, (LeakKey(*key) for key in before - set(self.state.leaks)))
        if sandbox is None:
            return
        match event.data:
            case DriftObserved():
                self.repairs.observed(sandbox, event.at, self.now)
            case DriftRepaired():
                self.repairs.repaired(sandbox, self.now)
            case DriftRepairFailed(failure=failure):
                self.repairs.failed(sandbox, failure, self.now)
            case DetachRequested():
                self.repairs.forget(sandbox.key)
            case _:
                pass

    def recorded(self, box: str) -> Sandbox | None:
        return self.state.sandboxes.get(SandboxKey(ContainerId(box), ETH0))

    def open_leaks(self) -> dict[LeakKey, Leaked]:
        return {LeakKey(*key): leaked for key, leaked in self.state.leaks.items()}

    # --- what happens ---

    @rule(box=st.sampled_from(BOXES))
    def add(self, box: str) -> None:
        if box not in self.boxes:
            self.boxes[box] = Box()
            for event in self.node.attach(box, Pod("shop", f"web-{box[0]}", "u")):
                self.append(event)

    @rule(box=st.sampled_from(BOXES))
    def delete(self, box: str) -> None:
        if box in self.boxes and self.recorded(box) is not None:
            self.detach(box)
            self.boxes[box].runtime, self.boxes[box].namespace = "", False

    def detach(self, box: str) -> None:
        asked = self.say(DetachRequested(request=RequestId("del"), ifname=ETH0), box)
        for ifname, network in (("net1", NETWORKS[1]), ("eth0", NETWORKS[0])):
            self.say(InterfaceDetached(network=NetworkName(network), ifname=IfName(ifname)), box, asked.id)
        self.say(DetachCompleted(request=RequestId("del"), ifname=ETH0), box, asked.id)
        self.boxes[box].address, self.boxes[box].wrong = False, set()

    @rule(box=st.sampled_from(BOXES), wrong=st.sets(st.sampled_from(WRONG), max_size=3))
    def change(self, box: str, wrong: set[Drift]) -> None:
        if box in self.boxes and self.boxes[box].namespace and self.boxes[box].address:
            self.boxes[box].wrong = set(wrong)

    @rule(box=st.sampled_from(BOXES))
    def lose_namespace(self, box: str) -> None:
        if box in self.boxes:
            self.boxes[box].namespace = False

    @rule(box=st.sampled_from(BOXES), state=st.sampled_from(["running", "ended", ""]))
    def runtime_says(self, box: str, state: str) -> None:
        if box in self.boxes and self.boxes[box].alive:  # nothing that has ended comes back
            self.boxes[box].runtime = state

    @rule()
    def plugins_fail_or_work(self) -> None:
        self.plugins_work = not self.plugins_work

    @rule(seconds=st.sampled_from([0.1, 2.5, 20.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart_reconciler(self) -> None:
        self.repairs = RepairSchedule(lambda _: "repair")
        self.asked: dict[LeakKey, LastReclaim] = {}
        for sandbox in self.state.sandboxes.values():
            if sandbox.drifts:
                self.repairs.observed(sandbox, "2026-01-01T00:00:00.000000000Z", self.now)

    @precondition(lambda self: self.orders or self.reclaims)
    @rule()
    def lose_commands(self) -> None:
        self.orders.clear()
        self.reclaims.clear()

    # --- the worker ---

    def seen(self, box: str) -> tuple[Drift, ...]:
        return tuple(drift for drift in WRONG if drift in self.boxes[box].wrong)

    @rule()
    def compare(self) -> None:
        for box, real in self.boxes.items():
            sandbox = self.recorded(box)
            if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or not real.namespace:
                continue
            if self.seen(box) != sandbox.drifts:
                self.say(DriftObserved(ifname=ETH0, pod=sandbox.pod, drifts=self.seen(box)), box)

    def facts(self) -> Facts:
        running = frozenset(box for box, real in self.boxes.items() if real.runtime == "running")
        present = frozenset(box for box, real in self.boxes.items() if real.runtime)
        held = tuple(box for box in self.state.sandboxes.values() if box.holds_resources)
        return Facts(
            boot_id=BOOT,
            now=self.now,
            booted=0.0,
            runtime=Inventory(present, running, "it"),
            sandboxes=held,
            live=frozenset(box.key.container_id for box in held),
            lost={box.key: "gone" for box in held if not self.boxes[box.key.container_id].namespace},
        )

    @rule()
    def look(self) -> None:
        found, known = judge(self.facts()).findings, self.open_leaks()
        for leak_id, finding in found.items():
            before = known.get(LeakKey(self.node.node, leak_id))
            same = before is not None and (before.observed.leak, before.observed.judged) == (
                finding.leak,
                finding.judged,
            )
            if before is not None and same:
                if before.observed.sightings > 1 or self.now - self.first_seen[leak_id] < 2.0:
                    continue
            else:
                self.first_seen[leak_id] = self.now
            observed = LeakObserved(leak=finding.leak, judged=finding.judged, sightings=2 if same else 1)
            self.say(observed, finding.leak.sandbox)
        for key, leaked in known.items():
            if key.leak not in found:
                self.say(LeakObserved(leak=leaked.observed.leak, gone=True), leaked.observed.leak.sandbox)

    @rule()
    def take_commands(self) -> None:
        orders, self.orders = self.orders, []
        for order in orders:
            self.repair(order)
        reclaims, self.reclaims = self.reclaims, []
        for reclaim, command in reclaims:
            self.reclaim(reclaim, command)

    def repair(self, order: RepairOrder) -> None:
        """Act like ``nodeworker.drift.repair``: only commands for the newest observation are valid."""
        box = order.sandbox.container_id
        sandbox, real = self.recorded(box), self.boxes[box]
        void = sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.drift != order.cause
        if void:
            self.refuse_repair(box, ErrorClass.EVIDENCE_CHANGED, sandbox.drifts if sandbox is not None else ())
            return
        if not real.namespace:
            self.refuse_repair(box, ErrorClass.NAMESPACE_INVALID, order.drifts)
            return
        if not real.address:
            self.violations.append(f"{box[0]} was repaired after its address was freed")
        if not self.plugins_work:
            self.failed.add(box)
            self.refuse_repair(box, ErrorClass.PLUGIN_FAILED, self.seen(box))
            return
        real.wrong -= set(order.drifts)
        done = DriftRepaired(request=RequestId("r"), ifname=ETH0, drifts=order.drifts, left=self.seen(box))
        self.say(done, box)

    def refuse_repair(self, box: str, error_class: ErrorClass, left: tuple[Drift, ...]) -> None:
        failure = Failure(error_class=error_class, phase=Phase.REPAIR, message="no", code=100)
        self.say(DriftRepairFailed(request=RequestId("r"), ifname=ETH0, failure=failure, left=left), box)

    def reclaim(self, reclaim: Reclaim, command: EventId) -> None:
        """Act like ``nodeworker.leaks.reclaimer``: observe once more, and release what is judged as before."""
        box, leaked = reclaim.leak.holder, self.open_leaks().get(LeakKey(reclaim.node, reclaim.leak.id))
        finding = judge(self.facts()).findings.get(reclaim.leak.id)
        void = leaked is None or leaked.event != reclaim.cause or finding is None
        if void or finding is None or leaked is None or finding.judged != leaked.observed.judged:
            self.refuse_reclaim(reclaim, command, ErrorClass.EVIDENCE_CHANGED)
            return
        if not self.plugins_work:
            self.refuse_reclaim(reclaim, command, ErrorClass.PLUGIN_FAILED)
            return
        if self.boxes[box].alive:
            self.violations.append(f"{box[0]} is alive, and its address was freed")
        self.detach(box)
        self.say(LeakReclaimed(request=RequestId(command), leak=reclaim.leak), reclaim.leak.sandbox)

    def refuse_reclaim(self, reclaim: Reclaim, command: EventId, error_class: ErrorClass) -> None:
        failure = Failure(error_class=error_class, phase=Phase.RECLAIM, message="no", code=100)
        data = LeakReclaimFailed(request=RequestId(command), leak=reclaim.leak, failure=failure)
        self.say(data, reclaim.leak.sandbox)
        key = LeakKey(reclaim.node, reclaim.leak.id)
        if (last := self.asked.get(key)) is not None and last.command == command:
            self.asked[key] = leaks.after_refusal(last, error_class, self.now)

    # --- the reconciler ---

    @rule()
    def decide(self) -> None:
        orders, _ = self.repairs.due(self.now)
        self.orders += orders
        for reclaim in leaks.reclaims(self.open_leaks(), self.asked, self.now):
            command = EventId(f"c{self.state.sequence}-{len(self.reclaims)}")
            self.asked[LeakKey(reclaim.node, reclaim.leak.id)] = leaks.after_sending(
                self.asked, reclaim, command, self.now
            )
            self.reclaims.append((reclaim, command))

    # --- what must hold ---

    @invariant()
    def nothing_that_lives_was_freed(self) -> None:
        assert not self.violations
        for box, real in self.boxes.items():
            assert real.address or self.recorded(box) is None

    def settle(self) -> None:
        """Run all parts without further events."""
        for _ in range(12):
            self.compare()
            self.look()
            self.decide()
            self.take_commands()
            self.now += max(COMMAND_TIMEOUT, leaks.COMMAND_TIMEOUT) + 400.0

    def teardown(self) -> None:
        """Finally, dead addresses are released and live ones are as recorded; given-up ones after the next start."""
        self.plugins_work = True
        self.settle()
        self.assert_settled(self.boxes.keys() - self.failed)
        self.restart_reconciler()
        self.settle()
        self.assert_settled(self.boxes)
        self.decide()
        assert not self.orders
        assert not self.reclaims

    def assert_settled(self, boxes: Iterable[str]) -> None:
        assert not self.violations
        for box in boxes:
            real = self.boxes[box]
            sandbox = self.recorded(box)
            if not real.alive:
                assert sandbox is None
                assert not real.address
            elif sandbox is not None:
                assert real.address
                assert not real.namespace or (not real.wrong and not sandbox.drifts)
        assert not self.open_leaks()


TestTogether = Together.TestCase
TestTogether.settings = settings(max_examples=150, stateful_step_count=40)
