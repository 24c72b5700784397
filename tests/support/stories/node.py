"""Realistic stories of sandboxes, event by event, for tests of whatever reads a ledger.

A ``Node`` writes them with ids, times and results that depend on nothing but the order of the calls.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

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
    NetworkName,
    NodeName,
    Phase,
    PlannedAttachment,
    PluginRun,
    Pod,
    ReclaimRequested,
    RepairRequested,
    RequestId,
    WorkerStarted,
    new_event_id,
    rfc3339,
)

BEGIN_NS = 1_764_000_000_000_000_000
STEP_NS = 1_250_000
SECRET = "hunter2"
ETH0 = IfName("eth0")
NETWORKS = ("k8s-pod-network", "default/storage", "default/video")


class Node:
    """A worker's hand, without the work."""

    def __init__(self, name: str = "node-1") -> None:
        self.name = NodeName(name)
        self.epoch = 1
        self._count = itertools.count(1)

    def event(self, data: Data, sandbox: str = "", cause: str = "", *, epoch: int | None = None) -> Event:
        number = next(self._count)
        at = BEGIN_NS + number * STEP_NS
        return Event(
            id=new_event_id(at // 1_000_000, self.name.encode()[-4:].rjust(4) + number.to_bytes(6, "big")),
            at=rfc3339(at),
            node=self.name,
            boot_id="5d1e5a6e-0000-4000-8000-000000000001",
            epoch=self.epoch if epoch is None else epoch,
            sandbox=ContainerId(sandbox),
            cause=EventId(cause),
            trace="",
            data=data,
        )

    def start(self, pending: int = 0) -> Event:
        self.epoch += 1
        return self.event(WorkerStarted(version="0.1.0", pid=4711, pending=pending))

    def attach(
        self,
        sandbox: str,
        pod: Pod,
        networks: Sequence[str] = NETWORKS[:2],
        *,
        fails_at: int | None = None,
        silent: bool = False,
        carried: bool = False,
    ) -> Iterator[Event]:
        """An ADD; with *fails_at* the attachment of that index fails and what came before is undone.

        *carried*: its outcome carries the effects, as that of a worker that makes interfaces itself.

        *silent*: no status is published, as for a pod of the cluster's own.
        """
        asked = self.event(
            AttachRequested(
                request=RequestId(f"add-{sandbox}"),
                ifname=ETH0,
                netns=f"/run/netns/{sandbox}",
                config=json.dumps({"name": "plumbline", "type": "plumbline", "apiToken": SECRET}),
                args=f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
                pod=pod,
            ),
            sandbox,
        )
        yield asked
        plans = tuple(planned(index, network) for index, network in enumerate(networks))
        yield self.event(
            AttachPlanned(
                ifname=ETH0,
                netns=f"/run/netns/{sandbox}",
                path="/opt/cni/bin",
                cni_version="1.1.0",
                attachments=plans,
                pod=pod,
                publish=bool(pod.name) and not silent,
            ),
            sandbox,
            asked.id,
        )
        effects: list[InterfaceAttached] = []
        for index, plan in enumerate(plans):
            if index == fails_at:
                yield from self._fail(sandbox, asked.id, plans, index)
                return
            effect = InterfaceAttached(
                network=plan.network,
                ifname=plan.ifname,
                result=result(plan.ifname, sandbox, index),
                seconds=0.004,
                runs=(PluginRun(type="bridge", command="ADD", seconds=0.0035, exit_code=0),),
            )
            if carried:
                effects.append(effect)
            else:
                yield self.event(effect, sandbox, asked.id)
        completed = AttachCompleted(
            request=RequestId(f"add-{sandbox}"),
            ifname=ETH0,
            result=result("eth0", sandbox, 0),
            seconds=0.02,
            effects=tuple(effects),
        )
        yield self.event(completed, sandbox, asked.id)

    def detach(
        self,
        sandbox: str,
        pod: Pod,
        networks: Sequence[str] = NETWORKS[:2],
        *,
        fails: bool = False,
        carried: bool = False,
    ) -> Iterator[Event]:
        asked = self.event(DetachRequested(request=RequestId(f"del-{sandbox}"), ifname=ETH0, pod=pod), sandbox)
        yield asked
        failure = failure_of(Phase.DEL, networks[-1])
        effects: list[InterfaceDetached] = []
        for index, network in reversed(list(enumerate(networks))):
            plan = planned(index, network)
            data: Data = InterfaceDetached(network=plan.network, ifname=plan.ifname, seconds=0.002)
            if fails and network == networks[-1]:
                data = InterfaceDetachFailed(network=plan.network, ifname=plan.ifname, failure=failure)
            elif carried:
                effects.append(data)
                continue
            yield self.event(data, sandbox, asked.id)
        request = RequestId(f"del-{sandbox}")
        if fails:
            yield self.event(DetachFailed(request=request, ifname=ETH0, failure=failure), sandbox, asked.id)
        else:
            done = DetachCompleted(request=request, ifname=ETH0, seconds=0.01, effects=tuple(effects))
            yield self.event(done, sandbox, asked.id)

    def drift(self, sandbox: str, pod: Pod, *, ends: str = "") -> Iterator[Event]:
        """A link goes down; it is to be repaired, which *ends* as ``repaired``, ``failed`` or not yet."""
        drifts = (Drift(kind=DriftKind.LINK_DOWN, network=NetworkName(NETWORKS[0]), ifname=ETH0, expected="up"),)
        seen = self.event(DriftObserved(ifname=ETH0, pod=pod, drifts=drifts), sandbox)
        yield seen
        request = RequestId(f"repair-{seen.id}")
        asked = self.event(RepairRequested(request=request, ifname=ETH0, drifts=drifts, command=7), sandbox, seen.id)
        yield asked
        if ends == "repaired":
            yield self.event(DriftRepaired(request=request, ifname=ETH0, drifts=drifts), sandbox, asked.id)
        if ends == "failed":
            failure = failure_of(Phase.REPAIR, NETWORKS[0])
            failed = DriftRepairFailed(request=request, ifname=ETH0, failure=failure, left=drifts)
            yield self.event(failed, sandbox, asked.id)

    def leak(self, sandbox: str, *, ends: str = "") -> Iterator[Event]:
        """An address is held by *sandbox*, a stranger; *ends* is ``reclaimed``, ``failed``, ``gone`` or not yet."""
        leak = Leak(
            id=LeakId(f"address/k8s-pod-network/10.0.0.9/{sandbox[:4]}"),
            kind=LeakKind.ADDRESS_UNOWNED,
            what="10.0.0.9",
            holder=ContainerId(sandbox),
            network=NETWORKS[0],
            path="/var/lib/cni/networks/k8s-pod-network/10.0.0.9",
        )
        yield self.event(LeakObserved(leak=leak, evidence=("its holder is unknown",)), sandbox)
        seen = self.event(LeakObserved(leak=leak, evidence=("its holder is unknown",), sightings=2), sandbox)
        yield seen
        if ends == "gone":
            yield self.event(LeakObserved(leak=leak, gone=True), sandbox)
            return
        request = RequestId(f"reclaim-{seen.id}")
        asked = self.event(ReclaimRequested(request=request, leak=leak, command=8), sandbox, seen.id)
        yield asked
        if ends == "reclaimed":
            yield self.event(LeakReclaimed(request=request, leak=leak), sandbox, asked.id)
        if ends == "failed":
            failure = failure_of(Phase.RECLAIM, NETWORKS[0])
            yield self.event(LeakReclaimFailed(request=request, leak=leak, failure=failure), sandbox, asked.id)

    def _fail(self, sandbox: str, cause: EventId, plans: Sequence[PlannedAttachment], index: int) -> Iterator[Event]:
        failure = failure_of(Phase.ADD, plans[index].network)
        yield self.event(
            InterfaceAttachFailed(network=plans[index].network, ifname=plans[index].ifname, failure=failure),
            sandbox,
            cause,
        )
        for plan in reversed(plans[: index + 1]):
            yield self.event(InterfaceDetached(network=plan.network, ifname=plan.ifname), sandbox, cause)
        failed = AttachFailed(request=RequestId(f"add-{sandbox}"), ifname=ETH0, failure=failure)
        yield self.event(failed, sandbox, cause)


def planned(index: int, network: str) -> PlannedAttachment:
    return PlannedAttachment(
        network=NetworkName(network),
        ifname=IfName("eth0" if index == 0 else f"net{index}"),
        cni_name=network.rpartition("/")[2],
        cni_version="1.1.0",
        plugins=(json.dumps({"type": "bridge", "ipam": {"type": "rest", "password": SECRET}}),),
        default=index == 0,
    )


def result(ifname: str, sandbox: str, index: int) -> str:
    number = sum(sandbox.encode()) % 250
    return json.dumps(
        {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": f"br{index}", "mac": "02:00:00:00:00:01"},
                {"name": ifname, "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": f"/run/netns/{sandbox}"},
            ],
            "ips": [{"address": f"10.{index}.0.{number}/24", "gateway": f"10.{index}.0.1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}] if index == 0 else [],
            "dns": {},
        }
    )


def failure_of(phase: Phase, network: str) -> Failure:
    return Failure(
        error_class=ErrorClass.PLUGIN_FAILED,
        phase=phase,
        message=f"network {network}: plugin bridge failed: no free address",
        code=100,
        network=network,
        delegate="bridge",
    )


def container_id(number: int) -> str:
    return f"{number:064x}"[::-1]


def busy_day(pods: int, node: Node | None = None) -> Iterator[Event]:
    """Yield about ten events for each of *pods*: most come and go, some fail, some stay, a worker restarts.

    A third has interfaces that the worker made itself.
    """
    node = node or Node()
    yield node.start()
    for number in range(pods):
        sandbox, pod = container_id(number), Pod("shop", f"web-{number}", f"uid-{number}")
        carried = number % 3 == 0
        if number % 7 == 3:
            yield from node.attach(sandbox, pod, NETWORKS, fails_at=2)
            continue
        yield from node.attach(sandbox, pod, NETWORKS, carried=carried)
        if number % 11 == 5:
            yield node.start(pending=1)
        if number % 5 == 1:
            yield from node.detach(sandbox, pod, NETWORKS, fails=True)
        if number % 5 != 4:
            yield from node.detach(sandbox, pod, NETWORKS, carried=carried)
        if number % 5 == 0:
            yield from node.detach(sandbox, pod, NETWORKS)  # runtimes do repeat DEL
