"""The stories of single sandboxes: valid sequences of events, which the fold must accept without an anomaly.

A story is a generator function of an ``EventFactory`` and a container ID. ``ENDINGS`` maps each to the interface names
that are still attached, or have resources, at its end. Stories of different sandboxes can be interleaved in any order,
because a node's events are in order for each sandbox only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from events.schema import (
    ContainerId,
    ErrorClass,
    Event,
    GcCompleted,
    GcRequested,
    IfName,
    Leak,
    LeakId,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    Phase,
    ReclaimRequested,
    RequestId,
    WorkerStopped,
)
from tests.support.stories.events import EventFactory
from tests.support.stories.life import Life
from tests.support.stories.values import ETH0, ETH1, NETWORKS, PLUGIN_PATH

Story: TypeAlias = Callable[[EventFactory, ContainerId], Iterator[Event]]


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
    yield life.add_failed(intent, life.failure(life.plans[1], Phase.RESOLVE, ErrorClass.NETWORK_NOT_FOUND))


def failed_and_rolled_back(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The second of four interfaces fails; the last two were never begun."""
    yield from Life(factory, sandbox, networks=(*NETWORKS, "telecom/radio")).add(fails_at=1)


def rollback_failed(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    intent = life.add_requested()
    yield intent
    yield life.plan(intent)
    yield life.attached(intent, life.plans[0])
    yield life.attach_failed(intent, life.plans[1])
    yield life.detach_failed(intent, life.plans[1], Phase.ROLLBACK)
    yield life.detached(intent, life.plans[0])
    yield life.add_failed(intent, life.failure(life.plans[1], Phase.ADD), left=(life.plans[1].ifname,))


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
    yield life.add_failed(again, life.failure(life.plans[0], Phase.INTAKE, ErrorClass.INVALID_REQUEST))


def add_repeated_while_the_first_fails(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    first = life.add_requested(1)
    yield first
    second = life.add_requested(2)
    yield second
    yield life.add_failed(first, life.failure(life.plans[0], Phase.RESOLVE, ErrorClass.POD_NOT_FOUND))
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
    yield life.add_failed(attach, life.failure(life.plans[0], Phase.ADD, ErrorClass.OVERTAKEN))
    yield life.del_completed(detach)


def detach_fails_then_succeeds(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    first = life.del_requested(1)
    yield first
    yield from life.unmake(first, fails=True)
    second = life.del_requested(2, cause=first.id, retry=1)
    yield second
    yield life.detached(second, life.plans[1])
    yield life.del_completed(second)


def detach_fails(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.delete(fails=True)


def collected(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """GC finds that the runtime no longer knows the sandbox (CNI specification 1.1, section 2, "GC")."""
    life = Life(factory, sandbox)
    yield from life.add()
    request = RequestId(f"gc-{sandbox[-8:]}")
    intent = factory.event(GcRequested(request=request, config='{"cniVersion": "1.1.0"}', path=PLUGIN_PATH, valid=()))
    yield intent
    yield from life.delete(cause=intent.id)
    yield factory.event(GcCompleted(request=request, detached=((sandbox, ETH0),), seconds=0.1), cause=intent.id)


def two_interface_names(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """podman attaches a container to each network by an ADD of its own, and takes it off one of them."""
    first, second = (Life(factory, sandbox, ifname, NETWORKS[:1]) for ifname in (ETH0, ETH1))
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
    yield factory.start(pending=1)
    yield life.attached(intent, life.plans[1])
    yield life.add_completed(intent)


def drifted_and_repaired(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.drift(ends="repaired")


def drifted_without_repair(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.drift(ends="failed")


def drifted_and_given_up(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """The pod is deleted while it drifts: its drift no longer counts."""
    life = Life(factory, sandbox)
    yield from life.add()
    yield next(life.drift())
    yield from life.delete()


def address_leaked_and_kept(factory: EventFactory, sandbox: ContainerId) -> Iterator[Event]:
    """An address without owner could not be reclaimed; one of an earlier leak is gone."""
    life = Life(factory, sandbox)
    yield from life.add()
    yield from life.leak(ends="gone")
    yield from life.leak(ends="failed")


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
    drifted_without_repair: (ETH0,),
    drifted_and_given_up: (),
    address_leaked_and_kept: (ETH0,),
    leaked_and_reclaimed: (),
}
