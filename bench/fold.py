"""How fast a ledger is read and folded, from a real nats-server, and where the time goes.

The events are those of a busy node: pods start with two interfaces and end; some fail. The store is in memory if the
machine allows, because the time to fill it is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import nats

from bench.report import quantile, report
from events import subjects
from events.fold import State
from events.nats.client.connection import Connection
from events.nats.client.consumer import Consumer
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.process import logs
from events.schema import (
    Event,
    Stored,
    decode,
    encode,
)
from tests.support.stories.node import busy_node

_IN_FLIGHT = 2000
_SAMPLE = 20_000
_EVENTS_A_SANDBOX = 8.84


async def fill(server: EmbeddedServer, events: Iterator[Event]) -> tuple[int, int]:
    """Append *events*, many at a time; return how many there were, and their bytes."""
    client = await nats.connect(server.url, token=server.token)
    answered = asyncio.Semaphore(_IN_FLIGHT)
    inbox = client.new_inbox()

    async def acknowledged(message: Any) -> None:
        assert b'"error"' not in message.data, message.data
        answered.release()

    await client.subscribe(inbox, cb=acknowledged, pending_msgs_limit=0, pending_bytes_limit=0)
    count = size = 0
    for event in events:
        text = encode(event)
        await answered.acquire()
        await client.publish(subjects.subject(event.node, event.sandbox, event.type), text, inbox)
        count, size = count + 1, size + len(text)
    for _ in range(_IN_FLIGHT):
        await answered.acquire()
    await client.close()
    return count, size


async def read_and_fold(ledger: JetStreamLedger, count: int) -> float:
    """Return the events per second of a replay."""
    state = State()
    start = time.perf_counter()
    async with aclosing(ledger.read()) as events:
        async for stored in events:
            state.apply(stored)
    seconds = time.perf_counter() - start
    assert (state.sequence, state.anomaly_count, len(state.pending)) == (count, 0, 0)
    return count / seconds


async def transport_only(server: EmbeddedServer, count: int) -> tuple[float, list[bytes]]:
    """Return the events per second that arrive while no code decodes them, and a sample of their texts."""
    connection = Connection(server.address, "bench", 4.0)
    await connection.open()
    start = time.perf_counter()
    async with aclosing(Consumer(connection, "NODE", ("plumbline.ev.>",), 0, endless=False).pull()) as batches:
        texts = [message.payload async for batch in batches for message in batch if message.sequence <= _SAMPLE]
    seconds = time.perf_counter() - start
    await connection.close()
    return count / seconds, texts


def decode_only(texts: list[bytes]) -> float:
    """Return the microseconds that one event takes to decode."""
    start = time.perf_counter()
    for text in texts:
        decode(text)
    return (time.perf_counter() - start) / len(texts) * 1e6


def fold_only(events: list[Stored]) -> float:
    """Return the microseconds that one event takes to fold."""
    state = State()
    start = time.perf_counter()
    for stored in events:
        state.apply(stored)
    return (time.perf_counter() - start) / len(events) * 1e6


async def measure(server: EmbeddedServer, count: int, rounds: int) -> None:
    """Fill the ledger of *server* with *count* events, and report."""
    ledger = await JetStreamLedger.connect(server.address)
    start = time.perf_counter()
    count, size = await fill(server, busy_node(round(count / _EVENTS_A_SANDBOX)))
    report("fold: events appended, many at a time", count / (time.perf_counter() - start), "events/s")
    report("fold: size of an event", size / count, "B")
    whole = [await read_and_fold(ledger, count) for _ in range(rounds)]
    arrived = [await transport_only(server, count) for _ in range(rounds)]
    await ledger.close()
    decoded = [decode_only(arrived[0][1]) for _ in range(rounds)]
    events = [Stored(sequence, decode(text)) for sequence, text in enumerate(arrived[0][1], 1)]
    folded = [fold_only(events) for _ in range(rounds)]
    report(f"fold: {count} events read and folded", quantile(whole, 0.5), "events/s", 60_000, better="more")
    report("fold: transport only", quantile([rate for rate, _ in arrived], 0.5), "events/s")
    report("fold: of that time, transport", 1e6 / quantile([rate for rate, _ in arrived], 0.5), "us/event")
    report("fold: of that time, decode", quantile(decoded, 0.5), "us/event")
    report("fold: of that time, fold", quantile(folded, 0.5), "us/event")


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fold", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="about so many")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="plumbline-") as folder:
        server = EmbeddedServer(Path(folder) / "store", Path(folder) / "run")
        server.start()
        try:
            asyncio.run(measure(server, options.events, options.rounds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
