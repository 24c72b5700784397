"""Notice when a sandbox is not what the ledger says, and say so in the ledger.

Nothing is polled: the kernel tells of changes, and a short while after one the sandbox is looked at, in its turn among
the requests for it, so that nothing that is just being made, unmade or repaired is taken for drift. What was not heard
of is found by the comparison of the whole node, at the start and from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.ledger.ledger import LedgerError
from events.schema import Drift, DriftKind, DriftObserved, Event
from nodeworker.drift.expected_rules import KINDS
from nodeworker.drift.inspector import Inspector
from nodeworker.drift.watch.debounce import Pace
from nodeworker.drift.watch.filter_events import FilterEvents
from nodeworker.drift.watch.kernel_events import Heard, KernelEvents, NodeLink
from nodeworker.drift.watch.subscriptions import Subscriptions
from nodeworker.errors import RequestFailedError
from nodeworker.journal.journal import Journal

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SIDE_BY_SIDE = 2
"""Looks that wait for their turn at the same time: each takes a place from the runtime's requests."""
_SETTLING = 0.1
"""Seconds after an attach until the first look."""
_POSTPONED, _AGAIN = 2.0, 0.4
"""Seconds after which it comes even where requests are under way: a node on which pods start has more urgent work. And
those until it is seen whether they still are."""


