"""What serves a node, put together: the only place that knows how the worker's parts depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from events.ledger.notices import Notices
from events.schema import ComparisonRequested, ReclaimRequested, RepairRequested
from nodeworker.drift.inspector import Inspector
from nodeworker.drift.node_comparison import NodeComparison
from nodeworker.drift.repair.repairer import Repairer
from nodeworker.drift.watch.watcher import Watcher
from nodeworker.intake.check import Checker
from nodeworker.intake.log_files import LogFiles
from nodeworker.intake.recovery import Recovery
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.requests import Requests
from nodeworker.intake.socket_server import SocketServer
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Journal
from nodeworker.leaks.evidence.container_runtime import CriRuntime, SharedRuntime
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.leaks.forced_release import ForcedRelease
from nodeworker.leaks.reclaimer import Reclaimer
from nodeworker.leaks.reporter import LeakReporter
from nodeworker.leaks.scanner import LeakScanner
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.kubelet import Kubelet
from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.runners import WayRunners
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.attach import Attacher
from nodeworker.sandboxes.collections_under_way import CollectionsUnderWay
from nodeworker.sandboxes.commands import Handler, Order, Orders
from nodeworker.sandboxes.detach import Detacher
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.status_wait import StatusWait
from nodeworker.settings import WorkerSettings

T = TypeVar("T")


class Memory:
    """What the worker knows, and what it keeps for others, before and while it serves."""

    def __init__(self, settings: WorkerSettings, journal: Journal, source: Source | None) -> None:
        self.journal = journal
        self.source = source
        self.answers = Answers()
        self.spool = Spool(settings.spool)
        self.places = Footprint(settings.worker.devices.info_folder)
        self.log_files = LogFiles()


class Parts:
    """The parts; ``door`` is where requests come in. *connected* tells whether the ledger is."""

    def __init__(
        self,
        settings: WorkerSettings,
        memory: Memory,
        notices: Notices,
        connected: Callable[[], bool],
        processes: NativePool,
        metrics: WorkerMetrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        section, journal, source, answers = settings.worker, memory.journal, memory.source, memory.answers
        self._settings = settings
        self._journal = journal
        self._metrics = metrics
        executor = PluginExecutor(marker=settings.node_name)
        runners = WayRunners(executor, section.native, processes)
        readiness, collections = Readiness(seats=section.concurrency // 2), CollectionsUnderWay()
        detacher = Detacher(journal, runners, section, metrics)
        self.statuses = StatusWait(notices, journal.node, section.status_wait, metrics)
        planner = Planner(journal, source, runners, section, readiness, self._device_sources(source))
        attacher = Attacher(journal, detacher, planner, runners, section, metrics, self.statuses, collections)
        self.inspector = Inspector(settings.drift, journal.boot_id)
        checker = Checker(journal, runners, section, source, connected, self.inspector)
        collector = GarbageCollector(
            journal, answers, runners, section, readiness, checker.default_attachment, collections
        )
        self._watcher = Watcher(
            journal,
            self.inspector,
            self._take_turn,
            lambda: self.dispatcher.busy,
        )
        forced_release = ForcedRelease(detacher, runners, executor, section.delegate_timeout)
        self._leaks, reclaimer = self._leak_keepers(memory, forced_release)
        leak_scan = None if settings.leaks.policy == "off" else self._leaks.scan_now
        self._comparison = NodeComparison(journal, self._watcher, settings.drift.interval, leak_scan)
        self.orders = Orders(journal, self._handlers(runners, reclaimer))
        self.dispatcher = Dispatcher(
            attacher, detacher, collector, self.orders, answers, self.statuses, tasks, section.concurrency
        )
        self.upkeep = Recovery(journal, self.dispatcher, answers, memory.spool, metrics)
        request_log = RequestLog(section.network, memory.log_files)
        request_log.warn_of_keys(section.unknown_network_keys, "worker.network")
        spool, drain = memory.spool, self.upkeep.drain_spool
        intake = Requests(journal, planner, self.dispatcher, checker, answers, spool, drain, metrics, request_log)
        self.door = SocketServer(settings.socket, intake)

    def watching(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what is to run beside the requests, without end, as the configuration asks for it."""
        parts = [self.upkeep.run()]
        if self._settings.drift.enabled:
            parts += [self._watcher.run(), self._comparison.run()]
        if self._settings.leaks.policy != "off":
            parts.append(self._leaks.run())
        return parts

    async def _take_turn(self, container_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of *work*, run in the queue of the container."""
        return await self.dispatcher.take_turn(container_id, work)

    def _device_sources(self, source: Source | None) -> list[DeviceSource]:
        """Return who knows which devices pods have, in the order in which they are asked."""
        devices = self._settings.worker.devices
        kubelet = Kubelet(Path(devices.pod_resources), Path(devices.checkpoint))
        claims = source.claims if source else None
        return [kubelet, claims] if claims else [kubelet]

    def _leak_keepers(self, memory: Memory, forced_release: ForcedRelease) -> tuple[LeakReporter, Reclaimer]:
        """Return the parts that report and reclaim leaks."""
        journal, settings = self._journal, self._settings.leaks
        journal.on_recorded(lambda event, _: memory.places.learn(event))
        runtime = SharedRuntime(CriRuntime(settings.cri_socket))
        scanner = LeakScanner(journal.state, journal.boot_id, runtime, memory.places, settings.results_dir)
        return (
            LeakReporter(journal, scanner, self._metrics, settings.interval),
            Reclaimer(journal, memory.answers, scanner, forced_release, self._metrics, self._take_turn),
        )

    def _handlers(self, runners: WayRunners, reclaimer: Reclaimer) -> Mapping[type[Order], Handler]:
        """Return who fulfils which orders."""
        handlers: dict[type[Order], Handler] = {ComparisonRequested: self._comparison.compare}
        if self._settings.drift.enabled:
            repairer = Repairer(
                self._journal, self.inspector, runners, self._settings.worker.delegate_timeout, self._metrics
            )
            handlers[RepairRequested] = repairer.repair
        if self._settings.leaks.policy == "reclaim":
            handlers[ReclaimRequested] = reclaimer.reclaim
        return handlers
