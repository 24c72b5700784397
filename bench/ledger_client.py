"""What each override of nats-py gains: append latency, and events read per second, with and without it.

``events.nats.client.client`` replaces private members of nats-py for speed. Each variant here puts nats-py's own member
back. All variants take turns in one run, on one nats-server, so that the machine's mood hits them alike. Processor
time is the steadier figure on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bench.fold import fill
from bench.report import quantile, report
from events.nats.client import connection, nats_py
from events.nats.client.client import Client
from events.nats.client.nats_py import Msg, Subscription
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.process import logs
from events.schema import Event
from tests.support.stories.node import busy_node

_TOGETHER = 20
"""Concurrent appends: the number of pods of a node that start together."""


class _OwnPublish(Client):
    """nats-py's own ``_send_publish``."""

    _send_publish = nats_py.Client._send_publish


class _OwnParser(Client):
    """nats-py's own ``Parser``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ps = nats_py.Parser(self)


async def _listen_by_queue(client: nats_py.Client, subject: str, deliver: Callable[[Msg], None]) -> Subscription:
    async def call(msg: Msg) -> None:
        deliver(msg)

    return await client.subscribe(subject, cb=call, pending_msgs_limit=0, pending_bytes_limit=0)


class _OwnQueue(Client):
    """nats-py's own queue and task for each subscription."""

    listen = _listen_by_queue  # type: ignore[assignment]


class _OwnAll(_OwnParser):
    """nats-py without the overrides for speed."""

    _send_publish = nats_py.Client._send_publish
    listen = _listen_by_queue  # type: ignore[assignment]


VARIANTS: Mapping[str, type[Client]] = {
    "unchanged": Client,
    "unchanged, again": Client,  # a difference between the two is noise
    "own _send_publish": _OwnPublish,
    "own Parser": _OwnParser,
    "own queue": _OwnQueue,
    "own everything": _OwnAll,
}


class Sample(NamedTuple):
    """One turn of one variant."""

    latencies: list[float]
    """Seconds of each append, one after the other."""
    append_cpu: float
    """Seconds of processor time for one append."""
    together: float
    """Appends per second, several at a time."""
    together_cpu: float
    read: float
    """Events read per second."""
    read_cpu: float
    """Seconds of processor time for one event read."""


@contextmanager
def _connections_by(client: type[Client]) -> Iterator[None]:
    before = connection.Client
    connection.Client = client  # type: ignore[misc]
    try:
        yield
    finally:
        connection.Client = before  # type: ignore[misc]


async def take_turn(server: EmbeddedServer, client: type[Client], events: Iterator[Event], appends: int) -> Sample:
    """Append and read with *client*."""
    with _connections_by(client):
        ledger = await JetStreamLedger.connect(server.address)
        gc.collect()
        latencies: list[float] = []
        cpu = time.process_time()
        for event in islice(events, appends):
            start = time.perf_counter()
            await ledger.append(event)
            latencies.append(time.perf_counter() - start)
        append_cpu = (time.process_time() - cpu) / appends
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(appends // _TOGETHER):
            await asyncio.gather(*(ledger.append(event) for event in islice(events, _TOGETHER)))
        count = appends // _TOGETHER * _TOGETHER
        together, together_cpu = count / (time.perf_counter() - start), (time.process_time() - cpu) / count
        start, cpu, read = time.perf_counter(), time.process_time(), 0
        async with aclosing(ledger.read_messages()) as batches:
            async for messages in batches:
                read += len(messages)
        seconds, read_cpu = time.perf_counter() - start, time.process_time() - cpu
        await ledger.close()
    return Sample(latencies, append_cpu, together, together_cpu, read / seconds, read_cpu / read)


async def measure(server: EmbeddedServer, stored: int, appends: int, rounds: int) -> None:
    """Fill the ledger, let each variant take its turn in each round, and report."""
    await (await JetStreamLedger.connect(server.address)).close()
    events = busy_node(1_000_000)
    await fill(server, islice(events, stored))
    samples: dict[str, list[Sample]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 1):
        for name, client in VARIANTS.items():
            sample = await take_turn(server, client, events, appends)
            if number:  # the first round warms up
                samples[name].append(sample)
    for name, taken in samples.items():
        latencies = [seconds * 1e6 for sample in taken for seconds in sample.latencies]
        report(f"ledger client, {name}: append, p50", quantile(latencies, 0.5), "us")
        report(f"ledger client, {name}: append, p99", quantile(latencies, 0.99), "us")
        report(f"ledger client, {name}: append, processor", _median(taken, "append_cpu") * 1e6, "us")
        report(f"ledger client, {name}: appends, {_TOGETHER} at a time", _median(taken, "together"), "events/s")
        report(f"ledger client, {name}: the same, processor", _median(taken, "together_cpu") * 1e6, "us")
        report(f"ledger client, {name}: read", _median(taken, "read"), "events/s")
        report(f"ledger client, {name}: read, processor", _median(taken, "read_cpu") * 1e6, "us/event")


def _median(samples: list[Sample], name: str) -> float:
    return quantile([getattr(sample, name) for sample in samples], 0.5)


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_client", description=__doc__)
    parser.add_argument("--stored", type=int, default=50_000, help="events that are read")
    parser.add_argument("--appends", type=int, default=400, help="appends of each variant in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="plumbline-") as folder:
        server = EmbeddedServer(Path(folder) / "store", Path(folder) / "run")
        server.start()
        try:
            asyncio.run(measure(server, options.stored, options.appends, options.rounds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
