"""Make new events in processes other than a node's worker. Only a worker's events have a boot ID."""

from __future__ import annotations

import secrets
import time

from events.schema import (
    NO_CAUSE,
    NO_NODE,
    NO_SANDBOX,
    ContainerId,
    Data,
    Event,
    EventId,
    NodeName,
    new_event_id,
    rfc3339,
)


def new_event(
    data: Data,
    *,
    node: NodeName = NO_NODE,
    sandbox: ContainerId = NO_SANDBOX,
    cause: EventId = NO_CAUSE,
    epoch: int = 0,
) -> Event:
    """Return an event of *data* with a new ID and the current time; *node* is the addressee of a command."""
    now = time.time_ns()
    return Event(
        id=new_event_id(now // 1_000_000, secrets.token_bytes(10)),
        at=rfc3339(now),
        node=node,
        boot_id="",
        epoch=epoch,
        sandbox=sandbox,
        cause=cause,
        trace="",
        data=data,
    )
