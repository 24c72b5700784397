"""Write the node's events, and know at once what they make true.

The worker is the only writer of its node's events, so the acknowledgements of its own appends are the whole truth:
``state`` is the fold of the node's ledger without reading it back. Intents are the exception: they are applied where
the worker consumes them, so that there is one way in for them, also for those that an earlier worker wrote.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from events import subjects
from events.fold import Sandbox, State
from events.ledger.ledger import ConflictError, Expect, Ledger, LedgerError, LedgerFullError, LedgerUnavailableError
from events.schema import (
    INTENTS,
    NO_CAUSE,
    NO_SANDBOX,
    ContainerId,
    Data,
    Event,
    EventId,
    NodeName,
    Stored,
    WorkerStarted,
    new_event_id,
    rfc3339,
)

log = structlog.get_logger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RETRY = 1.0


class _Coming:
    """An intent on its way: it is being appended, or is in the ledger and has yet to be consumed."""

    def __init__(self, sandbox: ContainerId) -> None:
        self.sandbox = sandbox
        self.over = asyncio.Event()
        """Set once the intent is applied to ``state``, or lost."""
        self.lost = False
        """The ledger did not confirm it."""


class Journal:
    """Appends the events of one node, under one epoch, and keeps ``state``."""

    def __init__(self, ledger: Ledger, node: NodeName) -> None:
        self.state = State(in_order=False)
        self.node = node
        self._boot_id = _BOOT_ID.read_text().strip()
        self._epoch = 0
        self._ledger = ledger
        self._appending: set[asyncio.Task[None]] = set()
        self._postponed: deque[Event] = deque()
        self._coming: dict[EventId, _Coming] = {}
        self._loaded = 0
        self._fence: Expect | None = None
        self.replaced = asyncio.Event()
        """Set once another worker has taken the node over: the ledger takes nothing from this one any more."""
        self._listeners: list[Callable[[Event, Sandbox | None], None]] = []

    def on_recorded(self, listener: Callable[[Event, Sandbox | None], None]) -> None:
        """Have *listener* told of every event from here on, with its sandbox as it is then, as ``state`` has it."""
        self._listeners.append(listener)

    async def load(self) -> AsyncIterator[Stored]:
        """Apply the node's events to ``state``, and yield each. Raises LedgerUnavailableError."""
        async for stored in self._ledger.read(subjects.pattern(self.node)):
            self.state.apply(stored)
            self._loaded = stored.sequence
            yield stored

    async def open_epoch(self, started: WorkerStarted) -> None:
        """Take the node over from the worker before, from which the ledger takes nothing from here on.

        Raises ConflictError when another worker takes it at the same time.
        """
        subject = subjects.pattern(self.node, NO_SANDBOX, "WorkerStarted")
        last = await self._ledger.last(subject)
        self._epoch = 1 if last is None else last.event.epoch + 1
        event = self.event(started)
        sequence = await self._ledger.append(event, Expect(subject, 0 if last is None else last.sequence))
        self._fence = Expect(subject, sequence)
        self.state.apply(Stored(sequence, event))

    def event(self, data: Data, sandbox: ContainerId = NO_SANDBOX, cause: EventId = NO_CAUSE) -> Event:
        """Return *data* as an event of this node and epoch."""
        now = time.time_ns()
        return Event(
            id=new_event_id(now // 1_000_000, os.urandom(10)),
            at=rfc3339(now),
            node=self.node,
            boot_id=self._boot_id,
            epoch=self._epoch,
            sandbox=sandbox,
            cause=cause,
            trace="",
            data=data,
        )

    async def request(self, intent: Event, *, last: int | None = None) -> None:
        """Append *intent*; with *last*, only if that is the sequence of the newest event of its sandbox.

        Raises LedgerUnavailableError (it may still come), LedgerFullError, ConflictError (see also ``replaced``).
        """
        coming = self._coming[intent.id] = _Coming(intent.sandbox)
        try:
            if last is None:
                await self._put(intent)
            else:
                await self._ledger.append(intent, Expect(subjects.pattern(self.node, intent.sandbox), last))
        except BaseException:
            coming.lost = True
            self._arrived(intent.id)
            raise

    async def intents(self) -> AsyncIterator[Stored]:
        """Yield the intents that come after those loaded, each applied to ``state``, without end."""
        patterns = tuple(subjects.pattern(self.node, event_type=name) for name in sorted(INTENTS))
        async for stored in self._ledger.follow(patterns, self._loaded):
            self._apply(stored)
            self._arrived(stored.event.id)
            yield stored

    def expects(self, sandbox: ContainerId) -> bool:
        """Return whether an intent for *sandbox* is on its way."""
        return any(coming.sandbox == sandbox for coming in self._coming.values())

    async def record(self, data: Data, sandbox: ContainerId = NO_SANDBOX, cause: EventId = NO_CAUSE) -> None:
        """Append an event that is no intent; return once it is durable and applied to ``state``.

        Raises LedgerUnavailableError, LedgerFullError; the event is then appended as soon as the ledger takes it,
        because nobody knows whether the ledger has it, and state and ledger must not part. The same holds for a caller
        that is cancelled. What follows for the same sandbox waits for it, and is refused until then: events stay in
        order. Raises LedgerError for an event that the ledger will never take.

        The intent that is its cause may still be on its way: it is appended behind that, and applied after it.
        """
        await asyncio.shield(self.begin(data, sandbox, cause))

    def begin(self, data: Data, sandbox: ContainerId, cause: EventId) -> asyncio.Task[None]:
        """Begin to do what ``record`` does, and return the task that it is done by; it is not to be cancelled."""
        task = asyncio.create_task(self._append(self.event(data, sandbox, cause), self._coming.get(cause)))
        self._keep(task)
        return task

    @property
    def boot_id(self) -> str:
        """Which boot of the machine this is."""
        return self._boot_id

    @property
    def settled(self) -> bool:
        """Whether the ledger has taken everything that it was slow to take."""
        return not self._postponed

    async def close(self) -> None:
        """Wait for the appends under way; those that the ledger does not take are given up."""
        if self._appending:
            await asyncio.wait(self._appending, timeout=_RETRY)
        for task in self._appending:
            task.cancel()

    async def _append(self, event: Event, intent: _Coming | None) -> None:
        """Append *event*; *intent* is its cause, where that is on its way."""
        if any(earlier.sandbox == event.sandbox for earlier in self._postponed):
            self._postpone(event)
            raise LedgerUnavailableError("the ledger has not yet taken what came before; it will be recorded later")
        try:
            sequence = await self._put(event)
        except (LedgerUnavailableError, LedgerFullError):
            if intent is None or not intent.lost:  # else nothing is going to come of it
                self._postpone(event)
            raise
        if intent is not None:
            await intent.over.wait()
        self._apply(Stored(sequence, event))

    def _arrived(self, intent: EventId) -> None:
        if (coming := self._coming.pop(intent, None)) is not None:
            coming.over.set()

    async def _put(self, event: Event) -> int:
        """Append *event* unless another worker took the node over: two would undo each other's work."""
        try:
            return await self._ledger.append(event, self._fence)
        except ConflictError as error:
            self.replaced.set()
            raise ConflictError(
                f"another worker has taken node {self.node} over, and the ledger refused {event.type}: stop one of "
                "the two, or give each node a name of its own"
            ) from error

    def _apply(self, stored: Stored) -> None:
        sandbox = self.state.apply(stored)
        for listener in self._listeners:
            listener(stored.event, sandbox)

    def _postpone(self, event: Event) -> None:
        self._postponed.append(event)
        if len(self._postponed) == 1:
            self._keep(asyncio.create_task(self._catch_up()))

    async def _catch_up(self) -> None:
        """Append what was postponed, until nothing is left."""
        while self._postponed:
            await asyncio.sleep(_RETRY)
            try:
                while self._postponed:
                    event = self._postponed[0]
                    self._apply(Stored(await self._append_once(event), event))
                    self._postponed.popleft()
            except (LedgerUnavailableError, LedgerFullError) as error:
                log.warning("ledger_still_away", waiting=len(self._postponed), error=str(error))
            except LedgerError as error:
                lost = self._postponed.popleft()
                log.error("event_lost", type=lost.type, sandbox=lost.sandbox[:12], error=str(error))  # noqa: TRY400

    async def _append_once(self, event: Event) -> int:
        """Append *event* unless it is there: the server tells duplicates only for two minutes."""
        last = await self._ledger.last(subjects.subject(event.node, event.sandbox, event.type))
        if last is not None and last.event.id == event.id:
            return last.sequence
        return await self._put(event)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._appending.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._appending.discard(task)
        if not task.cancelled():
            task.exception()  # its caller was told, or was cancelled; the append goes on in a task of its own
