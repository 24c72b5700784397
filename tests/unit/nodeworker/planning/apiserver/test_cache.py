"""Callers that wait for an object: each is woken, none is forgotten."""

from __future__ import annotations

import asyncio

from nodeworker.planning.cluster.apiserver.cache import Cache
from nodeworker.planning.cluster.apiserver.decode import Key
from nodeworker.planning.resolve.objects import Nad

A = Nad("default", "a", "{}")
KEY = Key("default", "a")


async def waiting(cache: Cache[Nad], count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(cache.arrival(KEY)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_waiters_wake_only_for_their_object() -> None:
    cache: Cache[Nad] = Cache()
    tasks = await waiting(cache, 3)
    cache.put(Nad("default", "b"))
    cache.drop(Key("default", "b"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    cache.put(A)
    await asyncio.gather(*tasks)


async def test_list_and_end_of_watch_wake_waiters() -> None:
    cache: Cache[Nad] = Cache()
    tasks = await waiting(cache, 2)
    cache.replace({KEY: A})
    await asyncio.gather(*tasks)
    tasks = await waiting(cache, 2)
    cache.release()
    await asyncio.gather(*tasks)


async def test_cancelled_waiter_is_removed() -> None:
    cache: Cache[Nad] = Cache()
    first, second = await waiting(cache, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    cache.put(A)
    await second
    assert cache._waiting == {}  # pyright: ignore[reportPrivateUsage]


def test_unchanged_object_is_no_change() -> None:
    cache = Cache([A])
    cache.put(Nad("default", "a", "{}"))
    cache.replace({KEY: Nad("default", "a", "{}")})
    cache.drop(Key("default", "b"))
    assert not cache.changed.is_set()
    cache.put(Nad("default", "a", '{"type": "bridge"}'))
    assert cache.changed.is_set()
    cache.changed.clear()
    cache.drop(KEY)
    assert cache.changed.is_set()
    assert len(cache) == 0
