"""StatusPublisher publishes each pending status once, retries, and records the result in the ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from events.ledger.memory import MemoryLedger
from events.ledger.notices import PRESENCE_LOST, PUBLISHER_PRESENT
from events.schema import (
    NO_NODE,
    ErrorClass,
    Event,
    Pod,
    StatusPublished,
    StatusPublishFailed,
    Stored,
)
from reconciler.metrics import Metrics
from reconciler.projection.fold.published import PodName
from reconciler.projection.store import Store
from reconciler.status import publishing
from reconciler.status.folder_sink import FolderSink
from reconciler.status.sink import ObservedStatus, PublishError
from reconciler.status.text import PodStatus
from tests.support.reconciler.rows import stored_in
from tests.support.reconciler.running import Running, running
from tests.support.stories.node import Node
from tests.support.waiting import BOUND

POD = Pod("shop", "web", "u")
BOX, OTHER = "a" * 64, "b" * 64


class Board:
    """A ``StatusSink`` that records its calls and fails on request."""

    def __init__(self) -> None:
        self.puts: list[PodStatus] = []
        self.befores: list[PodStatus | None] = []
        self.withdrawn: list[PodName] = []
        self.errors: list[Exception] = []
        """Errors for the next calls."""
        self.open = asyncio.Event()
        self.open.set()
        self.under_way = 0
        self.most = 0
        self.well = True
        self.there: set[PodName] = set()
        self.changes: asyncio.Queue[ObservedStatus] = asyncio.Queue()
        self.pods_say: dict[PodName, ObservedStatus] = {}

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        self.puts.append(status)
        self.befores.append(before)
        if self.errors:
            raise self.errors.pop(0)
        return status != before

    async def withdraw(self, pod: PodName) -> bool:
        self.withdrawn.append(pod)
        return True

    async def withdrawable(self) -> set[PodName]:
        return self.there

    async def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        while True:
            yield await self.changes.get()

    async def read_all(self) -> AsyncGenerator[ObservedStatus, None]:
        for found in self.pods_say.values():
            yield found

    async def read(self, pod: PodName) -> ObservedStatus | None:
        return self.pods_say.get(pod)

    async def ready(self) -> bool:
        return self.well

    async def close(self) -> None:
        """Do nothing: there are no connections."""


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the delays between attempts: the tests check attempts, not times."""

    def at_once() -> Iterable[float]:
        while True:
            yield 0.0

    monkeypatch.setattr(publishing, "delays", at_once)


async def fill(ledger: MemoryLedger, events: Iterable[Event]) -> int:
    last = 0
    for event in events:
        last = await ledger.append(event)
    return last


async def said(ledger: MemoryLedger) -> list[Any]:
    """Return the events that the reconciler appended."""
    return [stored.event.data async for stored in ledger.read("plumbline.ev.-.>")]


async def until_said(run: Running, ledger: MemoryLedger, count: int) -> Sequence[Any]:
    found: list[Any] = []
    async with asyncio.timeout(BOUND):
        while len(found) < count:
            await asyncio.wait({run.task}, timeout=0.005)
            assert not run.task.done() or run.task.result()
            found = await said(ledger)
    return found


def unavailable() -> PublishError:
    return PublishError(ErrorClass.SOURCE_UNAVAILABLE, "pod shop/web: unreachable")


def gone() -> PublishError:
    return PublishError(ErrorClass.POD_NOT_FOUND, "pod shop/web is gone", final=True)


