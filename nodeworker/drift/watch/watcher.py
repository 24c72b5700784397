"""Detect when a sandbox differs from the ledger, and record it as drift.

Nothing is polled. The kernel sends events; shortly after one the worker inspects the sandbox. The inspection waits in
the sandbox's queue behind its requests, so an attach, detach or repair in progress is never reported as drift. Changes
without an event are found by the comparison of the whole node, at the start and at an interval.
"""

from __future__ import annotations

import asyncio

import structlog

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.ledger.ledger import LedgerError
from events.process import logs
from events.schema import DriftKind, DriftObserved, Event, Pod
from nodeworker.drift.expected_rules import RULE_DRIFTS
from nodeworker.drift.inspector import Inspector
from nodeworker.drift.watch.debounce import Debounce
from nodeworker.drift.watch.filter_events import FilterEvents
from nodeworker.drift.watch.kernel_events import KernelEvents, Listener, NodeLink
from nodeworker.drift.watch.subscriptions import Subscriptions
from nodeworker.errors import RequestFailedError
from nodeworker.journal.journal import Journal
from nodeworker.sandboxes.scheduler import Scheduler

log = structlog.get_logger(__name__)

_CONCURRENCY = 2
"""Inspections that wait for their turn at the same time: each takes a slot from the runtime's requests."""
_SETTLING = 0.1
"""Seconds from an attach to the first inspection."""
_POSTPONED, _RETRY = 2.0, 0.4
"""Seconds. A first inspection is postponed while requests are in progress, which are more urgent. It checks again
after the second value, and waits no longer than the first value in all."""


