"""Events, ledgers and helpers for tests of the worker's parts."""

from __future__ import annotations

from events.ledger.ledger import Expect
from events.ledger.memory import MemoryLedger
from events.schema import (
    AttachCompleted,
    AttachFailed,
    AttachPlanned,
    AttachRequested,
    ContainerId,
    DetachRequested,
    ErrorClass,
    Event,
    Failure,
    IfName,
    NetworkName,
    NodeName,
    Phase,
    PlannedAttachment,
    RequestId,
)

NODE = NodeName("node-1")
BOX = ContainerId("box")
ETH0 = IfName("eth0")

FAILURE = Failure(error_class=ErrorClass.ABANDONED, phase=Phase.ADD, message="the runtime gave up", code=11)
PLANNED = AttachPlanned(
    ifname=ETH0,
    netns="/run/netns/box",
    path="/opt/cni/bin",
    cni_version="1.0.0",
    attachments=(
        PlannedAttachment(
            network=NetworkName("default"), ifname=ETH0, cni_name="default", cni_version="1.0.0", plugins=("{}",)
        ),
    ),
)


class CountingLedger(MemoryLedger):
    """A ledger in memory that counts the attempts to append."""

    def __init__(self) -> None:
        super().__init__()
        self.appends = 0

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        self.appends += 1
        return await super().append(event, expect)


def attach(request: str = "r1", deadline: str = "") -> AttachRequested:
    return AttachRequested(
        request=RequestId(request), ifname=ETH0, netns="/run/netns/box", config="{}", deadline=deadline
    )


def detach(request: str = "r2") -> DetachRequested:
    return DetachRequested(request=RequestId(request), ifname=ETH0)


def completed(request: str = "r1") -> AttachCompleted:
    return AttachCompleted(request=RequestId(request), ifname=ETH0, result="{}")


def failed(request: str = "r1") -> AttachFailed:
    return AttachFailed(request=RequestId(request), ifname=ETH0, failure=FAILURE)