async def test_an_attach_is_published_and_recorded(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    async with running(ledger, tmp_path / "x.db", board) as run:
        attached = list(Node().attach(BOX, POD))
        await fill(ledger, attached)
        (published,) = await until_said(run, ledger, 1)
        (event,) = [stored.event async for stored in ledger.read("plumbline.ev.-.>")]
        assert run.value("status_published_total") == 1
        assert run.value("status_seconds_count") == 1
    assert isinstance(published, StatusPublished)
    assert board.puts == [PodStatus(POD, published.text)]
    assert [element["name"] for element in json.loads(published.text)] == ["k8s-pod-network", "default/storage"]
    assert (published.node, published.ifname, published.pod) == ("node-1", "eth0", POD)
    assert (event.node, event.sandbox, event.cause) == (NO_NODE, BOX, attached[0].id)


@pytest.mark.parametrize("failing", [None, 1])
async def test_a_plan_without_publication_is_not_published(
    ledger: MemoryLedger, board: Board, tmp_path: Path, failing: int | None
) -> None:
    """A sandbox without pod, and a failed attach."""
    async with running(ledger, tmp_path / "x.db", board) as run:
        node = Node()
        pod = Pod() if failing is None else POD
        await run.at(await fill(ledger, node.attach(BOX, pod, fails_at=failing)))
        await fill(ledger, node.attach(OTHER, Pod("shop", "next", "u2")))
        await until_said(run, ledger, 1)
    assert [status.pod.name for status in board.puts] == ["next"]


async def test_a_restart_publishes_only_what_is_missing(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    node = Node()
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, node.attach(BOX, POD))
        await until_said(run, ledger, 1)
        await run.at(await ledger.last_sequence())
    async with running(ledger, tmp_path / "x.db") as run:  # without a sink
        await run.at(await fill(ledger, node.attach(OTHER, Pod("shop", "late", "u2"))))
    async with running(ledger, tmp_path / "x.db", board) as run:
        await until_said(run, ledger, 2)
    assert [status.pod.name for status in board.puts] == ["web", "late"]


async def test_a_rebuilt_database_has_the_publications_of_the_ledger(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, Node().attach(BOX, POD))
        await until_said(run, ledger, 1)
    async with running(ledger, tmp_path / "y.db", board) as run:
        await run.at(await ledger.last_sequence())
    assert len(board.puts) == 1
    ((*row,),) = stored_in(tmp_path / "y.db")["statuses"]
    assert dict(row)["text"] == board.puts[0].text


async def test_a_second_sandbox_is_published_with_the_previous_status(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    node = Node()
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, node.attach(BOX, POD))
        await until_said(run, ledger, 1)
        await fill(ledger, node.attach(OTHER, POD, ["k8s-pod-network"]))
        await until_said(run, ledger, 2)
        await fill(ledger, node.detach(BOX, POD))
        await run.at(await ledger.last_sequence())
    assert board.befores == [None, board.puts[0]]
    assert board.withdrawn == []


async def test_an_unchanged_status_is_recorded_for_the_new_sandbox(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    """A pod with fixed addresses: its worker waits for the record, although nothing has to be written."""
    node, same = Node(), ("ab" + BOX[2:], "ba" + BOX[2:])  # the address is derived from the sum
    async with running(ledger, tmp_path / "x.db", board) as run:
        for number, box in enumerate(same, 1):
            await fill(ledger, node.attach(box, POD))
            await until_said(run, ledger, number)
        assert run.value("status_published_total") == 1
    assert board.puts[0] == board.puts[1] == board.befores[1]


async def test_a_temporary_failure_is_recorded_once_and_retried(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    board.errors = [unavailable() for _ in range(20)]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, Node().attach(BOX, POD))
        failed, published = await until_said(run, ledger, 2)
        assert run.value("status_failed_total") == 20
    assert isinstance(failed, StatusPublishFailed)
    assert (failed.final, failed.failure.error_class, failed.pod) == (False, ErrorClass.SOURCE_UNAVAILABLE, POD)
    assert isinstance(published, StatusPublished)


async def test_a_final_failure_is_recorded_and_not_retried(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    board.errors = [gone()]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, Node().attach(BOX, POD))
        (failed,) = await until_said(run, ledger, 1)
        await run.at(await ledger.last_sequence())
    assert failed.final
    async with running(ledger, tmp_path / "x.db", board) as run:
        await run.until(lambda: run.value("status_pending") == 0)
        await fill(ledger, Node("node-2").attach(OTHER, Pod("shop", "next", "u2")))
        await until_said(run, ledger, 2)
    assert [status.pod.name for status in board.puts] == ["web", "next"]


async def test_a_defect_in_a_sink_stops_no_other_pod(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    board.errors = [RuntimeError("unexpected")]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, Node().attach(BOX, POD))
        failed, published = await until_said(run, ledger, 2)
    assert failed.failure.error_class is ErrorClass.INTERNAL
    assert isinstance(published, StatusPublished)


async def test_a_status_that_cannot_be_rendered_is_a_final_failure(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    attached = list(Node().attach(BOX, POD))
    async with running(ledger, tmp_path / "x.db", board) as run:
        for event in attached:
            await ledger.append(unreadable(event))
        (failed,) = await until_said(run, ledger, 1)
    assert failed.final
    assert "is unusable" in failed.failure.message
    assert board.puts == []


def unreadable(event: Event) -> Event:
    if event.type != "InterfaceAttached":
        return event
    return replace(event, data=replace(event.data, result="{"))


async def test_only_the_latest_status_counts_and_is_tried_at_once(
    ledger: MemoryLedger, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "delays", lambda: iter([3600.0]))
    node = Node()
    board.errors = [unavailable()]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, node.attach(BOX, POD))
        await until_said(run, ledger, 1)
        await fill(ledger, node.attach(OTHER, POD, ["k8s-pod-network"]))
        _, published = await until_said(run, ledger, 2)
    assert isinstance(published, StatusPublished)
    assert [len(json.loads(status.text)) for status in board.puts] == [2, 1]


async def test_a_retry_is_dropped_when_the_pod_is_gone(
    ledger: MemoryLedger, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "delays", lambda: iter([3600.0]))
    node = Node()
    board.errors = [unavailable()]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, node.attach(BOX, POD))
        await until_said(run, ledger, 1)
        await fill(ledger, node.detach(BOX, POD))
        await run.until(lambda: bool(board.withdrawn))
        await run.until(lambda: run.value("status_pending") == 0)
    assert len(board.puts) == 1


async def test_retry_after_is_respected(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    board.errors = [PublishError(ErrorClass.API_REFUSED, "too many", retry_after=3600.0)]
    async with running(ledger, tmp_path / "x.db", board) as run:
        await fill(ledger, Node().attach(BOX, POD))
        await until_said(run, ledger, 1)
        await fill(ledger, Node("node-2").attach(OTHER, Pod("shop", "next", "u2")))
        await until_said(run, ledger, 2)
    assert [status.pod.name for status in board.puts] == ["web", "next"]


async def test_concurrency_is_limited_and_never_blocks_the_projection(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    board.open.clear()
    async with running(ledger, tmp_path / "x.db", board) as run:
        last = 0
        for number in range(40):
            pod = Pod("shop", f"web-{number}", f"u{number}")
            last = await fill(ledger, Node(f"node-{number}").attach(f"{number:064d}", pod))
        await run.at(last)
        await run.until(lambda: board.under_way == publishing.CONCURRENCY)
        assert run.value("status_pending") == 40
        board.open.set()
        await until_said(run, ledger, 40)
    assert board.most == publishing.CONCURRENCY


async def test_a_record_is_retried_until_the_ledger_accepts_it(
    ledger: MemoryLedger, board: Board, tmp_path: Path
) -> None:
    async with running(ledger, tmp_path / "x.db", board) as run:
        board.open.clear()
        await fill(ledger, Node().attach(BOX, POD))
        await run.until(lambda: board.under_way == 1)
        ledger.full = True
        board.open.set()
        await run.until(lambda: run.value("status_published_total") == 1)
        ledger.full = False
        await until_said(run, ledger, 1)
    assert len(board.puts) == 1


async def test_a_start_withdraws_statuses_of_missing_pods(ledger: MemoryLedger, board: Board, tmp_path: Path) -> None:
    await fill(ledger, Node().attach(BOX, POD))
    board.there = {PodName("shop", "web"), PodName("shop", "gone")}
    async with running(ledger, tmp_path / "x.db", board) as run:
        await until_said(run, ledger, 1)
        await run.until(lambda: board.withdrawn == [PodName("shop", "gone")])


async def test_a_term_starts_before_all_open_pods_are_looked_up(
    ledger: MemoryLedger, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event during the lookup of a pod sets a target that the lookup must not overwrite."""
    monkeypatch.setattr(publishing, "LOOKUP_BATCH", 2)
    url, node = f"sqlite:///{tmp_path}/x.db", Node()
    pods = {f"web-{number}": Pod("shop", f"web-{number}", f"u{number}") for number in range(5)}
    with closing(Store(url, "NODE")) as store:
        store.prepare()
        events = [event for place, pod in enumerate(pods.values()) for event in node.attach(f"{place:064d}", pod)]
        store.apply([Stored(place, event) for place, event in enumerate(events, 1)])
        leaves = [*node.detach(f"{1:064d}", pods["web-1"])]
        left = [Stored(place, event) for place, event in enumerate(leaves, len(events) + 1)]
        asked: list[Any] = []

        async def ask(work: Callable[[Store], Any]) -> Any:
            asked.append(work(store))
            if len(asked) == 3 and (changes := store.apply(left)) is not None:
                turn.changed(changes)
            return asked[-1]

        turn = publishing.StatusPublisher(board, ledger, ledger, Metrics())
        await turn.caught_up(ask)
        assert asked == [[PodName("shop", name) for name in pods], frozenset()]
        assert all(map(turn.busy, asked[0]))
        task = asyncio.create_task(turn.run())
        try:
            async with asyncio.timeout(BOUND):
                while any(map(turn.busy, asked[0])):
                    await asyncio.wait({task}, timeout=0.005)
        finally:
            task.cancel()
            await asyncio.wait({task})
    assert [len(page) for page in asked[2:]] == [2, 2, 1]
    assert sorted(status.pod.name for status in board.puts) == ["web-0", "web-2", "web-3", "web-4"]
    assert board.withdrawn == [PodName("shop", "web-1")]


async def test_presence_is_announced_while_the_sink_is_ready(
    ledger: MemoryLedger, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PRESENCE_INTERVAL", 0.0)
    async with ledger.subscribe(PUBLISHER_PRESENT) as heard, running(ledger, tmp_path / "x.db", board):
        async with asyncio.timeout(BOUND):
            await anext(heard)
            board.well = False
            with pytest.raises(TimeoutError):  # noqa: PT012  # the notices sent before run out
                async with asyncio.timeout(0.2):
                    while True:
                        await anext(heard)
    assert publishing.PRESENCE_INTERVAL < PRESENCE_LOST


async def test_a_pods_file_exists_from_attach_to_detach(ledger: MemoryLedger, tmp_path: Path) -> None:
    node, path = Node(), tmp_path / "status/shop/web.json"
    async with running(ledger, tmp_path / "x.db", FolderSink(tmp_path)) as run:
        for _ in range(2):  # the second time with the text of the first
            await fill(ledger, node.attach(BOX, POD))
            await run.until(path.exists)
            assert json.loads(path.read_text())["uid"] == "u"
            await run.until(lambda: run.value("sandboxes", phase="attached") == 1)
            await fill(ledger, node.detach(BOX, POD))
            await run.until(lambda: not path.exists())
            await run.until(lambda: run.value("sandboxes", phase="attached") == 0)
        await run.until(lambda: run.value("status_published_total") == 4)  # counted a little after the file is gone
