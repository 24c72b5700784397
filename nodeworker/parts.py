"""What serves a node, put together: the only place that knows how the worker's parts depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from events.ledger.notices import Notices
from events.schema import ComparisonRequested, ReclaimRequested, RepairRequested
from nodeworker.drift.inspector import Eyes
from nodeworker.drift.node_comparison import Comparer
from nodeworker.drift.repair.repairer import Repairer
from nodeworker.drift.watch.watcher import Observer
from nodeworker.intake.check import Checker
from nodeworker.intake.log_files import LogFiles
from nodeworker.intake.recovery import Upkeep
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.requests import Intake
from nodeworker.intake.socket_server import Door
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Recorder
from nodeworker.leaks.evidence.container_runtime import CriRuntime, SharedRuntime
from nodeworker.leaks.evidence.footprint import Places
from nodeworker.leaks.forced_release import LastResort
from nodeworker.leaks.reclaimer import Reclaimer
from nodeworker.leaks.reporter import LeakObserver
from nodeworker.leaks.scanner import Looker
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.kubelet import Kubelet
from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativeProcesses
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


class Memory:
    """What the worker knows, and what it keeps for others, before and while it serves."""

    def __init__(self, settings: WorkerSettings, recorder: Recorder, source: Source | None) -> None:
        self.recorder = recorder
        self.source = source
        self.answers = Answers()
        self.spool = Spool(settings.spool)
        self.places = Places(settings.worker.devices.info_folder)
        self.log_files = LogFiles()


class Parts:
    """The parts; ``door`` is where requests come in. *connected* tells whether the ledger is."""

    def __init__(
        self,
        settings: WorkerSettings,
        memory: Memory,
        notices: Notices,
        connected: Callable[[], bool],
        processes: NativeProcesses,
        metrics: WorkerMetrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        section, recorder, source, answers = settings.worker, memory.recorder, memory.source, memory.answers
        self._settings = settings
        self._recorder = recorder
        self._metrics = metrics
        executor = PluginExecutor(marker=settings.node_name)
        runners = WayRunners(executor, section.native, processes)
        readiness, collections = Readiness(seats=section.concurrency // 2), CollectionsUnderWay()
        detacher = Detacher(recorder, runners, section, metrics)
        self.statuses = StatusWait(notices, recorder.node, section.status_wait, metrics)
        planner = Planner(recorder, source, runners, section, readiness, self._device_sources(source))
        attacher = Attacher(recorder, detacher, planner, runners, section, metrics, self.statuses, collections)
        self.eyes = Eyes(settings.drift, recorder.boot_id)
        checker = Checker(recorder, runners, section, source, connected, self.eyes)
        collector = GarbageCollector(
            recorder, answers, runners, section, readiness, checker.default_attachment, collections
        )
        self._observer = Observer(recorder, self.eyes)
        last_resort = LastResort(detacher, runners, executor, section.delegate_timeout)
        self._leaks, reclaimer = self._leak_keepers(memory, last_resort)
        beside = () if settings.leaks.policy == "off" else (self._leaks.look,)
        self._comparer = Comparer(recorder, self._observer, settings.drift.interval, beside)
        self.orders = Orders(recorder, self._handlers(runners, reclaimer))
        self.dispatcher = Dispatcher(
            attacher, detacher, collector, self.orders, answers, self.statuses, tasks, section.concurrency
        )
        self._observer.give_turns(self.dispatcher.take_turn, lambda: self.dispatcher.busy)
        reclaimer.give_turns(self.dispatcher.take_turn)
        self.upkeep = Upkeep(recorder, self.dispatcher, answers, memory.spool, metrics)
        request_log = RequestLog(section.network, memory.log_files)
        request_log.warn_of_keys(section.unknown_network_keys, "worker.network")
        spool, drain = memory.spool, self.upkeep.drain_spool
        intake = Intake(recorder, planner, self.dispatcher, checker, answers, spool, drain, metrics, request_log)
        self.door = Door(settings.socket, intake)

    def watching(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what is to run beside the requests, without end, as the configuration asks for it."""
        parts = [self.upkeep.run()]
        if self._settings.drift.wanted:
            parts += [self._observer.run(), self._comparer.run()]
        if self._settings.leaks.policy != "off":
            parts.append(self._leaks.run())
        return parts

    def _device_sources(self, source: Source | None) -> list[DeviceSource]:
        """Return who knows which devices pods have, in the order in which they are asked."""
        devices = self._settings.worker.devices
        kubelet = Kubelet(Path(devices.pod_resources), Path(devices.checkpoint))
        claims = source.claims if source else None
        return [kubelet, claims] if claims else [kubelet]

    def _leak_keepers(self, memory: Memory, last_resort: LastResort) -> tuple[LeakObserver, Reclaimer]:
        """Return who tells of leaks and who frees them."""
        recorder, settings = self._recorder, self._settings.leaks
        recorder.on_recorded(lambda event, _: memory.places.learn(event))
        runtime = SharedRuntime(CriRuntime(settings.cri_socket))
        looker = Looker(recorder.state, recorder.boot_id, runtime, memory.places, settings.results_dir)
        return (
            LeakObserver(recorder, looker, self._metrics, settings.interval),
            Reclaimer(recorder, memory.answers, looker, last_resort, self._metrics),
        )

    def _handlers(self, runners: WayRunners, reclaimer: Reclaimer) -> Mapping[type[Order], Handler]:
        """Return who fulfils which orders."""
        handlers: dict[type[Order], Handler] = {ComparisonRequested: self._comparer.compare}
        if self._settings.drift.wanted:
            repairer = Repairer(self._recorder, self.eyes, runners, self._settings.worker, self._metrics)
            handlers[RepairRequested] = repairer.repair
        if self._settings.leaks.policy == "reclaim":
            handlers[ReclaimRequested] = reclaimer.reclaim
        return handlers
