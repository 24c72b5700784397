"""Make single events of a node, with IDs and times that depend only on the order of the calls."""

from __future__ import annotations

import itertools

from events.schema import (
    NO_SANDBOX,
    ContainerId,
    Data,
    Event,
    EventId,
    NodeName,
    WorkerStarted,
    WorkerStopped,
    new_event_id,
    rfc3339,
)

BEGIN_NS = 1_764_000_000_000_000_000
STEP_NS = 1_250_000
NOTHING = EventId("")


class EventFactory:
    """Makes the events of one node. Factories make different IDs if the last six letters of their nodes differ."""

    def __init__(self, node: str = "worker-1.example.net") -> None:
        self.node = NodeName(node)
        self.epoch = 1
        self._count = itertools.count(1)

    def event(self, data: Data, sandbox: str = NO_SANDBOX, cause: str = NOTHING, *, epoch: int | None = None) -> Event:
        number = next(self._count)
        at = BEGIN_NS + number * STEP_NS
        return Event(
            id=new_event_id(at // 1_000_000, self.node.encode()[-6:].rjust(6) + number.to_bytes(4, "big")),
            at=rfc3339(at),
            node=self.node,
            boot_id="5d1e5a6e-0000-4000-8000-000000000001",
            epoch=self.epoch if epoch is None else epoch,
            sandbox=ContainerId(sandbox),
            cause=EventId(cause),
            trace="",
            data=data,
        )

    def note(self, text: str = "", sandbox: ContainerId = NO_SANDBOX) -> Event:
        """Return some event, for tests that only need its position."""
        return self.event(WorkerStopped(reason=text), sandbox)

    def start(self, pending: int = 0) -> Event:
        """Return the start of the node's next worker, which replaces the one before."""
        self.epoch += 1
        return self.event(WorkerStarted(version="0.1.0", pid=4711, pending=pending))


def container(number: int) -> ContainerId:
    """Return a container ID of the length of containerd's; its first and its last digits depend on *number*."""
    return ContainerId(f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4)
