"""No address in use is freed, and every leaked one is: for any events in any order, with any source unavailable."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Leaked, Sandbox, SandboxKey, SandboxPhase
from events.schema import (
    ContainerId,
    ErrorClass,
    EventId,
    IfName,
    LeakKind,
    LeakObserved,
    NetworkName,
    NodeName,
    PlannedAttachment,
)
from nodeworker.leaks.judge import LONGEST_ADD, Facts, HeldFile, Inventory, Judgement, judge
from reconciler.decisions import leaks as decisions
from reconciler.decisions.leaks import LastReclaim, LeakKey

NODE = NodeName("node1")
NAMES = [f"{letter}" * 64 for letter in "abcdef"]
BOOT = "boot-"


def sandbox(container_id: str, *, boot: str = "boot-1", phase: SandboxPhase = SandboxPhase.ATTACHED) -> Sandbox:
    plan = PlannedAttachment(
        network=NetworkName("default/net"), ifname=IfName("eth0"), cni_name="net", cni_version="1.0.0", plugins=("{}",)
    )
    return Sandbox(
        key=SandboxKey(ContainerId(container_id), IfName("eth0")),
        node=NODE,
        phase=phase,
        netns=f"/run/netns/{container_id}",
        attachments=(Attachment(plan=plan, phase=AttachmentPhase.ATTACHED),),
        boot_id=boot,
        sequence=7,
    )


def facts(*boxes: Sandbox, runtime: Inventory | None = None, **more: Any) -> Facts:
    return Facts(boot_id="boot-1", now=10_000.0, booted=1.0, runtime=runtime, sandboxes=boxes, **more)


def known(*running: str, ended: tuple[str, ...] = ()) -> Inventory:
    return Inventory(frozenset({*running, *ended}), frozenset(running), "the runtime")


def kinds(judgement: Judgement) -> list[LeakKind]:
    return [finding.leak.kind for finding in judgement.findings.values()]


def test_a_sandbox_is_abandoned_when_neither_runtime_nor_kernel_has_it() -> None:
    box = sandbox(NAMES[0])
    lost = {box.key: "its namespace is gone"}
    assert kinds(judge(facts(box, runtime=known(), lost=lost))) == [LeakKind.SANDBOX_GONE]
    assert not judge(facts(box, runtime=known(ended=(NAMES[0],)), lost=lost)).findings
    assert not judge(facts(box, runtime=known())).findings
    assert not judge(facts(box, runtime=known(), lost=lost, busy={NAMES[0]})).findings
    assert not judge(facts(replace(box, waiting=(box,)), runtime=known(), lost=lost)).findings


def test_undecidable_leak_is_reported_as_such() -> None:
    box = sandbox(NAMES[0])
    judged = judge(facts(box, reason="it does not answer", lost={box.key: "gone"}))
    assert not judged.findings
    assert len(judged.undecided) == 1
    assert "it does not answer" in judged.unseen[0]


def test_reboot_ends_all_but_running_sandboxes() -> None:
    box = sandbox(NAMES[0], boot="boot-0")
    assert kinds(judge(facts(box, runtime=known(ended=(NAMES[0],))))) == [LeakKind.REBOOTED]
    assert not judge(facts(box, runtime=known(NAMES[0]))).findings
    assert not judge(facts(box, reason="down")).findings
    lost = {box.key: "gone"}
    assert not judge(facts(box, reason="down", lost=lost)).findings
    assert kinds(judge(facts(box, reason="none", absent=True, lost=lost))) == [LeakKind.REBOOTED]
    assert not judge(facts(box, reason="none", absent=True)).findings


def test_a_refused_detach_ends_with_the_namespace() -> None:
    box = sandbox(NAMES[0], phase=SandboxPhase.DETACH_FAILED)
    assert not judge(facts(box, runtime=known())).findings
    lost = {box.key: "gone"}
    assert kinds(judge(facts(box, runtime=known(ended=(NAMES[0],)), lost=lost))) == [LeakKind.DETACH_UNFINISHED]
    assert kinds(judge(facts(box, reason="none", absent=True, lost=lost))) == [LeakKind.DETACH_UNFINISHED]
    assert not judge(facts(box, runtime=known(NAMES[0]), lost=lost)).findings


def held(holder: str, changed: float, kind: LeakKind = LeakKind.ADDRESS_UNOWNED) -> HeldFile:
    return HeldFile(kind=kind, path="/n/10.0.0.1", what="10.0.0.1", holder=ContainerId(holder), changed=changed)


def test_address_leak_is_old_unknown_and_unused() -> None:
    old, young, before_boot = 10_000.0 - LONGEST_ADD - 1, 9_999.0, 0.5
    for changed, found in ((old, 1), (young, 0), (before_boot, 1)):
        assert len(judge(facts(runtime=known(), files=(held(NAMES[0], changed),))).findings) == found
    file = held(NAMES[0], old)
    assert not judge(facts(runtime=known(ended=(NAMES[0],)), files=(file,))).findings
    assert not judge(facts(runtime=known(), files=(file,), live={NAMES[0]})).findings
    assert not judge(facts(runtime=known(), files=(file,), in_use={"10.0.0.1"})).findings
    assert judge(facts(reason="none", absent=True, files=(file,))).undecided == {"file//n/10.0.0.1"}
    torn = held("", young, LeakKind.ADDRESS_TORN)
    assert judge(facts(reason="none", absent=True, files=(torn,))).findings
    assert not judge(facts(runtime=known(), files=(torn,), in_use={"10.0.0.1"})).findings


class _Pod:
    """The true state, whether or not any component knows it."""

    def __init__(self, boot: int) -> None:
        self.boot = boot
        self.namespace = True
        self.runtime = "running"
        self.busy = False

    def alive(self, boot: int) -> bool:
        return self.boot == boot and (self.namespace or self.runtime != "")


class Node(RuleBasedStateMachine):
    """A node, its worker's scans and the reconciler's decisions, with every event that may come in between."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = 1
        self.pods: dict[str, _Pod] = {}
        self.ledger: dict[str, Sandbox] = {}
        self.leaks: dict[LeakKey, Leaked] = {}
        self.asked: dict[LeakKey, LastReclaim] = {}
        self.first: dict[str, float] = {}
        self.answers = True
        self.sequence = 0
        self.now = 1000.0
        self.freed_alive: list[str] = []

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        if name in self.ledger:
            return
        self.pods[name] = _Pod(self.boot)
        self.ledger[name] = replace(sandbox(name, boot=f"{BOOT}{self.boot}"), sequence=self._next())

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if name in self.ledger:
            del self.ledger[name]

    @rule(name=st.sampled_from(NAMES))
    def lose_namespace(self, name: str) -> None:
        if name in self.pods:
            self.pods[name].namespace = False

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["running", "ended", ""]))
    def runtime_says(self, name: str, state: str) -> None:
        if name in self.pods and not (state == "running" and self.pods[name].boot != self.boot):
            self.pods[name].runtime = state

    @rule(name=st.sampled_from(NAMES))
    def refuse_detach(self, name: str) -> None:
        if name in self.ledger:
            box = self.ledger[name]
            self.ledger[name] = replace(box, phase=SandboxPhase.DETACH_FAILED, sequence=self._next())
            self.pods[name].runtime = self.pods[name].runtime and "ended"

    @rule(name=st.sampled_from(NAMES))
    def be_busy(self, name: str) -> None:
        if name in self.pods:
            self.pods[name].busy = not self.pods[name].busy

    @rule()
    def reboot(self) -> None:
        self.boot += 1
        for pod in self.pods.values():
            pod.namespace, pod.busy = False, False
            pod.runtime = pod.runtime and "ended"

    @rule()
    def hang_or_answer(self) -> None:
        self.answers = not self.answers

    @rule(seconds=st.sampled_from([0.1, 2.5, 10.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _facts(self) -> Facts:
        runtime = None
        if self.answers:
            running = frozenset(name for name, pod in self.pods.items() if pod.runtime == "running")
            runtime = Inventory(frozenset(name for name, pod in self.pods.items() if pod.runtime), running, "it")
        return Facts(
            boot_id=f"{BOOT}{self.boot}",
            now=self.now,
            booted=0.0,
            runtime=runtime,
            reason="" if self.answers else "it hangs",
            sandboxes=tuple(self.ledger.values()),
            live=frozenset(self.ledger),
            busy=frozenset(name for name, pod in self.pods.items() if pod.busy),
            lost={box.key: "gone" for name, box in self.ledger.items() if not self.pods[name].namespace},
        )

    @rule()
    def look(self) -> None:
        judgement = judge(self._facts())
        for leak_id, finding in judgement.findings.items():
            key = LeakKey(NODE, leak_id)
            before = self.leaks.get(key)
            same = before is not None and (before.observed.leak, before.observed.judged) == (
                finding.leak,
                finding.judged,
            )
            if same and before is not None and (before.observed.sightings > 1 or self.now - self.first[leak_id] < 2.0):
                continue
            sightings = before.observed.sightings + 1 if same and before is not None else 1
            if not same:
                self.first[leak_id] = self.now
            observed = LeakObserved(leak=finding.leak, judged=finding.judged, sightings=sightings)
            self.leaks[key] = Leaked(observed, EventId(f"e{self._next()}"), "t", "t", self.sequence)
        for key in list(self.leaks):
            if judgement.decides(key.leak) and key.leak not in judgement.findings:
                del self.leaks[key]

    @rule()
    def decide_and_reclaim(self) -> None:
        for reclaim in decisions.reclaims(self.leaks, self.asked, self.now):
            key = LeakKey(reclaim.node, reclaim.leak.id)
            last = decisions.after_sending(self.asked, reclaim, EventId(f"c{self._next()}"), self.now)
            leaked = self.leaks[key]
            assert leaked.observed.sightings >= 2
            finding = judge(self._facts()).findings.get(reclaim.leak.id)
            if finding is None or (finding.leak, finding.judged) != (reclaim.leak, leaked.observed.judged):
                self.asked[key] = decisions.after_refusal(last, ErrorClass.EVIDENCE_CHANGED, self.now)
                continue
            pod = self.pods[reclaim.leak.holder]
            refused = self.ledger[reclaim.leak.holder].phase is SandboxPhase.DETACH_FAILED
            if pod.alive(self.boot) and not (refused and not pod.namespace and pod.runtime != "running"):
                self.freed_alive.append(reclaim.leak.holder)
            del self.ledger[reclaim.leak.holder]
            del self.leaks[key]
            self.asked.pop(key, None)

    @invariant()
    def no_live_sandbox_was_freed(self) -> None:
        assert not self.freed_alive

    def teardown(self) -> None:
        """Run until nothing changes: every leak is freed, and nothing else."""
        self.answers = True
        for pod in self.pods.values():
            pod.busy = False
        alive = {name for name in self.ledger if self.pods[name].alive(self.boot)}
        for _ in range(4):
            self.now += 4000.0
            self.look()
            self.decide_and_reclaim()
        assert not self.freed_alive
        assert {name for name in self.ledger if not self.pods[name].alive(self.boot)} == set()
        kept = {name for name in alive if self.ledger.get(name) is not None}
        assert {n for n in alive if n not in kept} == set() or all(
            not self.pods[name].namespace and self.pods[name].runtime != "running" for name in alive - kept
        )


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=150, stateful_step_count=40)


def test_reclaims_per_node_are_bounded() -> None:
    leaks: dict[LeakKey, Leaked] = {}
    for number in range(100):
        leak_id = f"file/{number}"
        found = judge(
            facts(runtime=known(), files=(replace(held("", 0.0, LeakKind.ADDRESS_TORN), path=str(number)),))
        ).findings
        (finding,) = found.values()
        observed = LeakObserved(leak=finding.leak, sightings=2)
        leaks[LeakKey(NODE, finding.leak.id)] = Leaked(observed, EventId(leak_id), f"{number:03}", "t", number)
    first = decisions.reclaims(leaks, {}, 0.0)
    assert len(first) == decisions.MAX_CONCURRENT
    asked = {LeakKey(r.node, r.leak.id): LastReclaim(r.cause, 0.0, 1) for r in first}
    assert not decisions.reclaims(leaks, asked, 1.0)
    later = decisions.reclaims(leaks, asked, decisions.COMMAND_TIMEOUT + 1)
    assert len(later) == decisions.MAX_CONCURRENT


def test_refused_reclaim_is_retried_with_backoff() -> None:
    finding = next(iter(judge(facts(runtime=known(), files=(held("", 0.0, LeakKind.ADDRESS_TORN),))).findings.values()))
    key = LeakKey(NODE, finding.leak.id)
    leaked = Leaked(LeakObserved(leak=finding.leak, sightings=2), EventId("e1"), "t", "t", 1)
    (reclaim,) = decisions.reclaims({key: leaked}, {}, 0.0)
    last = decisions.after_sending({}, reclaim, EventId("c1"), 0.0)
    last = decisions.after_refusal(last, ErrorClass.PLUGIN_MISSING, 1.0)
    assert not decisions.reclaims({key: leaked}, {key: last}, 5.9)
    assert decisions.reclaims({key: leaked}, {key: last}, 6.1)
    assert decisions.reclaims({key: leaked._replace(event=EventId("e2"))}, {key: last}, 1.1)
    assert decisions.backoff(1) < decisions.backoff(2) < decisions.backoff(30) == 3600.0
    assert decisions.next_retry({key: leaked}, {key: last}, 2.0) == 4.0
    assert decisions.next_retry({}, {key: last}, 2.0) is None
