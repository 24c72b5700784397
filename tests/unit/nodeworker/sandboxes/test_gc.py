"""GC without the ledger, and before the default network is ready."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from events.ledger.ledger import Expect, LedgerError, LedgerFullError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import (
    DetachRequested,
    ErrorClass,
    Event,
    Failure,
    GcRequested,
    InterfaceAttached,
    NetworkName,
    RequestId,
    WorkerStarted,
)
from nodeworker.deadline import deadline_in
from nodeworker.journal.journal import Journal
from nodeworker.planning import readiness
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.gc import GarbageCollector
from nodeworker.sandboxes.scheduler import Scheduler
from nodeworker.settings import WorkerSection
from tests.support.worker.worker_harness import BOX, ETH0, NODE, PLANNED, attach, completed

ATTACHED = InterfaceAttached(network=NetworkName("default"), ifname=ETH0, result="{}", seconds=0.1)


class RefusingLedger(MemoryLedger):
    """A ledger in memory that refuses given event types."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: tuple[str, ...] = ()
        self.error: LedgerError = LedgerFullError("the disk is full")

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        if event.type in self.refused:
            raise self.error
        return await super().append(event, expect)


def request(**keys: Any) -> GcRequested:
    delegate = {"cniVersion": "1.1.0", "name": "default", "type": "bridge"}
    config = {"cniVersion": "1.1.0", "name": "plumbline", "delegates": [delegate], **keys}
    return GcRequested(request=RequestId("gc"), config=json.dumps(config), valid=(), deadline=deadline_in(30))


async def collected(ledger: RefusingLedger, refused: tuple[str, ...], **keys: Any) -> Failure | None:
    """Return why a GC failed, for which the sandbox ``BOX`` is stale."""
    journal = Journal(ledger, NODE)
    await journal.open_epoch(WorkerStarted(version="1", pid=1))
    gc = request(**keys)
    intents = aiter(journal.intents())
    await journal.append_intent(journal.event(replace(attach(), config=gc.config), BOX))
    added = (await anext(intents)).event
    for data in (PLANNED, ATTACHED, completed()):
        await journal.record(data, BOX, added.id)
    await journal.append_intent(journal.event(gc))
    event = (await anext(intents)).event
    ledger.refused = refused
    runners, readiness = PluginExecutor(marker="gc-test"), Readiness(seats=1)
    defaults = WorkerSection().network
    planner = Planner(None, [], runners, readiness, node_defaults=defaults, native="auto", info_folder="/")
    async with asyncio.TaskGroup() as tasks:
        scheduler = Scheduler(tasks, 2)
        collector = GarbageCollector(journal, scheduler, Answers(), runners, planner, readiness, 20.0)
        reply = await collector.collect(event, gc)
    await journal.close()
    return reply.failure


@pytest.mark.parametrize("refused", ["DetachRequested", "GcFailed"])
@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (LedgerFullError("the disk is full"), ErrorClass.LEDGER_FULL),
        (LedgerUnavailableError("is nats-server running?"), ErrorClass.LEDGER_UNAVAILABLE),
    ],
)
async def test_a_refusal_of_the_ledger_keeps_its_error_class(
    refused: str, error: LedgerError, error_class: ErrorClass
) -> None:
    ledger = RefusingLedger()
    ledger.error = error
    failure = await collected(ledger, ("DetachRequested", refused))
    assert failure is not None
    message = f"sandbox box: {error}" if refused == "DetachRequested" else str(error)
    assert (failure.error_class, failure.code, failure.message) == (error_class, 11, message)


async def test_gc_waits_for_the_default_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LONGEST", 0.01)
    ledger = RefusingLedger()
    failure = await collected(ledger, (), readinessindicatorfile=str(tmp_path / "absent"))
    assert failure is not None
    assert (failure.error_class, failure.code) == (ErrorClass.NODE_NOT_READY, 11)
    assert not [stored async for stored in ledger.read() if isinstance(stored.event.data, DetachRequested)]


async def test_an_add_waits_for_the_collection_of_its_network_only() -> None:
    collections = Scheduler(asyncio.TaskGroup(), 2)
    async with collections.collection("default"):
        await collections.collections_finished({"other"})
        waits = asyncio.create_task(collections.collections_finished({"default"}))
        await asyncio.sleep(0)
        assert not waits.done()
    await waits
    await collections.collections_finished({"default"})
