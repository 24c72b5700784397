"""Generate valid event sequences of sandboxes: the fold must accept them without an anomaly.

A story is a generator function of an ``EventFactory`` and a container ID. ``ENDINGS`` maps each to the interface names
that are still attached, or have resources, at its end. Stories of different sandboxes can be interleaved in any order,
because a node's events are in order for each sandbox only.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from events.schema import (
    NO_SANDBOX,
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ContainerId,
    Data,
    DetachCompleted,
    DetachFailed,
    DetachRequested,
    Drift,
    DriftKind,
    DriftObserved,
    DriftRepaired,
    ErrorClass,
    Event,
    EventId,
    Failure,
    GcCompleted,
    GcRequested,
    IfName,
    InterfaceAttached,
    InterfaceAttachFailed,
    InterfaceDetached,
    InterfaceDetachFailed,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    NetworkName,
    NodeName,
    Phase,
    PlannedAttachment,
    PluginRun,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
    WorkerStarted,
    WorkerStopped,
    new_event_id,
    rfc3339,
)

Story: TypeAlias = Callable[["EventFactory", ContainerId], Iterator[Event]]

ETH0 = IfName("eth0")
ETH1 = IfName("eth1")
NOTHING = EventId("")
_START_NS = 1_764_000_000_000_000_000
_STEP_NS = 2_500_000
_PATH = "/opt/cni/bin"


class EventFactory:
    """Makes the events of one node. Factories of different nodes never make the same ID."""

    def __init__(self, node: str = "worker-1.example.net") -> None:
        self.node = NodeName(node)
        self.epoch = 1
        self._count = itertools.count(1)

    def event(self, data: Data, sandbox: ContainerId = NO_SANDBOX, cause: EventId = NOTHING) -> Event:
        number = next(self._count)
        at = _START_NS + number * _STEP_NS
        return Event(
            id=new_event_id(at // 1_000_000, self.node.encode()[-6:].rjust(6) + number.to_bytes(4, "big")),
            at=rfc3339(at),
            node=self.node,
            boot_id="0b5f6c3e-5a0e-4a53-9d56-3f0a1be3a7d1",
            epoch=self.epoch,
            sandbox=sandbox,
            cause=cause,
            trace="",
            data=data,
        )

    def note(self, text: str = "", sandbox: ContainerId = NO_SANDBOX) -> Event:
        """Return some event, for tests that care about its place only."""
        return self.event(WorkerStopped(reason=text), sandbox)


def container(number: int) -> ContainerId:
    """Return a container ID as containerd makes them."""
    return ContainerId(f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}")


# --- the parts that stories are made of ------------------------------------------------------------------------------


def pod_of(sandbox: ContainerId) -> Pod:
    return Pod("telecom", f"upf-{sandbox[-6:]}", f"7c0c9a4e-0000-4000-8000-{sandbox[-12:]}")


def netns_of(sandbox: ContainerId) -> str:
    return f"/var/run/netns/cni-{sandbox[-12:]}"


def planned(index: int, ifname: IfName = ETH0) -> PlannedAttachment:
    name = "pods" if index == 0 else f"macvlan-{index}"
    plugin: dict[str, object] = {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "bridge" if index == 0 else "macvlan",
        "master": "eno1",
        "mode": "bridge",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": f"10.{index}.0.0/16"}]]},
    }
    return PlannedAttachment(
        network=NetworkName(name if index == 0 else f"telecom/{name}"),
        ifname=ifname if index == 0 else IfName(f"net{index}"),
        cni_name=name,
        cni_version="1.0.0",
        plugins=(json.dumps(plugin),),
        cni_args="IgnoreUnknown=1;K8S_POD_NAMESPACE=telecom",
        default=index == 0,
    )


def result_of(plan: PlannedAttachment, sandbox: ContainerId) -> str:
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": plan.ifname, "mac": "02:42:0a:00:00:01", "sandbox": netns_of(sandbox)}],
            "ips": [{"address": "10.0.12.7/16", "gateway": "10.0.0.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
    )


def failure_of(plan: PlannedAttachment, phase: Phase, error_class: ErrorClass = ErrorClass.PLUGIN_FAILED) -> Failure:
    return Failure(
        error_class=error_class,
        phase=phase,
        message=f"plugin macvlan could not do {phase} of network {plan.network}: no such device eno1",
        code=100,
        network=plan.network,
        ifname=plan.ifname,
        delegate="macvlan",
    )


def run_of(plan: PlannedAttachment, command: str, exit_code: int = 0) -> tuple[PluginRun, ...]:
    return (PluginRun(type=json.loads(plan.plugins[0])["type"], command=command, seconds=0.011, exit_code=exit_code),)


class Life:
    """Tells what happens to one interface name of one sandbox."""

    def __init__(self, factory: EventFactory, sandbox: ContainerId, ifname: IfName = ETH0, networks: int = 2) -> None:
        self._factory = factory
        self._sandbox = sandbox
        self._ifname = ifname
        self.plans = tuple(planned(index, ifname) for index in range(networks))

    def say(self, data: Data, cause: EventId = NOTHING) -> Event:
        return self._factory.event(data, self._sandbox, cause)

    def add_requested(self, number: int = 1) -> Event:
        return self.say(
            AttachRequested(
                request=RequestId(f"add-{self._sandbox[-8:]}-{self._ifname}-{number}"),
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                config=json.dumps({"cniVersion": "1.0.0", "name": "plumbline", "type": "plumbline"}),
                args=f"IgnoreUnknown=1;K8S_POD_NAMESPACE=telecom;K8S_POD_NAME={pod_of(self._sandbox).name}",
                path=_PATH,
                pod=pod_of(self._sandbox),
                deadline=rfc3339(_START_NS + 220_000_000_000),
            )
        )

    def plan(self, intent: Event) -> Event:
        return self.say(
            AttachPlanned(
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                path=_PATH,
                cni_version="1.0.0",
                attachments=self.plans,
                pod=pod_of(self._sandbox),
                publish=True,
            ),
            intent.id,
        )

    def attached(self, intent: Event, plan: PlannedAttachment) -> Event:
        result = result_of(plan, self._sandbox)
        data = InterfaceAttached(
            network=plan.network, ifname=plan.ifname, result=result, seconds=0.012, runs=run_of(plan, "ADD")
        )
        return self.say(data, intent.id)

    def attach_failed(self, intent: Event, plan: PlannedAttachment) -> Event:
        failure = failure_of(plan, Phase.ADD)
        data = InterfaceAttachFailed(
            network=plan.network, ifname=plan.ifname, failure=failure, seconds=0.02, runs=run_of(plan, "ADD", 1)
        )
        return self.say(data, intent.id)

    def detached(self, intent: Event, plan: PlannedAttachment) -> Event:
        data = InterfaceDetached(network=plan.network, ifname=plan.ifname, seconds=0.009, runs=run_of(plan, "DEL"))
        return self.say(data, intent.id)

    def detach_failed(self, intent: Event, plan: PlannedAttachment, phase: Phase = Phase.DEL) -> Event:
        failure = failure_of(plan, phase)
        return self.say(
            InterfaceDetachFailed(network=plan.network, ifname=plan.ifname, failure=failure, seconds=0.02), intent.id
        )

    def add_completed(self, intent: Event) -> Event:
        assert isinstance(intent.data, AttachRequested)
        result = result_of(self.plans[0], self._sandbox)
        data = AttachCompleted(request=intent.data.request, ifname=self._ifname, result=result, seconds=0.04)
        return self.say(data, intent.id)

    def add_failed(self, intent: Event, failure: Failure, left: tuple[IfName, ...] = ()) -> Event:
        assert isinstance(intent.data, AttachRequested)
        data = AttachFailed(request=intent.data.request, ifname=self._ifname, failure=failure, left=left, seconds=0.06)
        return self.say(data, intent.id)

    def add(self, number: int = 1) -> Iterator[Event]:
        intent = self.add_requested(number)
        yield intent
        yield from self.make(intent)

    def make(self, intent: Event) -> Iterator[Event]:
        yield self.plan(intent)
        for plan in self.plans:
            yield self.attached(intent, plan)
        yield self.add_completed(intent)

    def del_requested(self, number: int = 1, cause: EventId = NOTHING, retry: int = 0) -> Event:
        return self.say(
            DetachRequested(
                request=RequestId(f"del-{self._sandbox[-8:]}-{self._ifname}-{number}"),
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                pod=pod_of(self._sandbox),
                retry=retry,
            ),
            cause,
        )

    def del_completed(self, intent: Event) -> Event:
        assert isinstance(intent.data, DetachRequested)
        return self.say(DetachCompleted(request=intent.data.request, ifname=self._ifname, seconds=0.03), intent.id)

    def del_failed(self, intent: Event, plan: PlannedAttachment) -> Event:
        assert isinstance(intent.data, DetachRequested)
        failure = failure_of(plan, Phase.DEL)
        data = DetachFailed(
            request=intent.data.request, ifname=self._ifname, failure=failure, left=(plan.ifname,), seconds=0.03
        )
        return self.say(data, intent.id)

    def delete(self, number: int = 1, cause: EventId = NOTHING) -> Iterator[Event]:
        intent = self.del_requested(number, cause)
        yield intent
        yield from self.unmake(intent)

    def unmake(self, intent: Event) -> Iterator[Event]:
        for plan in reversed(self.plans):
            yield self.detached(intent, plan)
        yield self.del_completed(intent)


# --- the stories -----------------------------------------------------------------------------------------------------


def attached_and_kept(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    yield from Life(factory, sandbox).add()


def attached_and_detached(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.delete()


def attached_and_detached_twice(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """A runtime that was not sure of its DEL sends it again (CNI specification 1.1, section 2, "DEL")."""
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.delete()
    again = life.del_requested(2)
    yield again
    yield life.del_completed(again)


def attached_detached_attached(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add(1)
    yield from life.delete()
    yield from life.add(2)


def refused(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    intent = life.add_requested()
    yield intent
    yield life.add_failed(intent, failure_of(life.plans[1], Phase.RESOLVE, ErrorClass.NETWORK_NOT_FOUND))


def failed_and_rolled_back(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The second of four interfaces fails; the last two were never begun."""
    life = Life(factory, sandbox, networks=4)
    intent = life.add_requested()
    yield intent
    yield life.plan(intent)
    yield life.attached(intent, life.plans[0])
    yield life.attach_failed(intent, life.plans[1])
    yield life.detached(intent, life.plans[1])
    yield life.detached(intent, life.plans[0])
    yield life.add_failed(intent, failure_of(life.plans[1], Phase.ADD))


