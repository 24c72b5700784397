"""Of several reconcilers let one act, and another in its place within seconds when it is gone.

Who acts is decided by the ledger (``events.ledger.election``): whatever the one before still tries to append is
refused. When to try for it is a matter of hearing: the active one says every second that it is there, and a passive one
that has heard nothing for ``PRESENCE_LOST``, and gets no answer when it asks, has itself elected. So it costs a
needless change at worst if they do not hear one another.

What does not go through the ledger, a write at the API server, has no fence. Therefore the active one looks every
second whether another was elected, and writes nowhere once its last look is older than ``CERTAIN``: frozen and let go
on, or cut off from the ledger, it looks first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import structlog

from events.ledger.commands import Commands
from events.ledger.election import FencedCommands, FencedLedger, Mandate, elect, last_election
from events.ledger.ledger import ConflictError, Expect, Ledger, LedgerError, LedgerUnavailableError
from events.ledger.notices import (
    PRESENCE_INTERVAL,
    PRESENCE_LOST,
    RECONCILER_ASKED,
    RECONCILER_PRESENT,
    Notice,
    Notices,
)
from events.process.backoff import delays
from events.schema import Event
from reconciler.follow.loop import Listener, Serve
from reconciler.metrics import Metrics

log = structlog.get_logger(__name__)

CERTAIN = 2.0
"""Seconds for which a look at the elections is good. Shorter than ``PRESENCE_LOST``, so it ends before another acts."""
ANSWER = 0.5
"""Seconds within which an active one answers."""
_CANCEL = 1.0


class _Presence(msgspec.Struct, frozen=True):
    replica: str
    epoch: int
    leaves: bool = False


class Term:
    """What the elected reconciler acts with, for as long as it is the elected one."""

    def __init__(self, ledger: Ledger, commands: Commands, mandate: Mandate, looked_at: float) -> None:
        self.mandate = mandate
        self.over = asyncio.Event()
        """Set once it is known that another was elected."""
        self.ledger: Ledger = _TurnLedger(ledger, mandate, self.over)
        self.commands: Commands = _TurnCommands(commands, mandate, self.over)
        self._plain = ledger
        self._looked_at = looked_at

    async def confirm(self) -> None:
        """Return if no other was elected as of ``CERTAIN`` seconds ago.

        Raises ConflictError when one was, LedgerUnavailableError when nobody can tell.
        """
        if _now() - self._looked_at > CERTAIN:
            await self.look()

    async def look(self) -> None:
        """Look whether another was elected. Raises as ``confirm``."""
        began = _now()
        newest = await last_election(self._plain)
        if newest is None or newest.event.id != self.mandate.event.id:
            self.over.set()
            raise ConflictError("another reconciler was elected")
        self._looked_at = began


class Replicas:
    """One replica's part. A ``reconciler.follow.loop.Leadership``.

    *appoint* makes the listeners of a turn. *alone*: there are no others by configuration, so none is waited for.
    """

    def __init__(
        self,
        ledger: Ledger,
        notices: Notices,
        commands: Commands,
        appoint: Callable[[Term], Sequence[Listener]],
        metrics: Metrics,
        *,
        name: str,
        version: str = "",
        alone: bool = False,
    ) -> None:
        self._ledger = ledger
        self._notices = notices
        self._commands = commands
        self._appoint = appoint
        self._metrics = metrics
        self._name = name
        self._version = version
        self._alone = alone
        self._turn: Term | None = None
        self._epoch = 0
        """Of the newest election known."""
        self._heard_at = float("-inf")
        """When another was last heard to be there, or elected."""
        self._heard = asyncio.Event()

    async def run(self, serve: Serve) -> None:
        """See ``Leadership.run``."""
        for delay in delays():
            try:
                async with self._notices.subscribe(RECONCILER_PRESENT, RECONCILER_ASKED) as heard:
                    await self._take_part(heard, serve)
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)

    async def _take_part(self, heard: AsyncIterator[Notice], serve: Serve) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(heard), name="hear-replicas")
            pauses = delays()
            while True:
                try:
                    await self._silence()
                    turn = await self._elect()
                except ConflictError:
                    self._heard_at = _now()  # that other will be heard
                except LedgerError as error:
                    pause = next(pauses)
                    log.warning("reconciler_not_elected", error=str(error), retry_in=pause)
                    await asyncio.sleep(pause)
                else:
                    pauses = delays()
                    await self._hold(turn, serve)

    async def _listen(self, heard: AsyncIterator[Notice]) -> None:
        async for notice in heard:
            if notice.subject == RECONCILER_ASKED:
                if self._turn is not None:
                    await self._tell(self._turn)
                continue
            try:
                presence = msgspec.json.decode(notice.payload, type=_Presence)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                log.warning("presence_malformed", subject=notice.subject)
                continue
            if presence.replica == self._name or presence.epoch < self._epoch:
                continue
            self._heard_at = float("-inf") if presence.leaves else _now()
            self._heard.set()
            if self._turn is not None and presence.epoch > self._turn.mandate.event.epoch:
                self._turn.over.set()

    async def _silence(self) -> None:
        """Return when no other is active. Raises LedgerUnavailableError."""
        if self._alone and self._epoch == 0:
            return
        waits = False
        while True:
            while (left := self._heard_at + PRESENCE_LOST - _now()) > 0:
                await self._hear_within(left)
            newest = await last_election(self._ledger)
            if newest is None:
                return
            if newest.event.epoch > self._epoch > 0:  # another has won what this one was about to try for
                self._heard_at = _now()
            self._epoch = newest.event.epoch
            await self._notices.publish(RECONCILER_ASKED)
            await self._hear_within(ANSWER)
            if self._heard_at + PRESENCE_LOST <= _now():
                return
            if not waits:
                log.info("reconciler_waits", replica=self._name, epoch=self._epoch)
                waits = True

    async def _hear_within(self, seconds: float) -> None:
        self._heard.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return

    async def _elect(self) -> Term:
        began = _now()
        mandate = await elect(self._ledger, self._commands, self._name, self._version)
        self._epoch = mandate.event.epoch
        self._metrics.elections.inc()
        return Term(self._ledger, self._commands, mandate, began)

    async def _hold(self, turn: Term, serve: Serve) -> None:
        """Have *turn* used until it is over."""
        self._turn = turn
        self._metrics.active.set(1)
        leaves = True
        try:
            async with asyncio.TaskGroup() as tasks:
                listeners = self._appoint(turn)
                acting = tasks.create_task(_act(serve, turn, listeners), name="act")
                present = tasks.create_task(self._stay_present(turn), name="presence")
                await turn.over.wait()
                leaves = False
                log.warning("reconciler_replaced", replica=self._name, epoch=turn.mandate.event.epoch)
                present.cancel()
                await _end(acting)
        finally:
            self._turn = None
            self._metrics.active.set(0)
            self._heard_at = _now()
            if leaves:
                await self._notices.publish(RECONCILER_PRESENT, self._presence(turn, leaves=True))

    async def _stay_present(self, turn: Term) -> None:
        """Say that this one is there, as long as the ledger says so too."""
        while True:
            try:
                await turn.look()
            except ConflictError:
                return
            except LedgerUnavailableError as error:
                log.warning("ledger_away", error=str(error), retry_in=PRESENCE_INTERVAL)
            else:
                await self._tell(turn)
            await asyncio.sleep(PRESENCE_INTERVAL)

    async def _tell(self, turn: Term) -> None:
        await self._notices.publish(RECONCILER_PRESENT, self._presence(turn))

    def _presence(self, turn: Term, *, leaves: bool = False) -> bytes:
        return msgspec.json.encode(_Presence(self._name, turn.mandate.event.epoch, leaves))


async def _act(serve: Serve, turn: Term, listeners: Sequence[Listener]) -> None:
    await serve(turn.mandate.ledger.sequence, listeners)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel *task* until it ends: before Python 3.12 asyncio.wait_for, which nats-py uses, may lose a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL)


class _TurnLedger(FencedLedger):
    """Ends the turn when the fence is met."""

    def __init__(self, ledger: Ledger, mandate: Mandate, over: asyncio.Event) -> None:
        super().__init__(ledger, mandate)
        self._over = over

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        try:
            return await super().append(event, expect)
        except ConflictError:
            self._over.set()
            raise


class _TurnCommands(FencedCommands):
    """Ends the turn when the fence is met."""

    def __init__(self, commands: Commands, mandate: Mandate, over: asyncio.Event) -> None:
        super().__init__(commands, mandate)
        self._over = over

    async def send(self, command: Event, expect: Expect | None = None) -> int:
        try:
            return await super().send(command, expect)
        except ConflictError:
            self._over.set()
            raise


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it counts what a suspended machine slept
