"""The events that an adoption appends, and does not append twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.fold import SandboxPhase, State
from events.ledger.ledger import Expect, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import (
    ContainerId,
    DetachCompleted,
    DetachRequested,
    Event,
    IfName,
    NodeName,
    RequestId,
    SandboxAdopted,
    WorkerStarted,
)
from nodeworker.host.adopt.__main__ import Report, adopt
from nodeworker.host.adopt.settings import AdoptSection, AdoptSettings
from nodeworker.journal.journal import Journal
from tests.support.host.multus_pods import BOX, POD, another
from tests.support.host.multus_state import MultusNode, Sandbox

NODE = "node-1"


class FailingLedger(MemoryLedger):
    """A ledger that fails from its nth event of an adoption on."""

    def __init__(self, adoptions: int) -> None:
        super().__init__()
        self.left = adoptions

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        if isinstance(event.data, SandboxAdopted):
            if not self.left:
                raise LedgerUnavailableError("the ledger is unavailable")
            self.left -= 1
        return await super().append(event, expect)


@pytest.fixture
def settings(multus: MultusNode) -> AdoptSettings:
    section = AdoptSection(cni_dir=str(multus.cni_dir), cache_dirs=(str(multus.cache_dir),))
    return AdoptSettings(node=NODE, adopt=section)


def gone(number: int) -> Sandbox:
    """Return a pod whose namespace does not exist."""
    return another(number, netns=f"/run/netns/plumbline-gone-{number}")


async def events(ledger: MemoryLedger) -> list[Event]:
    return [stored.event async for stored in ledger.read()]


async def state(ledger: MemoryLedger) -> State:
    folded = State()
    async for stored in ledger.read():
        folded.apply(stored)
    return folded


async def detach(ledger: MemoryLedger, sandbox: str) -> None:
    """Record a DEL as a worker does."""
    journal = Journal(ledger, NodeName(NODE))
    request, eth0 = RequestId("del"), IfName("eth0")
    async for _ in journal.load():
        pass
    await journal.open_epoch(WorkerStarted(version="0", pid=1))
    intent = journal.event(DetachRequested(request=request, ifname=eth0), ContainerId(sandbox))
    await journal.append_intent(intent)
    async for _ in journal.intents():
        break
    await journal.record(DetachCompleted(request=request, ifname=eth0), ContainerId(sandbox), intent.id)
    await journal.close()


def as_data(report: Report) -> Any:
    return msgspec.to_builtins(report)


async def test_each_sandbox_is_one_event_in_one_epoch(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    multus.write(gone(2))
    ledger = MemoryLedger()
    report = await adopt(ledger, settings, dry_run=False)
    assert [each.container_id for each in report.adoptions] == [gone(1).container_id, gone(2).container_id]
    assert [event.type for event in await events(ledger)] == [
        "WorkerStarted",
        "SandboxAdopted",
        "SandboxAdopted",
        "WorkerStopped",
    ]
    assert {event.epoch for event in await events(ledger)} == {1}
    folded = await state(ledger)
    assert not folded.anomalies
    assert {box.phase for box in folded.sandboxes.values()} == {SandboxPhase.ATTACHED}
    assert {key.container_id for key in folded.sandboxes} == {gone(1).container_id, gone(2).container_id}


async def test_a_second_run_appends_nothing(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    ledger = MemoryLedger()
    await adopt(ledger, settings, dry_run=False)
    before = await events(ledger)
    report = await adopt(ledger, settings, dry_run=False)
    assert (report.adoptions, report.known) == ((), 1)
    assert await events(ledger) == before


async def test_a_node_without_multus_has_nothing_to_adopt(settings: AdoptSettings) -> None:
    ledger = MemoryLedger()
    report = await adopt(ledger, settings, dry_run=False)
    assert (report.adoptions, report.refusals, report.known, report.leftovers) == ((), (), 0, 0)
    assert await events(ledger) == []


async def test_dry_run_is_repeatable_and_appends_nothing(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    multus.write(gone(2))
    multus.scratch(gone(2)).write_text("[")
    multus.request(gone(2)).unlink()
    ledger = MemoryLedger()
    first = await adopt(ledger, settings, dry_run=True)
    second = await adopt(ledger, settings, dry_run=True)
    assert as_data(first) == as_data(second)
    assert (len(first.adoptions), len(first.refusals)) == (1, 1)
    assert await events(ledger) == []
    done = await adopt(ledger, settings, dry_run=False)
    assert as_data(done) == {**as_data(first), "dry_run": False}


async def test_a_dry_run_needs_no_ledger(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    report = await adopt(None, settings, dry_run=True)
    assert (len(report.adoptions), report.ledger_read) == (1, False)


async def test_next_run_continues_an_interrupted_one(multus: MultusNode, settings: AdoptSettings) -> None:
    for number in range(1, 6):
        multus.write(gone(number))
    ledger = FailingLedger(adoptions=2)
    with pytest.raises(LedgerUnavailableError):
        await adopt(ledger, settings, dry_run=False)
    ledger.left = 100
    report = await adopt(ledger, settings, dry_run=False)
    assert (len(report.adoptions), report.known) == (3, 2)
    adopted = [event.sandbox for event in await events(ledger) if event.type == "SandboxAdopted"]
    assert adopted == [gone(number).container_id for number in range(1, 6)]


async def test_bad_sandbox_does_not_stop_the_others(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    multus.write(gone(2))
    multus.scratch(gone(1)).write_bytes(b"\xff\x00")
    multus.entry(gone(1), 0).unlink()
    report = await adopt(MemoryLedger(), settings, dry_run=False)
    assert [each.container_id for each in report.adoptions] == [gone(2).container_id]
    assert [each.container_id for each in report.refusals] == [gone(1).container_id]
    assert str(multus.scratch(gone(1))) in report.refusals[0].problem


async def test_detached_sandbox_with_files_is_not_adopted_again(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    ledger = MemoryLedger()
    await adopt(ledger, settings, dry_run=False)
    await detach(ledger, gone(1).container_id)
    assert not (await state(ledger)).sandboxes
    assert (await adopt(ledger, settings, dry_run=False)).known == 1
    # The ledger forgets a detached sandbox after a while, but keeps the events of the node.
    await ledger.purge(f"plumbline.ev.{NODE}.{gone(1).container_id}.*", await ledger.last_sequence())
    report = await adopt(ledger, settings, dry_run=False)
    assert (report.adoptions, report.leftovers) == ((), 1)
    assert not (await state(ledger)).sandboxes


async def test_later_pods_of_multus_are_adopted_by_the_next_run(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(gone(1))
    ledger = MemoryLedger()
    await adopt(ledger, settings, dry_run=False)
    multus.write(gone(2))
    report = await adopt(ledger, settings, dry_run=False)
    assert [each.container_id for each in report.adoptions] == [gone(2).container_id]
    assert (await state(ledger)).epochs == {NODE: 2}


async def test_a_report_is_what_the_command_line_reads(multus: MultusNode, settings: AdoptSettings) -> None:
    multus.write(POD)
    report = await adopt(None, settings, dry_run=True)
    text = msgspec.json.encode(report)
    (adoption,) = msgspec.json.decode(text, type=Report).adoptions
    assert (adoption.container_id, adoption.data) == (BOX, report.adoptions[0].data)


@pytest.mark.parametrize("folder", ["", "relative"])
def test_folders_are_absolute(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        AdoptSection(cni_dir=str(tmp_path), cache_dirs=(folder,))
