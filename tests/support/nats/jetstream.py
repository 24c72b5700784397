"""Fill, read and watch a JetStream ledger, and kill or stop its server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import nats
from nats.aio.client import Client

from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.schema import Stored
from tests.support.stories.events import EventFactory, container

ONE = container(1)


async def everything(ledger: JetStreamLedger, subject: str = "plumbline.ev.>") -> list[Stored]:
    return [stored async for stored in ledger.read(subject)]


async def take(events: AsyncGenerator[Stored, None], count: int, seconds: float = 20) -> list[Stored]:
    taken: list[Stored] = []
    async with asyncio.timeout(seconds), aclosing(events):
        async for stored in events:
            taken.append(stored)
            if len(taken) == count:
                break
    return taken


async def fill(ledger: JetStreamLedger, count: int, *, size: int = 0, at_once: int = 64) -> list[Stored]:
    factory = EventFactory()
    events = [factory.note("x" * size, ONE) for _ in range(count)]
    sequences: list[int] = []
    for first in range(0, count, at_once):
        sequences += await asyncio.gather(*(ledger.append(event) for event in events[first : first + at_once]))
    return sorted(map(Stored, sequences, events))


async def consumers(ledger: JetStreamLedger) -> list[dict[str, Any]]:
    return msgspec.json.decode(await ledger.api("CONSUMER.LIST.NODE", {}))["consumers"] or []


@asynccontextmanager
async def raw_client(server: EmbeddedServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, token=server.token)
    yield client
    await client.close()


def kill(server: EmbeddedServer) -> None:
    """Kill the server; ``start`` restarts it on the same port and store."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