class Watcher:
    """Watches the sandboxes of the node, and records their drift."""

    def __init__(self, journal: Journal, inspector: Inspector, scheduler: Scheduler) -> None:
        self._journal = journal
        self._inspector = inspector
        self._scheduler = scheduler
        self._subscriptions = Subscriptions()
        self._rules_removed = asyncio.Event()
        self._filter_events = FilterEvents(self._rules_removed.set)
        self._debounces: dict[SandboxKey, Debounce] = {}
        self._timers: dict[SandboxKey, asyncio.TimerHandle] = {}
        self._queue: asyncio.Queue[SandboxKey] = asyncio.Queue()
        self._events_lost = asyncio.Event()
        journal.subscribe(self._recorded)

    @property
    def watched(self) -> int:
        """How many sandboxes are watched."""
        return len(self._subscriptions)

    async def run(self) -> None:
        """Watch without end. Without permission for kernel events, only comparisons of the node find drift."""
        listener = Listener(
            container_changed=self._container_changed,
            container_gone=self._container_gone,
            node_link_changed=self._node_link_changed,
            port_changed=self._port_changed,
            overflow=self._overflow,
        )
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CONCURRENCY):
                tasks.create_task(self._inspect_queued(), name="observe")
            tasks.create_task(self._compare_after_overflow(), name="observe-all")
            tasks.create_task(self._search_missing_rules(), name="observe-rules")
            try:
                with self._filter_events, KernelEvents(listener):
                    await asyncio.Event().wait()
            except OSError as error:
                log.warning("kernel_not_heard", error=str(error), remedy="give the worker CAP_NET_BROADCAST")
            finally:
                for timer in self._timers.values():
                    timer.cancel()

    async def compare_all(self) -> tuple[int, int, tuple[str, ...]]:
        """Inspect all attached sandboxes.

        Returns how many there are, how many drift, and a sentence for each that could not be inspected.
        """
        keys = [key for key, box in self._journal.state.sandboxes.items() if box.phase is SandboxPhase.ATTACHED]
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def one(key: SandboxKey) -> str:
            async with slots:
                return await self._inspect_in_turn(key)

        problems = await asyncio.gather(*map(one, keys))
        sandboxes = self._journal.state.sandboxes
        drifted = sum(1 for key in keys if key in sandboxes and sandboxes[key].drifts)
        return len(keys), drifted, tuple(filter(None, problems))

    # --- kernel events ---

    def _container_changed(self, netnsid: int) -> None:
        for key in self._subscriptions.of_namespace(netnsid):
            self._schedule(key)

    def _container_gone(self, netnsid: int) -> None:
        for key in tuple(self._subscriptions.of_namespace(netnsid)):
            self._subscriptions.forget(key)
            self._filter_events.watch(key, ())

    def _node_link_changed(self, link: NodeLink) -> None:
        for key in self._subscriptions.update_link(
            link.names, index=link.index, up=link.up, master=link.master, mtu=link.mtu, gone=link.gone
        ):
            self._schedule(key)

    def _port_changed(self, index: int) -> None:
        for key in self._subscriptions.of_vlan_port(index):
            self._schedule(key)

    def _overflow(self) -> None:
        self._subscriptions.forget_all()
        self._events_lost.set()

    # --- events of the ledger ---

    def _recorded(self, event: Event, sandbox: Sandbox | None) -> None:
        """Watch a sandbox from its attach until its detach begins."""
        if sandbox is None:
            return
        if sandbox.phase is not SandboxPhase.ATTACHED:
            self._forget(sandbox.key)
        elif sandbox.key not in self._subscriptions and sandbox.key not in self._timers:
            until = asyncio.get_running_loop().time() + _POSTPONED
            self._timers[sandbox.key] = asyncio.get_running_loop().call_later(
                _SETTLING, self._first_inspection, sandbox.key, until
            )

    def _forget(self, key: SandboxKey) -> None:
        self._subscriptions.forget(key)
        self._filter_events.watch(key, ())
        self._inspector.forget(key)
        self._debounces.pop(key, None)
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()

    # --- inspections ---

    def _schedule(self, key: SandboxKey) -> None:
        """Inspect the sandbox soon, unless an inspection is scheduled already."""
        if key in self._timers:
            return
        loop = asyncio.get_running_loop()
        delay = self._debounces.setdefault(key, Debounce()).delay(loop.time())
        self._timers[key] = loop.call_later(delay, self._enqueue, key)

    def _first_inspection(self, key: SandboxKey, until: float) -> None:
        loop = asyncio.get_running_loop()
        if self._scheduler.busy and loop.time() < until:
            self._timers[key] = loop.call_later(_RETRY, self._first_inspection, key, until)
        else:
            self._enqueue(key)

    def _enqueue(self, key: SandboxKey) -> None:
        self._timers.pop(key, None)
        self._queue.put_nowait(key)

    async def _inspect_queued(self) -> None:
        while True:
            await self._inspect_in_turn(await self._queue.get())

    async def _compare_after_overflow(self) -> None:
        while True:
            await self._events_lost.wait()
            self._events_lost.clear()
            log.warning("kernel_outran_the_worker", comparing=len(self._journal.state.sandboxes))
            await self.compare_all()

    async def _search_missing_rules(self) -> None:
        """After the removal of rules, inspect the sandboxes whose missing rules differ from the ledger.

        One read of the packet filter serves all sandboxes.
        """
        while True:
            await self._rules_removed.wait()
            self._rules_removed.clear()
            try:
                missing = await self._inspector.interfaces_without_rules(dict(self._filter_events.watched))
            except (RequestFailedError, OSError) as error:
                log.warning("rules_not_compared", error=str(error))
                continue
            for key, found in missing.items():
                sandbox = self._journal.state.sandboxes.get(key)
                if sandbox is not None and found != _recorded_missing_rules(sandbox):
                    self._schedule(key)

    async def _inspect_in_turn(self, key: SandboxKey) -> str:
        """Inspect the sandbox in its queue; return why that failed, or an empty text."""
        try:
            await self._scheduler.take_turn(key.container_id, lambda: self._inspect(key))
        except (LedgerError, RequestFailedError, OSError) as error:
            with logs.about(self._pod_of(key), key.container_id):
                log.warning("sandbox_not_compared", error=str(error))
            return f"sandbox {key.container_id[:12]}: {error}"
        except Exception as error:  # rule: one bad sandbox never stops the others
            with logs.about(self._pod_of(key), key.container_id):
                log.exception("comparison_broke")
            return f"sandbox {key.container_id[:12]}: {error!r}"
        return ""

    def _pod_of(self, key: SandboxKey) -> Pod:
        sandbox = self._journal.state.sandboxes.get(key)
        return Pod() if sandbox is None else sandbox.pod

    async def _inspect(self, key: SandboxKey) -> None:
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            return
        if not self._journal.nothing_postponed:  # an event that is not in the ledger yet may be the end of the sandbox
            self._schedule(key)
            return
        inspection = await self._inspector.inspect(sandbox)
        if inspection is None:
            self._forget(key)
            return
        expected, snapshot = inspection.expected, inspection.snapshot
        parents = {each.parent: snapshot.parents.get(each.parent) for each in expected if each.parent}
        ports = {port.name: port for port in snapshot.ports.values()}
        vlan_ports = frozenset(snapshot.ports[ifname].index for ifname in snapshot.vlans)
        self._subscriptions.watch(key, inspection.netnsid, parents, ports, vlan_ports)
        self._filter_events.watch(key, tuple(each.rules for each in expected if each.rules is not None))
        if set(inspection.drifts) != set(sandbox.drifts):
            observed = DriftObserved(ifname=key.ifname, pod=sandbox.pod, drifts=inspection.drifts)
            await self._journal.record(observed, key.container_id, sandbox.intent)
            log.info(
                "drift_observed",
                pod=str(sandbox.pod),
                sandbox=key.container_id[:12],
                drift=[f"{each.ifname} {each.kind.value}" for each in inspection.drifts],
            )


def _recorded_missing_rules(sandbox: Sandbox) -> frozenset[tuple[str, DriftKind]]:
    return frozenset((drift.ifname, drift.kind) for drift in sandbox.drifts if drift.kind in RULE_DRIFTS)
