"""A whole cluster's events through a real nats-server into a reconciler: its memory, and its lag.

There are no interfaces and no nodes, only the events of 5,000 nodes: each has 30 pods with two attachments. Then pods
end and others start, at a constant rate of events. The lag is the age of the oldest event that is not projected.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nats

from bench.fold import fill
from bench.report import quantile, report
from bench.stage import resident
from events import subjects
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer, free_port
from events.process import logs
from events.schema import Event, WorkerStarted, encode
from tests.support.stories.events import EventFactory, container
from tests.support.stories.life import Life

_AT_ONCE = 20
"""Events between two looks at the clock."""
_LOOK = 0.1
"""Seconds between two looks at the reconciler."""


class Cluster:
    """The events of the workers of many nodes."""

    def __init__(self, nodes: int, pods: int) -> None:
        self._tellers = [EventFactory(f"node-{number:06}") for number in range(nodes)]
        self._pods = pods
        self._next = 0

    def start(self) -> Iterator[Event]:
        """Yield what there is once every pod is attached."""
        for factory in self._tellers:
            yield factory.event(WorkerStarted(version="0.1.0", pid=1))
        for _ in range(self._pods):
            yield from self._life().add()

    def churn(self) -> Iterator[Event]:
        """Yield without end what there is when the oldest pods go and others come."""
        oldest = 0
        while True:
            yield from self._life(oldest).delete()
            yield from self._life().add()
            oldest += 1

    def _life(self, number: int | None = None) -> Life:
        if number is None:
            number, self._next = self._next, self._next + 1
        return Life(self._tellers[number % len(self._tellers)], container(number + 1))


def metric(port: int, name: str) -> int:
    """Return what the reconciler's metric of that name says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"plumbline_reconciler_{name} "):
                return int(float(line.split()[1]))
    raise LookupError(name)


def applied(port: int) -> int:
    """Return the sequence up to which the reconciler is."""
    return metric(port, "applied_sequence")


def acts(port: int) -> bool:
    """Return whether the reconciler acts: before, it has its own event to write."""
    return metric(port, "active") == 1


async def until(reached: Callable[[], bool]) -> None:
    """Wait until the reconciler has *reached* that."""
    while True:
        try:
            if await asyncio.to_thread(reached):
                return
        except OSError:
            pass  # it starts
        await asyncio.sleep(0.02)


class Churn:
    """Appends *events* to the ledger of *server* at a constant rate; it already had *before* events."""

    def __init__(self, server: EmbeddedServer, events: Iterator[Event], before: int) -> None:
        self._server = server
        self._events = events
        self._before = before
        self._sent: list[float] = []
        """When each was sent."""
        self.late = 0.0
        """Seconds by which it was behind its own plan, at worst."""

    async def run(self, rate: int, seconds: int) -> int:
        """Append; return the sequence of the last."""
        client = await nats.connect(self._server.url, token=self._server.token)
        begin = time.perf_counter()
        for number, event in enumerate(itertools.islice(self._events, rate * seconds)):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
                self.late = max(self.late, time.perf_counter() - begin - number / rate)
            await client.publish(subjects.subject(event.node, event.sandbox, event.type), encode(event))
            self._sent.append(time.perf_counter())
        await client.close()
        return self._before + len(self._sent)

    def behind(self, sequence: int) -> float:
        """Return for how many seconds the first event after *sequence* has been on its way; 0: there is none."""
        following = sequence - self._before
        return time.perf_counter() - self._sent[following] if following < len(self._sent) else 0.0


async def watch(churn: Churn, port: int, lags: list[float]) -> None:
    """Add to *lags* how far the reconciler is behind, without end."""
    while True:
        lags.append(churn.behind(await asyncio.to_thread(applied, port)))
        await asyncio.sleep(_LOOK)


async def measure(server: EmbeddedServer, folder: Path, options: argparse.Namespace) -> None:
    """Report on a reconciler that starts when all pods are attached, and sees them go and come."""
    ledger = await JetStreamLedger.connect(server.address)
    cluster = Cluster(options.nodes, options.pods)
    count, _ = await fill(server, cluster.start())
    port = free_port()
    config = folder / "plumbline.json"
    token = folder / "token"
    token.write_text(server.token)
    settings = {
        "stateDir": str(folder),
        "runDir": str(folder / "run"),
        "ledger": {"url": server.url, "tokenFile": str(token)},
        "reconciler": {"metrics": {"port": port}},
        "logLevel": "warning",
    }
    config.write_text(json.dumps(settings))
    reconciler = await asyncio.create_subprocess_exec(sys.executable, "-m", "reconciler", "--config", config)
    try:
        start = time.perf_counter()
        await until(lambda: applied(port) >= count)
        report(f"cluster: {count} events projected at the first start", time.perf_counter() - start, "s")
        report("cluster: memory after that", resident(reconciler.pid), "MiB", 1024)
        await until(lambda: acts(port))
        churn, lags = Churn(server, cluster.churn(), await ledger.last_sequence()), list[float]()
        watching = asyncio.create_task(watch(churn, port, lags))
        last = await churn.run(options.rate, options.seconds)
        watching.cancel()
        await until(lambda: applied(port) >= last)
        assert await ledger.last_sequence() == last
        for name, q in (("median", 0.5), ("99 of 100", 0.99)):
            report(f"cluster: behind the ledger at {options.rate} events/s, {name}", quantile(lags, q), "s")
        report(f"cluster: behind the ledger at {options.rate} events/s, worst", max(lags), "s", 1.0)
        report("cluster: the generator itself was late by", churn.late, "s")
        report("cluster: memory at the end", resident(reconciler.pid), "MiB", 1024)
    finally:
        reconciler.terminate()
        await reconciler.wait()
        await ledger.close()


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--rate", type=int, default=2000, help="events a second")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="plumbline-") as name,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="plumbline-") as store,
    ):
        server = EmbeddedServer(Path(store) / "store", Path(name) / "run")
        server.start()
        try:
            asyncio.run(measure(server, Path(name), options))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