class TakeTurn(Protocol):
    """``Dispatcher.take_turn``."""

    async def __call__(self, container_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns when the requests for the container that came before are done."""
        ...


class Watcher:
    """Watches the sandboxes of the node."""

    def __init__(self, journal: Journal, inspector: Inspector) -> None:
        self._journal = journal
        self._inspector = inspector
        self._interest = Subscriptions()
        self._rules_went = asyncio.Event()
        self._rules = FilterEvents(self._rules_went.set)
        self._paces: dict[SandboxKey, Pace] = {}
        self._due: dict[SandboxKey, asyncio.TimerHandle] = {}
        self._queue: asyncio.Queue[SandboxKey] = asyncio.Queue()
        self._everything = asyncio.Event()
        self._turns: asyncio.Future[TakeTurn] = asyncio.get_running_loop().create_future()
        self._busy: Callable[[], bool] = lambda: False
        self._on_closed: list[Callable[[SandboxKey], None]] = []
        journal.on_recorded(self._recorded)

    @property
    def watched(self) -> int:
        """How many sandboxes are watched."""
        return len(self._interest)

    def on_closed(self, listener: Callable[[SandboxKey], None]) -> None:
        """Have *listener* told of sandboxes whose namespace is gone, as it happens."""
        self._on_closed.append(listener)

    def give_turns(self, take_turn: TakeTurn, busy: Callable[[], bool] = lambda: False) -> None:
        """Look at sandboxes in the turns that *take_turn* gives; nothing is looked at before.

        *busy* tells whether requests are under way, which a first look can wait for.
        """
        self._busy = busy
        self._turns.set_result(take_turn)

    async def run(self) -> None:
        """Watch without end. Where the worker may not hear the kernel it only compares from time to time."""
        heard = Heard(
            container=self._changed,
            closed=self._closed,
            node=self._node_changed,
            port=self._port_changed,
            missed=self._missed,
        )
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_SIDE_BY_SIDE):
                tasks.create_task(self._look_at_those_due(), name="observe")
            tasks.create_task(self._look_after_misses(), name="observe-all")
            tasks.create_task(self._look_at_rules(), name="observe-rules")
            try:
                with self._rules, KernelEvents(heard):
                    await asyncio.Event().wait()
            except OSError as error:
                log.warning("kernel_not_heard", error=str(error), remedy="give the worker CAP_NET_BROADCAST")
            finally:
                for timer in self._due.values():
                    timer.cancel()

    async def compare_all(self) -> tuple[int, int, tuple[str, ...]]:
        """Look at all sandboxes; return how many there are, how many drift, and what could not be seen and why."""
        keys = [key for key, box in self._journal.state.sandboxes.items() if box.phase is SandboxPhase.ATTACHED]
        places = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(key: SandboxKey) -> str:
            async with places:
                return await self._look(key)

        problems = await asyncio.gather(*map(one, keys))
        sandboxes = self._journal.state.sandboxes
        drifted = sum(1 for key in keys if key in sandboxes and sandboxes[key].drifts)
        return len(keys), drifted, tuple(filter(None, problems))

    # --- what the kernel tells ---

    def _changed(self, netnsid: int) -> None:
        for key in self._interest.within(netnsid):
            self._wake(key)

    def _closed(self, netnsid: int) -> None:
        for key in tuple(self._interest.within(netnsid)):
            self._interest.forget(key)
            self._rules.watch(key, ())
            for listener in self._on_closed:
                listener(key)

    def _node_changed(self, link: NodeLink) -> None:
        for key in self._interest.on(
            link.names, index=link.index, up=link.up, master=link.master, mtu=link.mtu, gone=link.gone
        ):
            self._wake(key)

    def _port_changed(self, index: int) -> None:
        for key in self._interest.in_vlans(index):
            self._wake(key)

    def _missed(self) -> None:
        self._interest.forget_namespaces()
        self._everything.set()

    # --- what the worker itself does ---

    def _recorded(self, event: Event, sandbox: Sandbox | None) -> None:
        """Watch what became attached, and no longer what is on its way out."""
        if sandbox is None:
            return
        if sandbox.phase is not SandboxPhase.ATTACHED:
            self._drop(sandbox.key)
        elif sandbox.key not in self._interest and sandbox.key not in self._due:
            until = asyncio.get_running_loop().time() + _POSTPONED
            self._due[sandbox.key] = asyncio.get_running_loop().call_later(
                _SETTLING, self._first_look, sandbox.key, until
            )

    def _drop(self, key: SandboxKey) -> None:
        self._interest.forget(key)
        self._rules.watch(key, ())
        self._inspector.forget(key)
        self._paces.pop(key, None)
        if (timer := self._due.pop(key, None)) is not None:
            timer.cancel()

    # --- looking ---

    def _wake(self, key: SandboxKey) -> None:
        """Have the sandbox looked at soon."""
        if key in self._due:
            return
        loop = asyncio.get_running_loop()
        pause = self._paces.setdefault(key, Pace()).pause(loop.time())
        self._due[key] = loop.call_later(pause, self._look_soon, key)

    def _first_look(self, key: SandboxKey, until: float) -> None:
        loop = asyncio.get_running_loop()
        if self._busy() and loop.time() < until:
            self._due[key] = loop.call_later(_AGAIN, self._first_look, key, until)
        else:
            self._look_soon(key)

    def _look_soon(self, key: SandboxKey) -> None:
        self._due.pop(key, None)
        self._queue.put_nowait(key)

    async def _look_at_those_due(self) -> None:
        while True:
            await self._look(await self._queue.get())

    async def _look_after_misses(self) -> None:
        while True:
            await self._everything.wait()
            self._everything.clear()
            log.warning("kernel_outran_the_worker", comparing=len(self._journal.state.sandboxes))
            await self.compare_all()

    async def _look_at_rules(self) -> None:
        """Have those looked at whose rules are not as the ledger says, or are again: one reading does for all."""
        while True:
            await self._rules_went.wait()
            self._rules_went.clear()
            try:
                lost = await self._inspector.lost_rules(dict(self._rules.watched))
            except (RequestFailedError, OSError) as error:
                log.warning("rules_not_compared", error=str(error))
                continue
            for key, found in lost.items():
                sandbox = self._journal.state.sandboxes.get(key)
                if sandbox is not None and found != _known_lost(sandbox):
                    self._wake(key)

    async def _look(self, key: SandboxKey) -> str:
        """Look at the sandbox in its turn; return why it could not be seen, or an empty text."""
        take_turn = await asyncio.shield(self._turns)
        try:
            await take_turn(key.container_id, lambda: self._compare(key))
        except (LedgerError, RequestFailedError, OSError) as error:
            log.warning("sandbox_not_compared", sandbox=key.container_id[:12], error=str(error))
            return f"sandbox {key.container_id[:12]}: {error}"
        except Exception as error:  # rule: one bad sandbox never stops the others
            log.exception("comparison_broke", sandbox=key.container_id[:12])
            return f"sandbox {key.container_id[:12]}: {error!r}"
        return ""

    async def _compare(self, key: SandboxKey) -> None:
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            return
        if not self._journal.settled:  # what the ledger has still to be told of may be the end of the sandbox
            self._wake(key)
            return
        look = await self._inspector.look(sandbox)
        if look is None:
            self._drop(key)
            return
        parents = {each.parent: look.seen.parents.get(each.parent) for each in look.wanted if each.parent}
        ports = {port.name: port for port in look.seen.ports.values()}
        in_vlans = frozenset(look.seen.ports[ifname].index for ifname in look.seen.vlans)
        self._interest.watch(key, look.netnsid, parents, ports, in_vlans)
        self._rules.watch(key, tuple(each.ruled for each in look.wanted if each.ruled is not None))
        if _differ(look.drifts, sandbox.drifts):
            observed = DriftObserved(ifname=key.ifname, pod=sandbox.pod, drifts=look.drifts)
            await self._journal.record(observed, key.container_id, sandbox.intent)
            log.info(
                "drift_observed",
                pod=str(sandbox.pod),
                sandbox=key.container_id[:12],
                drift=[f"{each.ifname} {each.kind.value}" for each in look.drifts],
            )


def _known_lost(sandbox: Sandbox) -> frozenset[tuple[str, DriftKind]]:
    return frozenset((drift.ifname, drift.kind) for drift in sandbox.drifts if drift.kind in KINDS)


def _differ(these: tuple[Drift, ...], those: tuple[Drift, ...]) -> bool:
    return set(these) != set(those)
