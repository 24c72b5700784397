"""Copy a node's ledger to the hub: in order, and each event once, over failures of node, hub and network.

Each copy names its origin, and its append has the condition that the hub's last event of the node is the copy before
it. So the hub has a node's events without gap or duplicate, from one writer at a time, and its last event says where
to resume: the uplink stores no position. Events are copied byte by byte, because a newer Plumbline may have
written fields that this one does not know.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import structlog

from events import subjects
from events.ledger.ledger import ConflictError, Expect, LedgerError
from events.nats.client.consumer import Consumer, ConsumerLostError, Message
from events.nats.event_stream import EventStream
from events.nats.ledger import JetStreamLedger
from events.nats.streams import Stream, StreamInfo, StreamMessage, expect_headers
from events.schema import EventId, NodeName, unix_ns

log = structlog.get_logger(__name__)

BATCH = 200
"""Largest number of events in an atomic batch."""
BATCH_BYTES = 1024 * 1024
_SINGLE = 3
"""Up to so many events are faster one by one than as a batch."""
_HEADERS = 1024
"""Upper limit of the headers of a copy, in bytes."""
_EACH = 2.0
"""Seconds before a copy is sent again."""
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 30.0
_MEASURE = 5.0
_CHECK = 1.0
"""Seconds between two checks for a new connection to the hub."""
_CHECK_HISTORY = 60.0
"""Seconds between two checks of the hub's last event while the connection lasts: another server may have taken over."""
_ID = "Nats-Msg-Id"
_ORIGIN = "Plumbline-Origin"
"""Header of a copy: the creation time of its ledger, and its sequence there."""


class Lag(NamedTuple):
    """The hub's lag behind the node."""

    events: int = 0
    """Upper limit: purged events count too."""
    since: int = 0
    """Time of the first event that the hub lacks, in ns since 1970; 0: it has all."""


class _Copy(NamedTuple):
    sequence: int
    subject: str
    id: EventId
    payload: bytes


