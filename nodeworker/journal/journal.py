"""Write the node's events to its ledger, and keep the state that follows from them.

The worker is the only writer of its node's events, so the acknowledgements of its own appends are the whole truth:
``state`` is the fold of the node's ledger without reading it back. Intents are the exception: ``state`` gets them where
the worker consumes them. So there is one way in for all intents, also for those that an earlier worker wrote.

``append_intent`` appends an intent, ``open_epoch`` the start of the worker, and ``record`` every other event. An
``EffectLog`` (``nodeworker.journal.effect_log``) calls ``record`` for the effects and the outcome of one intent, in
order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from pathlib import Path
from typing import NoReturn, TypeAlias

import structlog

from events import subjects
from events.fold import Sandbox, State
from events.ledger.ledger import ConflictError, Expect, Ledger, LedgerError, LedgerFullError, LedgerUnavailableError
from events.process import logs
from events.schema import (
    INTENTS,
    NO_CAUSE,
    NO_SANDBOX,
    ContainerId,
    Data,
    Event,
    EventId,
    NodeName,
    Pod,
    Stored,
    WorkerStarted,
    WorkerStopped,
    new_event_id,
    rfc3339,
)
from nodeworker.deadline import seconds_since

log = structlog.get_logger(__name__)

Recording: TypeAlias = asyncio.Future[None]
"""Done once an event is durable and applied to ``Journal.state``; it fails with LedgerError.

