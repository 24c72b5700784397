"""How fast the reconciler projects into SQLite and PostgreSQL, also a whole ledger from its start or from a snapshot.

The events are those of ``bench.fold``, and of a cluster whose pods all stay for the snapshot. PostgreSQL is Debian's,
started for this, with its durability as delivered.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bench.cluster import Cluster
from bench.fold import decode_only, fill, fold_only
from bench.report import quantile, report
from events.fold import Sandbox
from events.ledger.new_event import new_event
from events.nats.ledger import JetStreamLedger
from events.nats.read_ahead import ReadAhead
from events.nats.server import EmbeddedServer
from events.process import logs
from events.schema import Event, StatusPublished, Stored, encode
from reconciler.projection.batching import BATCH_SIZE, collect_garbage_rarely
from reconciler.projection.fold.batch import Loaded, project
from reconciler.projection.rebuild.rebuild import rebuild
from reconciler.projection.rebuild.snapshot import restore, save
from reconciler.projection.store import Store
from reconciler.status.publishing import LOOKUP_BATCH
from tests.support.reconciler.postgres import Postgres
from tests.support.stories.node import busy_node

_EVENTS_A_SANDBOX = 8.84


def apply(url: str, events: Sequence[Stored]) -> tuple[float, float]:
    """Return the events per second that go into a new database, and the same by this process's own time on a CPU."""
    with closing(Store(url, "NODE")) as store:
        store.prepare()
        start, busy = time.perf_counter(), time.process_time()
        for first in range(0, len(events), BATCH_SIZE):
            store.apply(events[first : first + BATCH_SIZE])
        return len(events) / (time.perf_counter() - start), len(events) / (time.process_time() - busy)


def project_only(events: Sequence[Stored]) -> float:
    """Return the microseconds that one event takes to become rows."""
    start = time.perf_counter()
    for first in range(0, len(events), BATCH_SIZE):
        project(Loaded(sequence=first), events[first : first + BATCH_SIZE])
    return (time.perf_counter() - start) / len(events) * 1e6


async def filled(server: EmbeddedServer, count: int) -> int:
    """Fill the ledger of *server* with about *count* events; return with how many."""
    ledger = await JetStreamLedger.connect(server.address)  # makes the stream
    await ledger.close()
    events, _ = await fill(server, busy_node(round(count / _EVENTS_A_SANDBOX)))
    return events


async def rebuilt(url: str, server: EmbeddedServer, count: int) -> tuple[float, float]:
    """Return the wall and CPU seconds of a rebuild of the database at *url* from the ledger.

    CPU seconds are those of this process, without the process that reads the ledger and the servers.
    """
    ledger = await JetStreamLedger.connect(server.address)
    start, busy = time.perf_counter(), time.process_time()
    ahead = ReadAhead(ledger, server.address)
    done = await rebuild(url, ahead, "NODE", lambda _done, _end: None)
    seconds = time.perf_counter() - start, time.process_time() - busy
    await ledger.close()
    assert done == count, (done, count)
    return seconds


def apply_all(store: Store, events: Iterator[Event]) -> None:
    """Project *events* after the existing ones."""
    done = store.position()
    while batch := [Stored(n, event) for n, event in enumerate(itertools.islice(events, BATCH_SIZE), done + 1)]:
        store.apply(batch, for_listeners=False)
        done += len(batch)


def published(box: Sandbox) -> Event:
    """Return the event that says that the status of the pod of *box* was published."""
    data = StatusPublished(node=box.node, ifname=box.key.ifname, pod=box.pod, text="[]")
    return new_event(data, sandbox=box.key.container_id, cause=box.intent)


