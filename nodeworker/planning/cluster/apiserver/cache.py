"""A cache of the objects of one kind; a caller can wait until an object arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Generic

from nodeworker.planning.cluster.apiserver.decode import Key, ObjectT, key_of


class Cache(Generic[ObjectT]):
    """Objects by namespace and name. Not thread-safe."""

    def __init__(self, objects: Iterable[ObjectT] = ()) -> None:
        self._objects = {key_of(cached): cached for cached in objects}
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self.changed = asyncio.Event()
        """Set on every change; the reader clears it."""

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> ObjectT | None:
        """Return the object; None: it is not cached."""
        return self._objects.get(key)

    def objects(self) -> tuple[ObjectT, ...]:
        """Return a copy of all objects."""
        return tuple(self._objects.values())

    def put(self, new: ObjectT) -> None:
        """Add or replace *new*."""
        key = key_of(new)
        if self._objects.get(key) == new:
            return
        self._objects[key] = new
        self.changed.set()
        self._wake(key)

    def drop(self, key: Key) -> None:
        """Remove the object."""
        if self._objects.pop(key, None) is not None:
            self.changed.set()

    def replace(self, objects: dict[Key, ObjectT]) -> None:
        """Replace all objects by *objects*."""
        if objects == self._objects:
            return
        self._objects = objects
        self.changed.set()
        for key in [key for key in self._waiting if key in objects]:
            self._wake(key)

    async def arrival(self, key: Key) -> None:
        """Return when the object is put, or when ``release`` ends the wait."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(future)
        try:
            await future
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def release(self) -> None:
        """End all waits: no more objects will arrive."""
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: Key) -> None:
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)
