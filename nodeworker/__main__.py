"""The worker's process: the only place that knows all its parts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import prometheus_client
import structlog

from events import logs
from events.fold import request_of
from events.jetstream import JetStreamLedger
from events.jetstream_commands import made_commands
from events.ledger import ConflictError, Ledger, LedgerError
from events.schema import (
    INTENTS,
    ComparisonRequested,
    Event,
    EventId,
    NodeName,
    ReclaimRequested,
    RepairRequested,
    WorkerStarted,
    WorkerStopped,
)
from events.settings import DEFAULT_PATH, SettingsError, hub_address, ledger_address, load
from events.streams import NODE_STREAM
from nodeworker.answers import Answers, reply_of
from nodeworker.attach import Attacher
from nodeworker.check import Checker
from nodeworker.cluster.source import Source
from nodeworker.collections_under_way import CollectionsUnderWay
from nodeworker.delegates.exec import PluginExecutor
from nodeworker.delegates.orphans import end_orphans
from nodeworker.detach import Detacher
from nodeworker.devices.kubelet import Kubelet
from nodeworker.devices.source import DeviceSource
from nodeworker.dispatch import Dispatcher
from nodeworker.door import Door
from nodeworker.gc import GarbageCollector
from nodeworker.hub import Hub
from nodeworker.intake import Intake
from nodeworker.interfaces.processes import NativeProcesses
from nodeworker.interfaces.ways import WayRunners
from nodeworker.last_resort import LastResort
from nodeworker.leaks.look import Looker, links_there
from nodeworker.leaks.observer import LeakObserver
from nodeworker.leaks.places import Places
from nodeworker.leaks.runtime import CriRuntime, SharedRuntime
from nodeworker.lock import only_worker
from nodeworker.logfile import LogFiles
from nodeworker.metrics import WorkerMetrics
from nodeworker.observe.comparing import Comparer, LookBeside
from nodeworker.observe.eyes import Eyes
from nodeworker.observe.observer import Observer
from nodeworker.orders import Handler, Order, Orders
from nodeworker.patience import seconds_since, seconds_until
from nodeworker.publication import StatusWait
from nodeworker.readiness import Readiness
from nodeworker.reclaim import Reclaimer
from nodeworker.recorder import Recorder
from nodeworker.repair.repairer import Repairer
from nodeworker.requestlog import RequestLog
from nodeworker.settings import DeviceSettings, WorkerSettings
from nodeworker.spool import Spool
from nodeworker.upkeep import Retention, Upkeep
from nodeworker.version import version

log = structlog.get_logger(__name__)

_ORPHAN_PATIENCE = 5.0
_SOURCE_PATIENCE = 5.0
"""Seconds that a start waits for pods and networks; after that the copy on disk and single look-ups must do."""
_SETTLE = 2.0
"""Seconds that the hub gets to take the last events: a node that is drained may not come back."""
_SWITCH = 0.001
"""Seconds after which a thread at work, with a native plugin say, lets the event loop go on; by default it is 5 ms."""
_GRACE = 5.0
"""Seconds that requests under way get to finish when the worker is told to stop."""


async def run(settings: WorkerSettings, wrap: Callable[[Ledger], Ledger] = lambda ledger: ledger) -> None:
    """Serve until SIGTERM or SIGINT.

    *wrap* lets a test put something between the worker and its ledger. Raises LedgerError and SettingsError when the
    worker can't start.
    """
    metrics = WorkerMetrics()
    address = ledger_address(settings)
    hub_at = hub_address(settings)
    connection = await JetStreamLedger.connect(
        address.url, address.token, config=NODE_STREAM, name="worker", observe_ack=metrics.ledger_acked
    )
    try:
        hub = None
        if hub_at is not None and settings.hub is not None:
            hub = Hub(hub_at, settings.hub.replicas, connection, NodeName(settings.node_name))
        await _Worker(settings, wrap(connection), connection, hub, metrics).run()
    finally:
        await connection.close()


class _Worker:
    def __init__(
        self,
        settings: WorkerSettings,
        ledger: Ledger,
        connection: JetStreamLedger,
        hub: Hub | None,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._connection = connection
        self._hub = hub
        self._metrics = metrics
        self._recorder = Recorder(ledger, NodeName(settings.node_name))
        self._answers = Answers()
        self._spool = Spool(settings.spool)
        self._source = _open_source(settings, metrics)
        self._log_files = LogFiles()
        self._marker = settings.node_name
        self._places = Places(settings.worker.devices.info_folder)

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with (
            only_worker(Path(self._settings.run_dir)) as lock,
            contextlib.closing(NativeProcesses(keep=(lock,))) as processes,
            self._log_files,
        ):
            await self._take_over(stop, processes)

    async def _take_over(self, stop: asyncio.Event, processes: NativeProcesses) -> None:
        """Learn what was, and go on from there."""
        await self._load()
        killed = await end_orphans(self._marker, _ORPHAN_PATIENCE)
        pending = len(self._recorder.state.pending)
        await self._recorder.open_epoch(
            WorkerStarted(version=version(), pid=os.getpid(), pending=pending, spooled=len(self._spool))
        )
        log.info("worker_started", node=self._settings.node_name, pending=pending, orphans_killed=killed)
        async with asyncio.TaskGroup() as tasks:
            service = tasks.create_task(self._serve(tasks, stop, processes))
            service.add_done_callback(lambda _: stop.set())

    async def _serve(self, tasks: asyncio.TaskGroup, stop: asyncio.Event, processes: NativeProcesses) -> None:
        """Finish what is open, open the door, and stay until *stop*."""
        section = self._settings.worker
        executor = PluginExecutor(marker=self._marker)
        runners = WayRunners(executor, section.native, processes)
        detacher = Detacher(self._recorder, runners, section, self._metrics)
        readiness = Readiness(seats=section.concurrency // 2)
        device_sources = _device_sources(section.devices, self._source)
        statuses = StatusWait(self._hub or self._connection, self._recorder.node, section.status_wait, self._metrics)
        collections = CollectionsUnderWay()
        attacher = Attacher(
            self._recorder,
            detacher,
            self._source,
            runners,
            section,
            self._metrics,
            readiness,
            device_sources,
            statuses,
            collections,
        )
        eyes = Eyes(self._settings.drift)
        checker = Checker(self._recorder, runners, section, self._source, self._ledger_connected, eyes)
        collector = GarbageCollector(
            self._recorder, self._answers, runners, section, readiness, checker.default_attachment, collections
        )
        observer = Observer(self._recorder, eyes)
        leaks, reclaimer = self._leak_keepers(LastResort(detacher, runners, executor, section.delegate_timeout))
        comparer = Comparer(self._recorder, observer, self._settings.drift.interval, self._beside(leaks))
        orders = Orders(self._recorder, self._handlers(comparer, eyes, runners, reclaimer))
        dispatcher = Dispatcher(
            attacher, detacher, collector, orders, self._answers, statuses, tasks, section.concurrency
        )
        observer.give_turns(dispatcher.take_turn, lambda: dispatcher.busy)
        reclaimer.give_turns(dispatcher.take_turn)
        upkeep = Upkeep(self._recorder, dispatcher, self._answers, self._spool, self._metrics)
        request_log = RequestLog(section.network, self._log_files)
        request_log.warn_of_keys(section.unknown_network_keys, "worker.network")
        intake = Intake(self._recorder, dispatcher, checker, self._answers, self._spool, self._metrics, request_log)
        door = Door(self._settings.socket, intake)
        self._watch(dispatcher)
        hub_task = None if self._hub is None else tasks.create_task(self._hub.run(), name="hub")
        background = [
            tasks.create_task(self._consume(dispatcher), name="consume"),
            tasks.create_task(self._give_way(), name="give-way"),
            tasks.create_task(_give_up(processes), name="give-up"),
            tasks.create_task(statuses.run(), name="hear-publisher"),
            tasks.create_task(self._take_orders(orders), name="orders"),
            tasks.create_task(self._retention().run(), name="retention"),
        ]
        if self._source is not None:
            background.append(tasks.create_task(self._source.run(), name="source"))
            if not await self._source.ready(_SOURCE_PATIENCE):
                log.warning("source_not_ready", after=_SOURCE_PATIENCE)
        with self._exposition():
            for request in [*upkeep.resume(), *await upkeep.drain_spool()]:
                await self._answers.wait(request)
            background.append(tasks.create_task(upkeep.run(), name="upkeep"))
            if self._settings.drift.wanted:
                background += [tasks.create_task(part.run()) for part in (observer, comparer)]
            if self._settings.leaks.policy != "off":
                background.append(tasks.create_task(leaks.run(), name="observe-leaks"))
            await door.open()
            log.info("worker_open", socket=str(self._settings.socket))
            await stop.wait()
            await door.close()
            await dispatcher.finish(_GRACE)
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        await self._say_goodbye(hub_task)
        for part in (eyes, self._source):
            if part is not None:
                part.close()
        log.info("worker_stopped")

    def _handlers(
        self, comparer: Comparer, eyes: Eyes, runners: WayRunners, reclaimer: Reclaimer
    ) -> Mapping[type[Order], Handler]:
        """Return who fulfils which orders."""
        handlers: dict[type[Order], Handler] = {ComparisonRequested: comparer.compare}
        if self._settings.drift.wanted:
            repairer = Repairer(self._recorder, eyes, runners, self._settings.worker, self._metrics)
            handlers[RepairRequested] = repairer.repair
        if self._settings.leaks.policy == "reclaim":
            handlers[ReclaimRequested] = reclaimer.reclaim
        return handlers

    async def _say_goodbye(self, hub_task: asyncio.Task[None] | None) -> None:
        with contextlib.suppress(LedgerError):
            await self._recorder.record(WorkerStopped(reason="signal"))
        await self._recorder.close()
        if self._hub is not None and hub_task is not None:
            await self._hub.settle(_SETTLE)
            hub_task.cancel()
            await asyncio.wait({hub_task})
            await self._hub.close()

    def _leak_keepers(self, last_resort: LastResort) -> tuple[LeakObserver, Reclaimer]:
        """Return who tells of leaks and who frees them."""
        recorder, settings = self._recorder, self._settings.leaks
        recorder.on_recorded(lambda event, _: self._places.learn(event))
        runtime = SharedRuntime(CriRuntime(settings.cri_socket))
        looker = Looker(recorder.state, recorder.boot_id, runtime, self._places, settings.results_dir)
        return (
            LeakObserver(recorder, looker, self._metrics, settings.interval),
            Reclaimer(recorder, self._answers, looker, last_resort, self._metrics),
        )

    def _beside(self, leaks: LeakObserver) -> tuple[LookBeside, ...]:
        """Return what a comparison of the node looks at beside its sandboxes."""
        return () if self._settings.leaks.policy == "off" else (leaks.look,)

    async def _consume(self, dispatcher: Dispatcher) -> None:
        async for intent in self._recorder.intents():
            dispatcher.dispatch(intent)

    async def _give_way(self) -> None:
        """End everything at once when another worker has the node: as after a crash, that one goes on with it."""
        await self._recorder.replaced.wait()
        raise ConflictError(f"another worker has taken node {self._settings.node_name} over: this one stops")

    async def _take_orders(self, orders: Orders) -> None:
        await orders.run(await (made_commands(self._connection) if self._hub is None else self._hub.commands()))

    def _retention(self) -> Retention:
        hub, hours = self._hub, self._settings.ledger.retention_hours
        return Retention(self._ledger, self._recorder, hours, *(() if hub is None else (lambda: hub.done,)))

    def _ledger_connected(self) -> bool:
        return self._connection.connected

    async def _load(self) -> None:
        """Learn what the ledger says, and keep the answers that an entry point may still come back for."""
        waiting: dict[EventId, Event] = {}
        there = await asyncio.to_thread(links_there)
        async for stored in self._recorder.load():
            event, request = stored.event, request_of(stored.event)
            self._places.learn(event, there)
            if request is None:
                continue
            if event.type in INTENTS:
                if seconds_until(getattr(event.data, "deadline", "")) > 0:
                    waiting[event.id] = event
            elif (intent := waiting.pop(event.cause, None)) is not None:
                self._answers.give(request, reply_of(event.data, getattr(intent.data, "config", "")))

    def _watch(self, dispatcher: Dispatcher) -> None:
        state = self._recorder.state
        self._metrics.watch(
            queue_depth=lambda: dispatcher.queue_depth,
            in_progress=lambda: dispatcher.in_progress,
            oldest_pending=lambda: max((seconds_since(p.event.at) for p in tuple(state.pending.values())), default=0.0),
            sandboxes=lambda: len(state.sandboxes),
            ledger_connected=lambda: float(self._ledger_connected()),
        )
        if (hub := self._hub) is not None:
            self._metrics.watch_hub(
                connected=lambda: float(hub.connected),
                lag_events=lambda: hub.lag_events,
                lag_seconds=lambda: hub.lag_seconds,
            )

    @contextlib.contextmanager
    def _exposition(self) -> Iterator[None]:
        """Serve ``/metrics`` meanwhile."""
        where = self._settings.worker.metrics
        if not where.port:
            yield
            return
        server, thread = prometheus_client.start_http_server(where.port, where.host, self._metrics.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


async def _give_up(processes: NativeProcesses) -> None:
    """End everything once a process that makes interfaces has ended: whoever starts anew makes all of them."""
    await processes.died.wait()
    raise ChildProcessError("a process that makes interfaces ended unasked: the worker starts anew")


def _open_source(settings: WorkerSettings, metrics: WorkerMetrics) -> Source | None:
    """Return where pods and networks come from. Raises SettingsError."""
    if settings.manifests:
        from nodeworker.cluster.manifests import Manifests  # noqa: PLC0415  # each costs memory that only its user pays

        return Manifests(Path(settings.manifests))
    if (cluster := settings.worker.kubernetes) is None:
        return None
    from nodeworker.cluster.kubeconfig import from_kubeconfig, in_cluster  # noqa: PLC0415
    from nodeworker.cluster.kubernetes import Kubernetes  # noqa: PLC0415

    credentials = from_kubeconfig(Path(cluster.kubeconfig)) if cluster.kubeconfig else in_cluster()
    folder = Path(settings.state_dir) / "cluster"
    source = Kubernetes(credentials, settings.node_name, folder, pod_wait=cluster.pod_wait)
    metrics.watch_cluster(source.watches)
    return source


def _device_sources(settings: DeviceSettings, source: Source | None) -> list[DeviceSource]:
    """Return who knows which devices pods have, in the order in which they are asked."""
    kubelet = Kubelet(Path(settings.pod_resources), Path(settings.checkpoint))
    claims = source.claims if source else None
    return [kubelet, claims] if claims else [kubelet]


def main() -> int:
    """Run the worker; return its exit code: 0 stopped in order, 1 could not go on, 2 configuration."""
    parser = argparse.ArgumentParser(prog="plumbline-worker", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    parser.add_argument("--check-config", type=Path, metavar="PATH", help="say what is wrong with PATH, and end")
    options = parser.parse_args()
    try:
        settings = load(options.check_config or options.config, WorkerSettings)
        if options.check_config:
            return 0
        logs.configure(settings.log_level, "worker")
        return _serve(settings)
    except SettingsError as error:
        sys.stderr.write(f"plumbline-worker: {error}\n")
        return 2


def _serve(settings: WorkerSettings) -> int:
    exit_code = 0
    sys.setswitchinterval(_SWITCH)
    try:
        asyncio.run(run(settings))
    except* (LedgerError, OSError) as group:
        log.exception("worker_failed", error="; ".join(str(error) for error in group.exceptions))
        exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
