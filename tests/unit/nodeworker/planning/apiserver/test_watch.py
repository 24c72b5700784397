"""A watch with answers that a real API server can't be made to give."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nodeworker.planning.cluster.apiserver import api as api_module
from nodeworker.planning.cluster.apiserver.api import Api, ApiRequest, GarbledError, UnreachableError
from nodeworker.planning.cluster.apiserver.watch import WatchTimings
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.objects import Nad
from tests.support.kube.fake_api import Reply, Request, bookmark, event, fake_api, listed, network, silence
from tests.support.kube.source_harness import running, visitor
from tests.support.waiting import until

ASK = ApiRequest("list", "things", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions", "application/json")
FIRST, MOST = 0.04, 0.3


def gaps(requests: list[Request]) -> list[float]:
    return [later.at - earlier.at for earlier, later in itertools.pairwise(requests)]


def in_turn(*behaviours: Any) -> Any:
    """Return a behaviour that uses each of *behaviours* once, then the last one for ever."""
    left = list(behaviours)

    async def behave(request: Request, reply: Reply) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, reply)

    return behave


def listing(*names: str, version: str = "1") -> Any:
    async def behave(_: Request, reply: Reply) -> None:
        await reply.json(listed(*(network(name) for name in names), version=version))

    return behave


def sending_events(*events: dict[str, Any]) -> Any:
    async def behave(_: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.events(*events)
        await reply.end()

    return behave


def sending(content: bytes) -> Any:
    async def behave(_: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.chunk(content)
        await reply.end()

    return behave


@pytest.mark.parametrize("events", [(), (bookmark("7"),)], ids=["empty", "bookmark"])
async def test_watches_that_end_at_once_never_become_a_hot_loop(tmp_path: Path, events: Any) -> None:
    timings = WatchTimings(first=FIRST, most=MOST, steady=60.0)
    async with (
        fake_api(on_watch=sending_events(*events)) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path, timings=timings, synced=False),
    ):
        asked = await fake.until_asked("watch", 7)
    least = [0.5 * min(FIRST * 2**times, MOST) for times in range(6)]
    assert all(gap >= bound for gap, bound in zip(gaps(asked), least, strict=False))
    assert len(fake.asked("list")) == 1


async def test_ended_watch_continues_at_the_last_version(tmp_path: Path) -> None:
    watch = in_turn(
        sending_events(event("ADDED", network("a", version="5"))),
        sending_events(bookmark("9")),
        silence,
    )
    async with fake_api(on_watch=watch) as fake, running(visitor(fake, tmp_path), "any", tmp_path, synced=False):
        asked = await fake.until_asked("watch", 3)
    assert [request.query["resourceVersion"] for request in asked] == ["1", "5", "9"]
    assert all(request.query["allowWatchBookmarks"] == "true" for request in asked)
    assert all(150 <= int(request.query["timeoutSeconds"]) <= 300 for request in asked)


async def test_broken_line_ends_one_watch_only(tmp_path: Path) -> None:
    async def torn(_: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.events(event("ADDED", network("a", version="5")))
        await reply.chunk(b'{"type": "ADD')
        reply.hang_up()

    async with (
        fake_api(on_watch=in_turn(torn, silence)) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path, synced=False) as source,
    ):
        asked = await fake.until_asked("watch", 2)
        pods, nads = source.watches
        await until(lambda: source.connected)
        assert (pods.errors, nads.errors, nads.relists) == (0, 1, 0)
        assert await source.nad("default", "a") == Nad("default", "a", "{}")
    assert [request.query["resourceVersion"] for request in asked] == ["1", "5"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"type": "ADD',
        b"no json\n",
        b"[]\n",
        b'{"type": "ADDED", "object": {"metadata": 5}}\n',
        b'{"type": "ADDED", "object": "\xff"}\n',
        b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n",
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd is down"}}\n',
        b'{"type": "ERROR", "object": []}\n',
    ],
    ids=["torn", "garbage", "list", "metadata", "latin", "deep", "error", "odd-error"],
)
async def test_garbage_causes_a_relist(tmp_path: Path, content: bytes) -> None:
    with capture_logs() as logs:
        async with (
            fake_api(
                on_list=in_turn(listing("old"), listing("new", version="8")),
                on_watch=in_turn(sending(content), silence),
            ) as fake,
            running(visitor(fake, tmp_path), "any", tmp_path, synced=False) as source,
        ):
            asked = await fake.until_asked("watch", 2)
            pods, nads = source.watches
            await until(lambda: source.connected)
            assert (pods.errors, nads.errors, nads.relists) == (0, 1, 1)
            assert await source.nad("default", "new") is not None
            assert await source.nad("default", "old") is None
    assert asked[-1].query["resourceVersion"] == "8"
    assert [log["log_level"] for log in logs if log["event"] == "cluster_watch_failed"] == ["warning"]
    assert [log["resource"] for log in logs if log["event"] == "cluster_watch_recovered"] == [nads.resource]


async def gone(_: Request, reply: Reply) -> None:
    await reply.json({"kind": "Status", "reason": "Expired", "message": "too old", "code": 410}, 410)


GONE = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})


@pytest.mark.parametrize("expired", [sending_events(GONE), gone], ids=["event", "status"])
async def test_expired_version_causes_a_relist(tmp_path: Path, expired: Any) -> None:
    async with (
        fake_api(
            on_list=in_turn(listing("old"), listing("new", version="8")), on_watch=in_turn(expired, silence)
        ) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path, synced=False) as source,
    ):
        await fake.until_asked("watch", 2)
        _, nads = source.watches
        assert (nads.errors, nads.relists) == (0, 1)
        assert await source.nad("default", "new") is not None


async def test_storm_of_expired_versions_is_bounded(tmp_path: Path) -> None:
    timings = WatchTimings(first=FIRST, most=MOST, steady=60.0)
    async with (
        fake_api(on_watch=gone) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path, timings=timings, synced=False),
    ):
        asked = await fake.until_asked("list", 6)
    least = [0.5 * min(FIRST * 2**times, MOST) for times in range(5)]
    assert all(gap >= bound for gap, bound in zip(gaps(asked), least, strict=False))


async def test_expired_page_token_restarts_the_list(tmp_path: Path) -> None:
    async def first_page(_: Request, reply: Reply) -> None:
        await reply.json(listed(network("a"), following="token"))

    async with (
        fake_api(on_list=in_turn(first_page, gone, listing("b", version="3"))) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path) as source,
    ):
        lists = fake.asked("list")
        assert [request.query.get("continue", "") for request in lists] == ["", "token", ""]
        assert "resourceVersion" not in lists[1].query
        assert await source.nad("default", "b") is not None
        assert await source.nad("default", "a") is None


async def test_too_large_page_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_BODY", 2000)

    async def of_three(request: Request, reply: Reply) -> None:
        limit, begin = int(request.query["limit"]), int(request.query.get("continue") or 0)
        page = [network(f"n{index}", "x" * 600) for index in range(3)][begin : begin + limit]
        await reply.json(listed(*page, following=str(begin + limit) if begin + limit < 3 else ""))

    async with fake_api(on_list=of_three) as fake, running(visitor(fake, tmp_path), "any", tmp_path) as source:
        assert len(source.watches[1]) == 3
        assert [int(request.query["limit"]) for request in fake.asked("list")] == [100, 12, 1, 1, 1]


def unreadable(name: str, version: str = "1") -> dict[str, Any]:
    manifest = network(name, version=version)
    manifest["metadata"]["annotations"] = []
    return manifest


async def test_unreadable_object_stops_no_other(tmp_path: Path) -> None:
    async def with_bad(_: Request, reply: Reply) -> None:
        await reply.json(listed(network("a"), unreadable("bad"), network("c")))

    async def bad(_: Request, reply: Reply) -> None:
        await reply.json(unreadable("bad"))

    async def turning_bad(_: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.events(event("MODIFIED", unreadable("a", "2")), event("ADDED", network("d", version="3")))
        await reply.hold()

    with capture_logs() as logs:
        async with (
            fake_api(on_list=with_bad, on_watch=turning_bad, on_get=bad) as fake,
            running(visitor(fake, tmp_path), "any", tmp_path) as source,
        ):
            _, nads = source.watches
            await until(lambda: any(log.get("name") == "a" for log in logs))
            assert await source.nad("default", "c") is not None
            assert await source.nad("default", "d") is not None
            with pytest.raises(
                SourceUnavailableError, match=r"network-attachment-definitions default/bad can't be read"
            ):
                await source.nad("default", "bad")
            assert (len(nads), nads.errors, nads.relists) == (2, 0, 0)
    unusable = [log for log in logs if log["event"] == "cluster_object_unusable"]
    assert [(log["namespace"], log["name"]) for log in unusable] == [("default", "bad"), ("default", "a")]


async def test_unknown_events_are_skipped(tmp_path: Path) -> None:
    watch = in_turn(sending_events(event("RENAMED", network("a", version="5"))), silence)
    async with fake_api(on_watch=watch) as fake, running(visitor(fake, tmp_path), "any", tmp_path) as source:
        asked = await fake.until_asked("watch", 2)
        assert asked[-1].query["resourceVersion"] == "5"
        assert source.watches[1].errors == 0


async def test_busy_server_gets_the_requested_delay(tmp_path: Path) -> None:
    async def busy(_: Request, reply: Reply) -> None:
        await reply.json({"kind": "Status", "code": 429, "message": "later"}, 429, "retry-after: 1\r\n")

    timings = WatchTimings(first=0.01, most=5.0)
    async with (
        fake_api(on_list=in_turn(busy, listing())) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path, timings=timings, synced=False),
    ):
        asked = await fake.until_asked("list", 2)
    assert gaps(asked)[0] >= 1.0


async def test_closed_idle_connection_is_replaced(tmp_path: Path) -> None:
    async def once(_: Request, reply: Reply) -> None:
        await reply.json(network("a"))
        reply.hang_up()

    async def keep(_: Request, reply: Reply) -> None:
        await reply.json(network("a"))

    async with fake_api(on_list=in_turn(keep, once, keep)) as fake:
        client = Api(visitor(fake, tmp_path), "test")
        for _ in range(3):
            assert b'"a"' in await client.get(ASK)
        assert fake.connections == 2
        client.close()


async def test_connection_close_is_respected(tmp_path: Path) -> None:
    async def last(_: Request, reply: Reply) -> None:
        await reply.json(network("a"), headers="connection: close\r\n")

    async with fake_api(on_list=last) as fake:
        client = Api(visitor(fake, tmp_path), "test")
        for _ in range(2):
            assert b'"a"' in await client.get(ASK)
        assert fake.connections == 2
        client.close()


async def drip(_: Request, reply: Reply) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000:
        await reply.raw(bytes([byte]))
        await asyncio.sleep(0.01)


async def half(_: Request, reply: Reply) -> None:
    await reply.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}")
    reply.hang_up()


async def no_http(_: Request, reply: Reply) -> None:
    await reply.raw(b"220 smtp.example.org ESMTP\r\n\r\n")
    reply.hang_up()


async def endless_head(_: Request, reply: Reply) -> None:
    await reply.raw(b"HTTP/1.1 200 OK\r\na: " + b"a" * 200_000)
    reply.hang_up()


async def nothing(_: Request, reply: Reply) -> None:
    reply.hang_up()


@pytest.mark.parametrize("behaviour", [drip, half, no_http, endless_head, nothing, silence])
async def test_invalid_answer_is_an_error_in_time(tmp_path: Path, behaviour: Any) -> None:
    async with fake_api(on_list=behaviour) as fake:
        client = Api(visitor(fake, tmp_path), "test")
        with pytest.raises(UnreachableError, match=f"{fake.url} can't be reached: "):
            await client.get(ASK, seconds=0.3)
        client.close()


async def drain(client: Api, seconds: float) -> None:
    async with client.stream(ASK, seconds) as lines:
        async for _ in lines:
            pass


async def test_line_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_LINE", 1000)
    async with fake_api(on_list=sending(b"x" * 10_000)) as fake:
        client = Api(visitor(fake, tmp_path), "test")
        with pytest.raises(GarbledError, match="line of more than 1000 bytes"):
            await drain(client, 5.0)


async def test_watch_past_its_timeout_is_ended(tmp_path: Path) -> None:
    async with fake_api(on_list=silence) as fake:
        client = Api(visitor(fake, tmp_path), "test")
        with pytest.raises(UnreachableError, match="timeout while reading an answer"):
            await drain(client, 0.1)


@pytest.mark.parametrize("status", [404, 500, 301, 200])
async def test_proxy_404_is_not_a_missing_object(tmp_path: Path, status: int) -> None:
    async def proxy(_: Request, reply: Reply) -> None:
        await reply.text("<html>not here</html>", status)

    async with fake_api(on_get=proxy) as fake, running(visitor(fake, tmp_path), "any", tmp_path) as source:
        with pytest.raises(SourceUnavailableError):
            await source.nad("default", "a")


async def test_answer_for_another_object_is_an_error(tmp_path: Path) -> None:
    async def another(_: Request, reply: Reply) -> None:
        await reply.json(network("b"))

    async with fake_api(on_get=another) as fake, running(visitor(fake, tmp_path), "any", tmp_path) as source:
        with pytest.raises(SourceUnavailableError, match="default/b to a request for default/a"):
            await source.nad("default", "a")


async def test_known_objects_cost_no_request(tmp_path: Path) -> None:
    async with (
        fake_api(on_list=listing("a")) as fake,
        running(visitor(fake, tmp_path), "any", tmp_path) as source,
    ):
        before = len(fake.requests)
        for _ in range(100):
            assert await source.nad("default", "a") is not None
        assert len(fake.requests) == before
