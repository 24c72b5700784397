"""Tell the life of one interface name of one sandbox, event by event.

Small methods return one event (``add_requested``, ``attached``); others yield a whole part of the life (``add``,
``delete``, ``drift``, ``leak``). A test takes the whole parts, or the single events in an order of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from events.schema import (
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
    DriftRepairFailed,
    ErrorClass,
    Event,
    EventId,
    Failure,
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
    LeakReclaimFailed,
    Phase,
    PlannedAttachment,
    PluginRun,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    Stored,
    rfc3339,
)
from tests.support.stories.events import BEGIN_NS, NOTHING, EventFactory
from tests.support.stories.values import (
    ETH0,
    NETWORKS,
    PLUGIN_PATH,
    SECRET,
    failure_of,
    netns_of,
    planned,
    plugin_of,
    pod_of,
    result,
)


class Life:
    """Tells what happens to one interface name of one sandbox.

    Each of *networks* is one attachment. *silent*: no status is published, as for a pod of the cluster's own.
    """

    def __init__(
        self,
        factory: EventFactory,
        sandbox: ContainerId,
        ifname: IfName = ETH0,
        networks: Sequence[str] = NETWORKS[:2],
        *,
        pod: Pod | None = None,
        silent: bool = False,
    ) -> None:
        self._factory = factory
        self._sandbox = sandbox
        self._ifname = ifname
        self._pod = pod_of(sandbox) if pod is None else pod
        self._silent = silent
        self.plans = tuple(planned(index, ifname, network) for index, network in enumerate(networks))

    def say(self, data: Data, cause: EventId = NOTHING) -> Event:
        return self._factory.event(data, self._sandbox, cause)

    # --- ADD ---

    def add(self, number: int = 1, *, fails_at: int | None = None) -> Iterator[Event]:
        """Yield an ADD; with *fails_at* the attachment of that index fails, and those before it are undone."""
        intent = self.add_requested(number)
        yield intent
        yield from self.make(intent, fails_at=fails_at)

    def make(self, intent: Event, *, fails_at: int | None = None) -> Iterator[Event]:
        yield self.plan(intent)
        for plan in self.plans[:fails_at]:
            yield self.attached(intent, plan)
        if fails_at is None:
            yield self.add_completed(intent)
        else:
            yield from self.roll_back(intent, fails_at)

    def roll_back(self, intent: Event, fails_at: int) -> Iterator[Event]:
        yield self.attach_failed(intent, self.plans[fails_at])
        for plan in reversed(self.plans[: fails_at + 1]):
            yield self.detached(intent, plan)
        yield self.add_failed(intent, self.failure(self.plans[fails_at], Phase.ADD))

    def add_requested(self, number: int = 1) -> Event:
        return self.say(
            AttachRequested(
                request=self._request("add", number),
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                config=json.dumps(
                    {"cniVersion": "1.1.0", "name": "plumbline", "type": "plumbline", "apiToken": SECRET}
                ),
                args=f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self._pod.namespace};K8S_POD_NAME={self._pod.name}",
                path=PLUGIN_PATH,
                pod=self._pod,
                deadline=rfc3339(BEGIN_NS + 220_000_000_000),
            )
        )

    def plan(self, intent: Event) -> Event:
        return self.say(
            AttachPlanned(
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                path=PLUGIN_PATH,
                cni_version="1.1.0",
                attachments=self.plans,
                pod=self._pod,
                publish=bool(self._pod.name) and not self._silent,
            ),
            intent.id,
        )

    def attached(self, intent: Event, plan: PlannedAttachment) -> Event:
        data = InterfaceAttached(
            network=plan.network,
            ifname=plan.ifname,
            result=self.result_of(plan),
            seconds=0.004,
            runs=(PluginRun(type=plugin_of(plan), command="ADD", seconds=0.0035, exit_code=0),),
        )
        return self.say(data, intent.id)

    def attach_failed(self, intent: Event, plan: PlannedAttachment) -> Event:
        data = InterfaceAttachFailed(
            network=plan.network,
            ifname=plan.ifname,
            failure=self.failure(plan, Phase.ADD),
            seconds=0.02,
            runs=(PluginRun(type=plugin_of(plan), command="ADD", seconds=0.019, exit_code=1),),
        )
        return self.say(data, intent.id)

    def add_completed(self, intent: Event) -> Event:
        assert isinstance(intent.data, AttachRequested)
        given = self.result_of(self.plans[0])
        data = AttachCompleted(request=intent.data.request, ifname=self._ifname, result=given, seconds=0.02)
        return self.say(data, intent.id)

    def add_failed(self, intent: Event, failure: Failure, left: tuple[IfName, ...] = ()) -> Event:
        assert isinstance(intent.data, AttachRequested)
        data = AttachFailed(request=intent.data.request, ifname=self._ifname, failure=failure, left=left, seconds=0.06)
        return self.say(data, intent.id)

    # --- DEL ---

    def delete(self, number: int = 1, cause: EventId = NOTHING, *, fails: bool = False) -> Iterator[Event]:
        """Yield a DEL; if it *fails*, the last attachment stays."""
        intent = self.del_requested(number, cause)
        yield intent
        yield from self.unmake(intent, fails=fails)

    def unmake(self, intent: Event, *, fails: bool = False) -> Iterator[Event]:
        last = self.plans[-1]
        for plan in reversed(self.plans):
            yield self.detach_failed(intent, plan) if fails and plan is last else self.detached(intent, plan)
        yield self.del_failed(intent, last) if fails else self.del_completed(intent)

    def del_requested(self, number: int = 1, cause: EventId = NOTHING, retry: int = 0) -> Event:
        return self.say(
            DetachRequested(
                request=self._request("del", number),
                ifname=self._ifname,
                netns=netns_of(self._sandbox),
                pod=self._pod,
                retry=retry,
            ),
            cause,
        )

    def detached(self, intent: Event, plan: PlannedAttachment) -> Event:
        data = InterfaceDetached(
            network=plan.network,
            ifname=plan.ifname,
            seconds=0.002,
            runs=(PluginRun(type=plugin_of(plan), command="DEL", seconds=0.0015, exit_code=0),),
        )
        return self.say(data, intent.id)

    def detach_failed(self, intent: Event, plan: PlannedAttachment, phase: Phase = Phase.DEL) -> Event:
        data = InterfaceDetachFailed(
            network=plan.network, ifname=plan.ifname, failure=self.failure(plan, phase), seconds=0.02
        )
        return self.say(data, intent.id)

    def del_completed(self, intent: Event) -> Event:
        assert isinstance(intent.data, DetachRequested)
        return self.say(DetachCompleted(request=intent.data.request, ifname=self._ifname, seconds=0.01), intent.id)

    def del_failed(self, intent: Event, plan: PlannedAttachment) -> Event:
        assert isinstance(intent.data, DetachRequested)
        data = DetachFailed(
            request=intent.data.request,
            ifname=self._ifname,
            failure=self.failure(plan, Phase.DEL),
            left=(plan.ifname,),
            seconds=0.03,
        )
        return self.say(data, intent.id)

    # --- drift and leaks ---

    def drift(self, *, ends: str = "") -> Iterator[Event]:
        """Yield a link that goes down and its repair, which *ends* as ``repaired``, ``failed`` or not yet."""
        plan = self.plans[0]
        drifts = (
            Drift(kind=DriftKind.LINK_DOWN, network=plan.network, ifname=plan.ifname, expected="up", found="down"),
        )
        observed = self.say(DriftObserved(ifname=self._ifname, pod=self._pod, drifts=drifts))
        yield observed
        request = RequestId(f"repair-{observed.id}")
        intent = self.say(RepairRequested(request=request, ifname=self._ifname, drifts=drifts, command=7), observed.id)
        yield intent
        if ends == "repaired":
            yield self.say(DriftRepaired(request=request, ifname=self._ifname, drifts=drifts, seconds=0.01), intent.id)
        if ends == "failed":
            failure = self.failure(plan, Phase.REPAIR)
            failed = DriftRepairFailed(request=request, ifname=self._ifname, failure=failure, left=drifts)
            yield self.say(failed, intent.id)

    def leak(self, *, ends: str = "") -> Iterator[Event]:
        """Yield an address without owner, and its end: ``reclaimed``, ``failed``, ``gone`` or not yet."""
        network = self.plans[0].network
        leak = Leak(
            id=LeakId(f"address/{network}/10.0.0.9/{self._sandbox[:4]}"),
            kind=LeakKind.ADDRESS_UNOWNED,
            what="10.0.0.9",
            holder=self._sandbox,
            network=network,
            path=f"/var/lib/cni/networks/{network}/10.0.0.9",
        )
        evidence = ("its holder is unknown",)
        yield self.say(LeakObserved(leak=leak, evidence=evidence, judged=1))
        observed = self.say(LeakObserved(leak=leak, evidence=evidence, sightings=2, judged=1))
        yield observed
        if ends == "gone":
            yield self.say(LeakObserved(leak=leak, gone=True))
            return
        request = RequestId(f"reclaim-{observed.id}")
        intent = self.say(ReclaimRequested(request=request, leak=leak, command=8), observed.id)
        yield intent
        if ends == "reclaimed":
            yield self.say(LeakReclaimed(request=request, leak=leak, evidence=evidence, seconds=0.02), intent.id)
        if ends == "failed":
            failure = self.failure(self.plans[0], Phase.RECLAIM)
            yield self.say(LeakReclaimFailed(request=request, leak=leak, failure=failure), intent.id)

    # --- values ---

    def failure(
        self, plan: PlannedAttachment, phase: Phase, error_class: ErrorClass = ErrorClass.PLUGIN_FAILED
    ) -> Failure:
        return failure_of(phase, plan.network, plugin_of(plan), ifname=plan.ifname, error_class=error_class)

    def result_of(self, plan: PlannedAttachment) -> str:
        return result(plan.ifname, self._sandbox, self.plans.index(plan))

    def _request(self, verb: str, number: int) -> RequestId:
        return RequestId(f"{verb}-{self._sandbox[-8:]}-{self._ifname}-{number}")


def with_carried_effects(story: Iterable[Stored]) -> list[Stored]:
    """Return *story* as of a worker that makes all interfaces itself: outcomes carry their effects."""
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
