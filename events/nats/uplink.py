"""Copy a node's ledger to the hub: in order, each event once, whatever happens to node, hub or the way between.

Each copy says where it came from, and is appended on the condition that the hub's last event of the node is the copy
before it. So the hub holds a node's events without gap or repetition, one writer at a time, and the last one tells
where to go on: there is nothing to remember, and nothing that could be remembered wrongly. An event is copied byte by
byte, because a newer Plumbline may have put in what this one does not know.
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
from events.nats.ledger import JetStreamLedger
from events.nats.streams import Stream, StreamInfo, StreamMessage, expect_headers
from events.schema import EventId, NodeName, decode_head, unix_ns

log = structlog.get_logger(__name__)

BATCH = 200
"""Events that are appended together, at most."""
BATCH_BYTES = 1024 * 1024
_ALONE = 3
"""So many events are faster one after the other than together."""
_HEADERS = 1024
"""Bytes that the headers of a copy have at most."""
_EACH = 2.0
"""Seconds until the hub is sent a copy again."""
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 30.0
_MEASURE = 5.0
_DOUBT = 1.0
"""Seconds until it is noticed that the connection to the hub is a new one."""
_LOOK = 60.0
"""Seconds between two looks at a hub whose connection lasts: behind it may be another."""
_ID = "Nats-Msg-Id"
_ORIGIN = "Plumbline-Origin"
"""Header of a copy: which ledger it is from, by the time of its making, and its sequence there."""


class Lag(NamedTuple):
    """How far the hub is behind the node."""

    events: int = 0
    """At most; what was purged counts too."""
    since: int = 0
    """When the first event that the hub has not got was written, in ns since 1970; 0: it has all."""


class _Copy(NamedTuple):
    sequence: int
    subject: str
    id: EventId
    payload: bytes


class Uplink:
    """Copies the ledger of *node*, whose connections to the node's own server and to the hub others keep."""

    def __init__(self, ledger: JetStreamLedger, hub: JetStreamLedger, node: NodeName) -> None:
        self._ledger = ledger
        self._hub = hub
        self._node = node
        self._pattern = subjects.pattern(node)
        self._from = Stream(ledger.connection, ledger.stream)
        self._to = Stream(hub.connection, hub.stream)
        self._origin = ""
        self._last = 0  # sequence at the hub of its last event of the node
        self._met = False
        self._known: frozenset[EventId] = frozenset()  # what the hub has, where sequences can't tell
        self.done = 0
        """The hub has all events of the node up to this sequence of the node's ledger."""
        self.lag = Lag()

    async def run(self) -> None:
        """Copy, without end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._measure(), name="measure-uplink")
            tasks.create_task(self._run(), name="copy-to-hub")

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            done, reason = self.done, "the node's ledger was read to its end"
            try:
                await self._meet()
                await self._copy()
            except (LedgerError, ConsumerLostError) as error:
                reason = str(error)
            pause = _FIRST_PAUSE if self.done > done else min(2 * pause, _LAST_PAUSE)
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # thousands of nodes must not come at once
            log.warning("uplink_interrupted", error=reason, done=self.done, retry_in=round(wait, 1))
            await asyncio.sleep(wait)

    async def _meet(self) -> None:
        """Find where to go on: behind the hub's last event of the node."""
        own, last = await self._from.info(), await self._to.message(last_by_subj=self._pattern)
        self._origin = own.created
        self._last = 0 if last is None else last.sequence
        done = await self._place(own, last)
        if self._met and done < self.done:
            log.warning("hub_lost_history", done=self.done, resumed=done, hub_sequence=self._last)
        self._met = True
        self.done = done
        log.info("uplink_resumed", done=done, hub_sequence=self._last, known=len(self._known))

    async def _place(self, own: StreamInfo, last: StreamMessage | None) -> int:
        """Return up to which sequence of the node's ledger the hub has it, and set ``_known`` where that can't say."""
        self._known = frozenset()
        if last is None:
            return 0
        origin, _, number = last.header(_ORIGIN).rpartition(" ")
        if origin == own.created and number.isdigit() and int(number) <= own.state.last_seq:
            kept = await self._from.message(seq=int(number))  # none: it was purged
            if kept is None or kept.payload == last.payload:
                return int(number)
        # The node's ledger was made anew, or is a backup. What the hub has of it is told by the events themselves.
        self._known = await self._ids_at_hub()
        log.warning("node_ledger_replaced", hub_origin=origin, origin=own.created, hub_events=len(self._known))
        return 0

    async def _copy(self) -> None:
        """Copy what the node's ledger has and gets. Raises ConflictError when the hub is not as it was left."""
        pulling, doubting = asyncio.create_task(self._pull()), asyncio.create_task(self._doubt())
        try:
            done, _ = await asyncio.wait({pulling, doubting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (pulling, doubting):
                task.cancel()
            await asyncio.wait({pulling, doubting})

    async def _pull(self) -> None:
        puller = Consumer(self._ledger.connection, self._ledger.stream, (self._pattern,), self.done, endless=True)
        async with aclosing(puller.pull()) as batches:
            async for messages in batches:
                copies = [copy for message in messages if (copy := self._copy_of(message)) is not None]
                for batch in _batches(copies):
                    if len(batch) <= _ALONE:
                        for copy in batch:
                            await self._append(copy)
                    else:
                        await self._append_together(batch)
                if messages:  # else it was a heartbeat
                    self.done = messages[-1].sequence

    async def _doubt(self) -> None:
        """Raise ConflictError when the hub has lost what it had. A node that has nothing to say would not notice."""
        loop = asyncio.get_running_loop()
        made, looked = self._hub.generation, loop.time()
        while True:
            await asyncio.sleep(_DOUBT)
            if self._hub.generation != made or loop.time() - looked > _LOOK:
                made, looked, left = self._hub.generation, loop.time(), self._last
                last = await self._to.message(last_by_subj=self._pattern)
                if (0 if last is None else last.sequence) < left:
                    raise ConflictError("the hub does not have what it had")

    def _copy_of(self, message: Message) -> _Copy | None:
        """Return what goes to the hub; None: the hub has it, or it is no event of this node."""
        head, reason = decode_head(message.payload), ""
        if head is None or head.node != self._node:
            reason = "it is torn, or another node's"
        elif len(message.payload) + _HEADERS > self._to.connection.max_payload:
            reason = f"its {len(message.payload)} bytes are more than the hub takes (max_payload)"
        if head is None or reason:
            log.error("event_not_copied", sequence=message.sequence, reason=reason)
            return None
        if head.id in self._known:
            return None
        return _Copy(message.sequence, subjects.subject(head.node, head.sandbox, head.type), head.id, message.payload)

    async def _append(self, copy: _Copy) -> None:
        sequence = await self._to.store(
            copy.subject,
            copy.payload,
            what="a copied event",
            headers=self._headers(copy),
            expect=Expect(self._pattern, self._last),
            each=_EACH,
        )
        self._advance(copy, sequence)

    async def _append_together(self, batch: Sequence[_Copy]) -> None:
        """Append *batch*, all or nothing. Whatever the answer is, or if there is none, the hub itself tells which."""
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
        sequence = await self._to.store(last.subject, last.payload, what="copied events", headers=headers, each=5.0)
        self._advance(last, sequence)

    def _advance(self, copy: _Copy, sequence: int) -> None:
        if sequence <= self._last:  # the hub knows the event from elsewhere in its log
            raise ConflictError(f"the hub has event {copy.id} already, before others")
        self._last, self.done = sequence, copy.sequence

    def _headers(self, copy: _Copy) -> dict[str, str]:
        return {_ID: copy.id, _ORIGIN: f"{self._origin} {copy.sequence}"}

    async def _ids_at_hub(self) -> frozenset[EventId]:
        """Return which events of the node the hub has. One by one: a node may not have consumers at the hub."""
        found: list[EventId] = []
        after = 0
        while (kept := await self._to.message(seq=after + 1, next_by_subj=self._pattern)) is not None:
            after = kept.sequence
            found.append(EventId(kept.header(_ID)))
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
        head = decode_head(waiting.payload)
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