def snapshot_used(folder: Path, databases: Mapping[str, str], pods: int) -> None:
    """Report on a snapshot of a cluster of *pods*, each with two attachments, in empty *databases*: kind and URL."""
    url, events = f"sqlite:///{folder}/live.db", Cluster(max(1, pods // 30), pods).start()
    with closing(Store(url, "NODE", unfinished=True)) as store:
        store.prepare()
        apply_all(store, events)
        start = time.perf_counter()
        names = store.unsettled_pods()
        report(f"projection: what may have to be published of {pods} pods, all", time.perf_counter() - start, "s")
        start, boxes = time.perf_counter(), list[Sandbox]()
        for place in range(0, len(names), LOOKUP_BATCH):
            boxes += store.map_some_live_pods(names[place : place + LOOKUP_BATCH], lambda _, found, __: found[-1])
        report("projection: these looked up", time.perf_counter() - start, "s")
        apply_all(store, (published(box) for box in boxes))
        start = time.perf_counter()
        assert store.unsettled_pods() == []
        report(f"projection: what may have to be published of {pods} pods, none", time.perf_counter() - start, "s")
        start = time.perf_counter()
        named = store.live_pods()
        report(f"projection: what is published of {len(named)} live pods", time.perf_counter() - start, "s")
    start = time.perf_counter()
    save(url, folder / "snapshot")
    report(f"projection: a snapshot of {pods} pods written", time.perf_counter() - start, "s")
    report("projection: its size", (folder / "snapshot").stat().st_size / 2**20, "MiB")
    for kind, target in databases.items():
        start = time.perf_counter()
        with closing(Store(target, "NODE")) as store:
            store.prepare()
            restore(folder / "snapshot", target)
            store.position()
        report(f"projection: begun with it, {kind}", time.perf_counter() - start, "s", 2.0)


def measure(databases: Sequence[tuple[str, str]], count: int, rounds: int) -> None:
    """Report on each of *databases*: kind and URL, of which the former may be used as often as there are rounds."""
    sample = [Stored(n, event) for n, event in enumerate(busy_node(round(count / 10 / _EVENTS_A_SANDBOX)), 1)]
    texts = [encode(event) for _, event in sample]
    report("projection: size of an event", sum(map(len, texts)) / len(texts), "B")
    report("projection: of the time, decode", decode_only(texts), "us/event")
    report("projection: of the time, fold", fold_only(sample), "us/event")
    report("projection: of the time, fold and rows", project_only(sample), "us/event")
    for kind in dict.fromkeys(kind for kind, _ in databases):
        urls = [url for each, url in databases if each == kind]
        rates = [apply(url, sample) for url in urls[:rounds]]
        rate = quantile([wall for wall, _ in rates], 0.5)
        report(f"projection: events applied, {kind}", rate, "events/s", 20_000, better="more")
        report(f"projection: the same by time on the CPU, {kind}", quantile([cpu for _, cpu in rates], 0.5), "events/s")
    memory = Path("/dev/shm")
    store = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="plumbline-")
    with_server = EmbeddedServer(Path(store.name) / "store", Path(store.name) / "run")  # filling it is not measured
    with_server.start()
    try:
        events = asyncio.run(filled(with_server, count))
        for kind in dict.fromkeys(kind for kind, _ in databases):
            url = next(url for each, url in reversed(databases) if each == kind)
            seconds, busy = asyncio.run(rebuilt(url, with_server, events))
            report(f"projection: {events} events rebuilt, {kind}", seconds, "s", 60.0 * events / 1_000_000)
            report(f"projection: the same by time on the CPU, {kind}", busy, "s")
    finally:
        with_server.stop()
        store.cleanup()


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.projection", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="about so many in the ledger")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pods", type=int, default=10_000, help="so many in the snapshot")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="this kind of database alone")
    parser.add_argument("--without", action="append", default=[], choices=("ledger", "snapshot"), help="leave this out")
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    collect_garbage_rarely()  # as the reconciler does
    with tempfile.TemporaryDirectory(prefix="plumbline-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = Postgres(folder / "pg", durable=True)
        sqlite = (("sqlite", f"sqlite:///{folder}/{n}.db") for n in itertools.count())
        postgresql = (("postgresql", postgres.url(postgres.database())) for _ in itertools.count())
        try:
            kinds = [each for each in ("sqlite", "postgresql") if options.only in (None, each)]
            made = {"sqlite": sqlite, "postgresql": postgresql}
            if "ledger" not in options.without:
                databases = [next(made[kind]) for kind in kinds for _ in range(options.rounds + 1)]
                measure(databases, options.events, options.rounds)
            if "snapshot" not in options.without:
                snapshot_used(folder, dict(next(made[kind]) for kind in kinds), options.pods)
        finally:
            postgres.stop()


if __name__ == "__main__":
    main()
