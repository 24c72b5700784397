"""Make one of several reconcilers the leader, and replace it within seconds when it is gone.

The ledger decides who leads (``events.ledger.election``): it refuses every later write of the previous leader. Notices
decide when a replica tries to win an election. The leader announces itself every second. A replica that heard no leader
for ``PRESENCE_LOST``, and gets no answer to its question, tries to become the leader. So replicas that do not hear one
another cause at worst a needless change of the leader. ``reconciler.follow.term`` protects writes outside the ledger.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import structlog

from events.ledger.commands import Commands
from events.ledger.election import elect, last_election
from events.ledger.ledger import ConflictError, Ledger, LedgerError, LedgerUnavailableError
from events.ledger.notices import (
    PRESENCE_INTERVAL,
    PRESENCE_LOST,
    RECONCILER_ASKED,
    RECONCILER_PRESENT,
    Notice,
    Notices,
)
from events.process.backoff import delays
from reconciler.follow.listeners import Listener, Serve
from reconciler.follow.term import Term, now
from reconciler.metrics import Metrics

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT = 0.5
"""Seconds within which a leader answers the question of a replica."""
_CANCEL_INTERVAL = 1.0
_NEVER = float("-inf")


def replica_name(node: str) -> str:
    """Return a name for a replica on *node* that no other replica has, on any machine."""
    return f"{node}-{os.getpid()}-{secrets.token_hex(4)}"


class _Presence(msgspec.Struct, frozen=True):
    replica: str
    epoch: int
    leaves: bool = False


class ElectedLeadership:
    """The part of one replica in the elections. Implements ``reconciler.follow.listeners.Leadership``.

    *make_listeners* returns the listeners of a term. *only_replica*: there are no others by configuration, so the first
    election does not wait for one.
    """

    def __init__(
        self,
        ledger: Ledger,
        notices: Notices,
        commands: Commands,
        make_listeners: Callable[[Term], Sequence[Listener]],
        metrics: Metrics,
        *,
        name: str,
        version: str = "",
        only_replica: bool = False,
    ) -> None:
        self._ledger = ledger
        self._notices = notices
        self._commands = commands
        self._make_listeners = make_listeners
        self._metrics = metrics
        self._name = name
        self._version = version
        self._only_replica = only_replica
        self._term: Term | None = None
        self._epoch = 0
        """Of the newest known election."""
        self._heard_at = _NEVER
        """Time of the last sign of another leader: a notice or an election."""
        self._heard = asyncio.Event()

    async def run(self, serve: Serve) -> None:
        """See ``Leadership.run``."""
        for delay in delays():
            try:
                async with self._notices.subscribe(RECONCILER_PRESENT, RECONCILER_ASKED) as notices:
                    await self._take_part(notices, serve)
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)

    async def _take_part(self, notices: AsyncIterator[Notice], serve: Serve) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(notices), name="hear-replicas")
            pauses = delays()
            while True:
                try:
                    await self._wait_for_absence()
                    term = await self._elect()
                except ConflictError:
                    self._heard_at = now()  # another replica won: its notices follow
                except LedgerError as error:
                    pause = next(pauses)
                    log.warning("reconciler_not_elected", error=str(error), retry_in=pause)
                    await asyncio.sleep(pause)
                else:
                    pauses = delays()
                    await self._lead(term, serve)

    async def _listen(self, notices: AsyncIterator[Notice]) -> None:
        async for notice in notices:
            if notice.subject == RECONCILER_ASKED:
                if self._term is not None:
                    await self._announce(self._term)
                continue
            try:
                presence = msgspec.json.decode(notice.payload, type=_Presence)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                log.warning("presence_malformed", subject=notice.subject)
                continue
            if presence.replica == self._name or presence.epoch < self._epoch:
                continue
            self._heard_at = _NEVER if presence.leaves else now()
            self._heard.set()
            if self._term is not None and presence.epoch > self._term.mandate.event.epoch:
                self._term.over.set()

    async def _wait_for_absence(self) -> None:
        """Return when no other replica leads. Raises LedgerUnavailableError."""
        if self._only_replica and self._epoch == 0:
            return
        logged = False
        while True:
            while (left := self._heard_at + PRESENCE_LOST - now()) > 0:
                await self._hear_within(left)
            newest = await last_election(self._ledger)
            if newest is None:
                return
            if newest.event.epoch > self._epoch > 0:  # another replica won the election that this one would try
                self._heard_at = now()
            self._epoch = newest.event.epoch
            await self._notices.publish(RECONCILER_ASKED)
            await self._hear_within(ANSWER_TIMEOUT)
            if self._heard_at + PRESENCE_LOST <= now():
                return
            if not logged:
                log.info("reconciler_waits", replica=self._name, epoch=self._epoch)
                logged = True

    async def _hear_within(self, seconds: float) -> None:
        self._heard.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return

    async def _elect(self) -> Term:
        began = now()
        mandate = await elect(self._ledger, self._commands, self._name, self._version)
        self._epoch = mandate.event.epoch
        self._metrics.elections.inc()
        return Term(self._ledger, self._commands, mandate, began)

    async def _lead(self, term: Term, serve: Serve) -> None:
        """Run *serve* until *term* is over."""
        self._term = term
        self._metrics.active.set(1)
        leaves = True
        try:
            async with asyncio.TaskGroup() as tasks:
                listeners = self._make_listeners(term)
                acting = tasks.create_task(_act(serve, term, listeners), name="act")
                present = tasks.create_task(self._stay_present(term), name="presence")
                await term.over.wait()
                leaves = False
                log.warning("reconciler_replaced", replica=self._name, epoch=term.mandate.event.epoch)
                present.cancel()
                await _end(acting)
        finally:
            self._term = None
            self._metrics.set_follower()
            self._heard_at = now()
            if leaves:
                await self._notices.publish(RECONCILER_PRESENT, self._presence(term, leaves=True))

    async def _stay_present(self, term: Term) -> None:
        """Announce this leader while the ledger confirms its election."""
        while True:
            try:
                await term.check()
            except ConflictError:
                return
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=PRESENCE_INTERVAL)
            else:
                await self._announce(term)
            await asyncio.sleep(PRESENCE_INTERVAL)

    async def _announce(self, term: Term) -> None:
        await self._notices.publish(RECONCILER_PRESENT, self._presence(term))

    def _presence(self, term: Term, *, leaves: bool = False) -> bytes:
        return msgspec.json.encode(_Presence(self._name, term.mandate.event.epoch, leaves))


async def _act(serve: Serve, term: Term, listeners: Sequence[Listener]) -> None:
    await serve(term.mandate.ledger.sequence, listeners)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel *task* repeatedly: before Python 3.12, asyncio.wait_for in nats-py may lose a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_INTERVAL)