class Uplink:
    """Copies the ledger of *node* to the hub. The caller closes both connections."""

    def __init__(self, ledger: JetStreamLedger, hub: JetStreamLedger, node: NodeName) -> None:
        self._ledger = ledger
        self._hub = hub
        self._node = node
        self._pattern = subjects.pattern(node)
        self._from = Stream(ledger.connection, ledger.stream)
        self._to = Stream(hub.connection, hub.stream)
        self._at_hub = EventStream(self._to, hub.decoder)
        self._origin = ""
        self._last = 0  # sequence at the hub of its last message under the node's subjects
        self._resumed = False
        self._known: frozenset[EventId] = frozenset()  # events that the hub has, if IDs must decide
        self.done = 0
        """The hub has all events of the node up to this sequence of the node's ledger."""
        self.lag = Lag()

    async def run(self) -> None:
        """Copy without end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._measure(), name="measure-uplink")
            tasks.create_task(self._run(), name="copy-to-hub")

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            done, reason = self.done, "the node's ledger was read to its end"
            try:
                await self._resume()
                await self._copy()
            except (LedgerError, ConsumerLostError) as error:
                reason = str(error)
            pause = _FIRST_PAUSE if self.done > done else min(2 * pause, _LAST_PAUSE)
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # thousands of nodes must not retry at once
            log.warning("uplink_interrupted", error=reason, done=self.done, retry_in=round(wait, 1))
            await asyncio.sleep(wait)

    async def _resume(self) -> None:
        """Find where to resume: after the hub's last event of the node."""
        own, last = await self._from.info(), await self._to.message(last_by_subj=self._pattern)
        self._origin = own.created
        before, self._last = self._last, 0 if last is None else last.sequence
        done = await self._place(own, last if last is None or self._is_event(last) else await self._last_event(before))
        if self._resumed and done < self.done:
            log.warning("hub_lost_history", done=self.done, resumed=done, hub_sequence=self._last)
        self._resumed = True
        self.done = done
        log.info("uplink_resumed", done=done, hub_sequence=self._last, known=len(self._known))

    async def _place(self, own: StreamInfo, last: StreamMessage | None) -> int:
        """Return the sequence up to which the hub has the node's ledger; set ``_known`` if IDs must decide."""
        self._known = frozenset()
        if last is None:
            return 0
        origin, _, number = last.header(_ORIGIN).rpartition(" ")
        if origin == own.created and number.isdigit() and int(number) <= own.state.last_seq:
            original = await self._from.message(seq=int(number))  # None: purged
            if original is None or original.payload == last.payload:
                return int(number)
        # The node's ledger is new, or a restored backup. Only the events' IDs show what the hub has of it.
        self._known = await self._ids_at_hub()
        log.warning("node_ledger_replaced", hub_origin=origin, origin=own.created, hub_events=len(self._known))
        return 0

    async def _copy(self) -> None:
        """Copy the ledger's events and follow it. Raises ConflictError if the hub has changed otherwise."""
        pulling, checking = asyncio.create_task(self._pull()), asyncio.create_task(self._check_hub())
        try:
            done, _ = await asyncio.wait({pulling, checking}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (pulling, checking):
                task.cancel()
            await asyncio.wait({pulling, checking})

    async def _pull(self) -> None:
        consumer = Consumer(self._ledger.connection, self._ledger.stream, (self._pattern,), self.done, endless=True)
        async with aclosing(consumer.pull()) as batches:
            async for messages in batches:
                copies = [copy for message in messages if (copy := self._copy_of(message)) is not None]
                for batch in _batches(copies):
                    await self._append(batch)
                if messages:  # empty: a heartbeat
                    self.done = messages[-1].sequence

    async def _check_hub(self) -> None:
        """Raise ConflictError if the hub lost events. Appends alone would not show that on an idle node."""
        loop = asyncio.get_running_loop()
        generation, checked = self._hub.generation, loop.time()
        while True:
            await asyncio.sleep(_CHECK)
            if self._hub.generation != generation or loop.time() - checked > _CHECK_HISTORY:
                generation, checked, before = self._hub.generation, loop.time(), self._last
                last = await self._to.message(last_by_subj=self._pattern)
                if (0 if last is None else last.sequence) < before:
                    raise ConflictError("the hub has lost events")

    def _copy_of(self, message: Message) -> _Copy | None:
        """Return the copy for the hub; None if the hub has the event, or the message is no event."""
        head = self._ledger.decoder.decode_head(*message)
        if head is None or head.id in self._known:
            return None
        if len(message.payload) + _HEADERS > self._to.connection.max_payload:
            reason = f"its {len(message.payload)} bytes are more than the hub takes (max_payload)"
            log.error("event_not_copied", sequence=message.sequence, reason=reason)
            return None
        return _Copy(message.sequence, message.subject, head.id, message.payload)

    async def _append(self, batch: Sequence[_Copy]) -> None:
        """Append *batch*. Raises ConflictError if another writer appended an event of the node."""
        append = self._append_atomically if len(batch) > _SINGLE else self._append_each
        while True:
            try:
                return await append(batch)
            except ConflictError:
                expected = Expect(self._pattern, self._last)
                if not await self._at_hub.holds(expected):
                    raise
                self._last = self._at_hub.condition(expected).sequence
                batch = [copy for copy in batch if copy.sequence > self.done]

    async def _append_each(self, batch: Sequence[_Copy]) -> None:
        for copy in batch:
            sequence = await self._to.store(
                copy.subject,
                copy.payload,
                label="a copied event",
                headers=self._headers(copy),
                expect=Expect(self._pattern, self._last),
                each=_EACH,
            )
            self._advance(copy, sequence)

    async def _append_atomically(self, batch: Sequence[_Copy]) -> None:
        """Append *batch* as one. After any other answer, or none, ``_resume`` asks the hub what it has."""
        name = secrets.token_hex(8)
        for number, copy in enumerate(batch[:-1], 1):
            headers = self._headers(copy) | {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
            if number == 1:
                headers |= expect_headers(Expect(self._pattern, self._last))
            await self._to.connection.publish(copy.subject, copy.payload, headers=headers)
        last = batch[-1]
        headers = self._headers(last) | {
            "Nats-Batch-Id": name,
            "Nats-Batch-Sequence": str(len(batch)),
            "Nats-Batch-Commit": "1",
        }
        sequence = await self._to.store(last.subject, last.payload, label="copied events", headers=headers, each=5.0)
        self._advance(last, sequence)

    def _advance(self, copy: _Copy, sequence: int) -> None:
        if sequence <= self._last:  # a duplicate of an earlier event in the hub's log
            raise ConflictError(f"the hub has event {copy.id} already, before later ones")
        self._last, self.done = sequence, copy.sequence

    def _headers(self, copy: _Copy) -> dict[str, str]:
        return {_ID: copy.id, _ORIGIN: f"{self._origin} {copy.sequence}"}

    def _is_event(self, message: StreamMessage) -> bool:
        return self._hub.decoder.decode_head(message.sequence, message.subject, message.payload) is not None

    async def _last_event(self, after: int) -> StreamMessage | None:
        """Return the hub's last event of the node; *after*: one that was the last message before."""
        found: StreamMessage | None = None
        at = max(after, 1)
        while (message := await self._to.message(seq=at, next_by_subj=self._pattern)) is not None:
            found, at = message if self._is_event(message) else found, message.sequence + 1
        return found if found is not None or after == 0 else await self._last_event(0)

    async def _ids_at_hub(self) -> frozenset[EventId]:
        """Return the IDs of the node's events at the hub, read one by one: a node may not have consumers there."""
        found: list[EventId] = []
        after = 0
        while (message := await self._to.message(seq=after + 1, next_by_subj=self._pattern)) is not None:
            after = message.sequence
            found.append(EventId(message.header(_ID)))
        return frozenset(found)

    async def _measure(self) -> None:
        while True:
            try:
                self.lag = await self._lag()
            except LedgerError as error:
                log.info("uplink_not_measured", error=str(error))
            await asyncio.sleep(_MEASURE)

    async def _lag(self) -> Lag:
        done = self.done
        waiting = await self._from.message(seq=done + 1, next_by_subj=self._pattern)
        if waiting is None:
            return Lag()
        head = self._ledger.decoder.decode_head(waiting.sequence, waiting.subject, waiting.payload)
        end = (await self._from.info()).state.last_seq
        return Lag(end - done, unix_ns(head.at) if head is not None else time.time_ns())


def _batches(copies: Sequence[_Copy]) -> Iterator[list[_Copy]]:
    batch: list[_Copy] = []
    size = 0
    for copy in copies:
        if batch and (len(batch) == BATCH or size + len(copy.payload) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(copy)
        size += len(copy.payload)
    if batch:
        yield batch
