"""A command becomes one intent with one outcome, whether the worker runs, is down, or is killed meanwhile."""

from __future__ import annotations

import asyncio

from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.schema import (
    NO_CAUSE,
    NO_SANDBOX,
    ComparisonRequested,
    Event,
    NodeCompared,
    NodeName,
    RequestId,
    new_event_id,
    rfc3339,
)
from tests.support.node.node import Node
from tests.support.waiting import eventually

_NOW = 1_795_000_000_000_000_000


def comparison(node: Node, number: int) -> Event:
    """Return a command; the same *number* makes the same."""
    return Event(
        id=new_event_id(_NOW // 1_000_000, number.to_bytes(10, "big")),
        at=rfc3339(_NOW),
        node=NodeName(node.name),
        boot_id="",
        epoch=0,
        sandbox=NO_SANDBOX,
        cause=NO_CAUSE,
        trace="",
        data=ComparisonRequested(request=RequestId(str(number))),
    )


def send(node: Node, number: int) -> Event:
    command = comparison(node, number)

    async def sent() -> None:
        ledger = await JetStreamLedger.connect(node.server.address, name="e2e")
        try:
            await (await ensure_commands(ledger)).send(command)
        finally:
            await ledger.close()

    asyncio.run(sent())
    return command


def intents(node: Node) -> list[Event]:
    return [stored.event for stored in node.events() if isinstance(stored.event.data, ComparisonRequested)]


def outcomes(node: Node) -> list[str]:
    """Return the requests of the comparisons that were requested and made."""
    answered = [stored.event.data for stored in node.events() if isinstance(stored.event.data, NodeCompared)]
    return [data.request for data in answered if data.request]


def test_commands_become_intents_in_order_with_one_outcome_each(node: Node) -> None:
    sent = [send(node, number) for number in range(3)]
    eventually(lambda: len(outcomes(node)) == 3, "each has an outcome")
    node.kill()
    sent += [send(node, number) for number in range(3, 6)]
    node.start()
    eventually(lambda: len(outcomes(node)) == 6, "each has an outcome, also those sent while the worker was down")
    node.restart()
    send(node, 5)
    sent.append(send(node, 6))
    eventually(lambda: len(outcomes(node)) == 7, "the next worker continues after the last command")
    assert outcomes(node) == [event.id for event in sent]
    assert [event.data.request for event in intents(node) if isinstance(event.data, ComparisonRequested)] == [
        event.id for event in sent
    ]