The append goes on if the future is cancelled, or if nothing awaits it.
"""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RETRY = 1.0
"""Seconds between two attempts to append an event that the ledger did not acknowledge."""


class _OpenIntent:
    """An intent that is being appended, or is in the ledger and was not consumed yet."""

    def __init__(self, sandbox: ContainerId) -> None:
        self.sandbox = sandbox
        self.closed = asyncio.Event()
        """Set once the intent is applied to ``state``, or unconfirmed."""
        self.unconfirmed = False
        """The ledger did not acknowledge it."""


class Journal:
    """Appends the events of one node, under one epoch, and keeps ``state``."""

    def __init__(self, ledger: Ledger, node: NodeName) -> None:
        self.state = State(in_order=False)
        self.node = node
        self._boot_id = _BOOT_ID.read_text().strip()
        self._epoch = 0
        self._ledger = ledger
        self._appends: set[asyncio.Task[None]] = set()
        self._postponed: deque[Event] = deque()
        self._open_intents: dict[EventId, _OpenIntent] = {}
        self._doubtful: set[ContainerId] = set()
        """Sandboxes of which the ledger may have an intent that it did not acknowledge."""
        self._loaded = 0
        self._fence: Expect | None = None
        self.replaced = asyncio.Event()
        """Set once another worker has taken the node over: the ledger refuses every event of this one."""
        self._listeners: list[Callable[[Event, Sandbox | None], None]] = []

    def subscribe(self, listener: Callable[[Event, Sandbox | None], None]) -> None:
        """Call *listener* with every event from ``open_epoch`` on, and with its sandbox as ``state`` has it then."""
        self._listeners.append(listener)

    async def load(self) -> AsyncIterator[Stored]:
        """Apply the node's events to ``state``, and yield each. Raises LedgerUnavailableError."""
        async for stored in self._ledger.read(subjects.pattern(self.node)):
            self.state.apply(stored)
            self._loaded = stored.sequence
            yield stored

    async def open_epoch(self, started: WorkerStarted) -> None:
        """Take the node over from the worker before: from here on the ledger refuses every event of that one.

        Raises ConflictError if another worker takes the node over at the same time.
        """
        subject = subjects.pattern(self.node, NO_SANDBOX, "WorkerStarted")
        last = await self._ledger.last(subject)
        self._epoch = 1 if last is None else last.event.epoch + 1
        event = self.event(started)
        sequence = await self._ledger.append(event, Expect(subject, 0 if last is None else last.sequence))
        self._fence = Expect(subject, sequence)
        self._apply(Stored(sequence, event))

    async def fail_when_replaced(self) -> NoReturn:
        """Raise ConflictError once another worker has taken the node over: that one continues, as after a crash."""
        await self.replaced.wait()
        raise ConflictError(f"another worker has taken node {self.node} over: this one stops")

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

    async def append_intent(self, intent: Event, *, last: int | None = None) -> None:
        """Append *intent*; with *last*, only if that is the sequence of the newest event of its sandbox.

        The ledger sends every intent back to ``intents``. ``Dispatcher.run`` consumes them there and starts the work.

        Raises LedgerUnavailableError (the intent may still arrive), LedgerFullError, ConflictError (see ``replaced``).
        """
        opened = self._open_intents[intent.id] = _OpenIntent(intent.sandbox)
        try:
            if last is None:
                await self._put(intent)
            else:
                await self._ledger.append(intent, Expect(subjects.pattern(self.node, intent.sandbox), last))
        except BaseException as error:
            opened.unconfirmed = True
            if not isinstance(error, LedgerFullError | ConflictError):
                self._doubtful.add(intent.sandbox)
            self._close_intent(intent.id)
            raise

    async def intents(self) -> AsyncIterator[Stored]:
        """Yield, without end, each intent behind those that were loaded, once it is applied to ``state``."""
        patterns = tuple(subjects.pattern(self.node, event_type=name) for name in sorted(INTENTS))
        async for stored in self._ledger.follow(patterns, self._loaded):
            self._apply(stored)
            self._doubtful.discard(stored.event.sandbox)  # an earlier intent would have come before this one
            self._close_intent(stored.event.id)
            yield stored

    def has_open_intent(self, sandbox: ContainerId) -> bool:
        """Return whether an intent for *sandbox* is being appended, was not consumed yet, or may still arrive."""
        return sandbox in self._doubtful or any(intent.sandbox == sandbox for intent in self._open_intents.values())

    def record(self, data: Data, sandbox: ContainerId = NO_SANDBOX, cause: EventId = NO_CAUSE) -> Recording:
        """Start to append an event that is no intent, and return the future that is done once it is recorded.

        The future fails with LedgerUnavailableError or LedgerFullError if the ledger did not acknowledge the event. It
        is then appended as soon as the ledger accepts it: the ledger may have it, and state and ledger must not differ.
        Later events of the same sandbox wait for that and fail until then, so the order stays. The future fails with
        another LedgerError for an event that the ledger will never accept.

        The intent *cause* may not be consumed yet. The event is sent after *cause*, may be stored before it, and is
        applied after it.
        """
        task = asyncio.create_task(self._append(self.event(data, sandbox, cause), self._open_intents.get(cause)))
        self._keep(task)
        recording = asyncio.shield(task)
        recording.add_done_callback(_retrieve)
        return recording

    @property
    def boot_id(self) -> str:
        """The ID of this boot of the machine."""
        return self._boot_id

    @property
    def oldest_pending(self) -> float:
        """The age in seconds of the oldest intent without outcome, 0 without any. Also for other threads."""
        return max((seconds_since(each.event.at) for each in tuple(self.state.pending.values())), default=0.0)

    @property
    def nothing_postponed(self) -> bool:
        """Whether no event waits to be appended again. Events whose first append is in progress do not count."""
        return not self._postponed

    async def stop(self, reason: str) -> None:
        """Record that the worker stops, if the ledger answers, and close the journal."""
        with contextlib.suppress(LedgerError):
            await self.record(WorkerStopped(reason=reason))
        await self.close()

    async def close(self) -> None:
        """Wait for the appends in progress, then cancel those that the ledger does not acknowledge."""
        if self._appends:
            await asyncio.wait(self._appends, timeout=_RETRY)
        for task in self._appends:
            task.cancel()

    async def _append(self, event: Event, intent: _OpenIntent | None) -> None:
        """Append *event*. *intent* is its cause, where that is open."""
        if any(earlier.sandbox == event.sandbox for earlier in self._postponed):
            self._postpone(event)
            raise LedgerUnavailableError(
                "the ledger has not yet acknowledged an earlier event of this sandbox, so this one is recorded later"
            )
        try:
            sequence = await self._put(event)
        except (LedgerUnavailableError, LedgerFullError):
            if intent is None or not intent.unconfirmed:  # an unconfirmed intent needs no record
                self._postpone(event)
            raise
        if intent is not None:
            await intent.closed.wait()
        self._apply(Stored(sequence, event))

    def _close_intent(self, intent: EventId) -> None:
        if (opened := self._open_intents.pop(intent, None)) is not None:
            opened.closed.set()

    async def _put(self, event: Event) -> int:
        """Append *event* unless another worker took the node over: two workers would undo each other's work."""
        try:
            return await self._ledger.append(event, self._fence)
        except ConflictError as error:
            self.replaced.set()
            raise ConflictError(
                f"another worker now serves node {self.node}, so the ledger refused {event.type}: stop one of "
                "the two, or set a different node name for each"
            ) from error

    def _apply(self, stored: Stored) -> None:
        sandbox = self.state.apply(stored)
        for listener in self._listeners:
            listener(stored.event, sandbox)

    def _postpone(self, event: Event) -> None:
        self._postponed.append(event)
        if len(self._postponed) == 1:
            self._keep(asyncio.create_task(self._catch_up(), context=Context()))  # for the events of all sandboxes

    async def _catch_up(self) -> None:
        """Append the postponed events, until none is left."""
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
                with logs.about(self._pod_of(lost.sandbox), lost.sandbox):
                    log.error("event_lost", type=lost.type, error=str(error))  # noqa: TRY400

    def _pod_of(self, sandbox: ContainerId) -> Pod:
        boxes = (box for key, box in self.state.sandboxes.items() if key.container_id == sandbox)
        return next((box.pod for box in boxes), Pod())

    async def _append_once(self, event: Event) -> int:
        """Append *event* unless the ledger has it: the server detects duplicates for two minutes only."""
        last = await self._ledger.last(subjects.subject(event.node, event.sandbox, event.type))
        if last is not None and last.event.id == event.id:
            return last.sequence
        return await self._put(event)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._appends.add(task)
        task.add_done_callback(self._appends.discard)


def _retrieve(recording: Recording) -> None:
    """Mark an error as seen: the caller may have been cancelled, and the append goes on in a separate task."""
    if not recording.cancelled():
        recording.exception()