def rollback_failed(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    intent = life.add_requested()
    yield intent
    yield life.plan(intent)
    yield life.attached(intent, life.plans[0])
    yield life.attach_failed(intent, life.plans[1])
    yield life.detach_failed(intent, life.plans[1], Phase.ROLLBACK)
    yield life.detached(intent, life.plans[0])
    yield life.add_failed(intent, failure_of(life.plans[1], Phase.ADD), left=(life.plans[1].ifname,))


def rollback_failed_then_detached(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    yield from rollback_failed(factory, sandbox)
    life = Life(factory, sandbox)
    intent = life.del_requested()
    yield intent
    yield life.detached(intent, life.plans[1])
    yield life.del_completed(intent)


def add_repeated(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The runtime repeats an ADD that had succeeded and is given the recorded result."""
    life = Life(factory, sandbox)
    yield from life.add(1)
    again = life.add_requested(2)
    yield again
    yield life.add_completed(again)


def add_refused_a_second_time(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add(1)
    again = life.add_requested(2)
    yield again
    yield life.add_failed(again, failure_of(life.plans[0], Phase.INTAKE, ErrorClass.INVALID_REQUEST))


def add_repeated_while_the_first_fails(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    first = life.add_requested(1)
    yield first
    second = life.add_requested(2)
    yield second
    yield life.add_failed(first, failure_of(life.plans[0], Phase.RESOLVE, ErrorClass.POD_NOT_FOUND))
    yield from life.make(second)


def added_again_while_detaching(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add(1)
    detach = life.del_requested()
    yield detach
    again = life.add_requested(2)
    yield again
    yield from life.unmake(detach)
    yield from life.make(again)


def detached_without_attach(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    intent = life.del_requested()
    yield intent
    yield life.del_completed(intent)


def detach_overtakes(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """DEL comes while ADD is at work; ADD stops, undoes what it did, and DEL finds nothing."""
    life = Life(factory, sandbox)
    attach = life.add_requested()
    yield attach
    yield life.plan(attach)
    detach = life.del_requested()
    yield detach
    yield life.attached(attach, life.plans[0])
    yield life.detached(attach, life.plans[1])
    yield life.detached(attach, life.plans[0])
    yield life.add_failed(attach, failure_of(life.plans[0], Phase.ADD, ErrorClass.OVERTAKEN))
    yield life.del_completed(detach)


def detach_fails_then_succeeds(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    first = life.del_requested(1)
    yield first
    yield life.detach_failed(first, life.plans[1])
    yield life.detached(first, life.plans[0])
    yield life.del_failed(first, life.plans[1])
    second = life.del_requested(2, cause=first.id, retry=1)
    yield second
    yield life.detached(second, life.plans[1])
    yield life.del_completed(second)


def detach_fails(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    intent = life.del_requested()
    yield intent
    yield life.detach_failed(intent, life.plans[1])
    yield life.detached(intent, life.plans[0])
    yield life.del_failed(intent, life.plans[1])


def collected(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """GC finds that the runtime no longer knows the sandbox (CNI specification 1.1, section 2, "GC")."""
    life = Life(factory, sandbox)
    yield from life.add()
    request = RequestId(f"gc-{sandbox[-8:]}")
    intent = factory.event(GcRequested(request=request, config='{"cniVersion": "1.1.0"}', path=_PATH, valid=()))
    yield intent
    yield from life.delete(cause=intent.id)
    yield factory.event(GcCompleted(request=request, detached=((sandbox, ETH0),), seconds=0.1), cause=intent.id)


def two_interface_names(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """podman attaches a container to each network by an ADD of its own, and takes it off one of them."""
    first, second = Life(factory, sandbox, ETH0, networks=1), Life(factory, sandbox, ETH1, networks=1)
    yield from first.add()
    yield from second.add()
    yield from first.delete()


def worker_replaced(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The worker stops in the middle of an ADD; the next one finishes it."""
    life = Life(factory, sandbox)
    intent = life.add_requested()
    yield intent
    yield life.plan(intent)
    yield life.attached(intent, life.plans[0])
    yield factory.event(WorkerStopped(reason="SIGTERM"))
    factory.epoch += 1
    yield factory.event(WorkerStarted(version="0.1.0", pid=4711, pending=1))
    yield life.attached(intent, life.plans[1])
    yield life.add_completed(intent)


def _drift(life: Life) -> Drift:
    plan = life.plans[0]
    return Drift(kind=DriftKind.LINK_DOWN, network=plan.network, ifname=plan.ifname, expected="up", found="down")


def drifted_and_repaired(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    drift = _drift(life)
    observed = factory.event(DriftObserved(ifname=ETH0, pod=pod_of(sandbox), drifts=(drift,)), sandbox)
    yield observed
    request = RequestId(f"repair-{sandbox[-8:]}")
    intent = factory.event(
        RepairRequested(request=request, ifname=ETH0, drifts=(drift,), command=7),
        sandbox,
        cause=observed.id,
    )
    yield intent
    yield factory.event(
        DriftRepaired(request=request, ifname=ETH0, drifts=(drift,), seconds=0.01), sandbox, cause=intent.id
    )


def drifted_and_given_up(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The pod is deleted while it drifts: its drift no longer counts."""
    life = Life(factory, sandbox)
    yield from life.add()
    drift = _drift(life)
    yield factory.event(DriftObserved(ifname=ETH0, pod=pod_of(sandbox), drifts=(drift,)), sandbox)
    yield from life.delete()


def leaked_and_reclaimed(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """Its DEL never came: the worker finds the leak twice, gets a command to reclaim it, and detaches the sandbox."""
    life = Life(factory, sandbox)
    yield from life.add()
    leak = Leak(
        id=LeakId(f"sandbox/{sandbox}/eth0"),
        kind=LeakKind.SANDBOX_GONE,
        what=f"{sandbox[:12]} eth0",
        holder=sandbox,
        ifname=ETH0,
    )
    evidence = ("the runtime does not know the sandbox", "its namespace is gone")
    yield factory.event(LeakObserved(leak=leak, evidence=evidence, judged=1), sandbox)
    observed = factory.event(LeakObserved(leak=leak, evidence=evidence, sightings=2, judged=1), sandbox)
    yield observed
    request = RequestId(f"reclaim-{sandbox[-8:]}")
    intent = factory.event(ReclaimRequested(request=request, leak=leak), sandbox, cause=observed.id)
    yield intent
    yield from life.delete(cause=intent.id)
    yield factory.event(
        LeakReclaimed(request=request, leak=leak, evidence=evidence, seconds=0.02), sandbox, cause=intent.id
    )


ENDINGS: dict[Story, tuple[IfName, ...]] = {
    attached_and_kept: (ETH0,),
    attached_and_detached: (),
    attached_and_detached_twice: (),
    attached_detached_attached: (ETH0,),
    refused: (),
    failed_and_rolled_back: (),
    rollback_failed: (ETH0,),
    rollback_failed_then_detached: (),
    add_repeated: (ETH0,),
    add_refused_a_second_time: (ETH0,),
    add_repeated_while_the_first_fails: (ETH0,),
    added_again_while_detaching: (ETH0,),
    detached_without_attach: (),
    detach_overtakes: (),
    detach_fails_then_succeeds: (),
    detach_fails: (ETH0,),
    collected: (),
    two_interface_names: (ETH1,),
    worker_replaced: (ETH0,),
    drifted_and_repaired: (ETH0,),
    drifted_and_given_up: (),
    leaked_and_reclaimed: (),
}


def carried(story: Iterable[Stored]) -> list[Stored]:
    """Return *story* as a worker tells it that makes all interfaces itself: outcomes carry their effects."""
    stream: list[Stored] = []
    held: list[Stored] = []
    for stored in story:
        event = stored.event
        if isinstance(event.data, InterfaceAttached | InterfaceDetached):
            held.append(stored)
            continue
        mine = [each for each in held if (each.event.sandbox, each.event.cause) == (event.sandbox, event.cause)]
        held = [each for each in held if each not in mine]
        if isinstance(event.data, AttachCompleted | DetachCompleted):
            effects = tuple(each.event.data for each in mine)
            stream.append(Stored(stored.sequence, replace(event, data=replace(event.data, effects=effects))))
        else:
            stream += [*mine, stored]
    return sorted((*stream, *held), key=lambda each: each.sequence)


def interleave(stories: Iterable[Iterator[Event]], choose: Callable[[int], int]) -> Iterator[Event]:
    """Yield the events of *stories* mixed, each in its order; *choose* picks one of so many."""
    left = list(stories)
    while left:
        index = choose(len(left))
        event = next(left[index], None)
        if event is None:
            del left[index]
        else:
            yield event


def busy_node(
    sandboxes: int, *, seed: int = 1, at_once: int = 8, weights: Sequence[tuple[Story, int]] = ()
) -> Iterator[Event]:
    """Yield the events of a node that handles *at_once* sandboxes at any time. Most pods come, live and go."""
    factory = EventFactory()
    dice = random.Random(seed)
    mix = list(weights) or [
        (attached_and_detached, 90),
        (failed_and_rolled_back, 3),
        (detach_fails_then_succeeds, 3),
        (attached_and_kept, 4),
    ]
    chosen = dice.choices([story for story, _ in mix], [weight for _, weight in mix], k=sandboxes)
    for first in range(0, sandboxes, at_once):
        batch = [
            story(factory, container(first + index + 1)) for index, story in enumerate(chosen[first : first + at_once])
        ]
        yield from interleave(batch, dice.randrange)
