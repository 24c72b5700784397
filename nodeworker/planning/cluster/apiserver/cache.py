"""The objects of one kind that are known, for look-ups, and for those who wait until one is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Generic

from nodeworker.planning.cluster.apiserver.decode import Key, ObjectT, key_of


class Cache(Generic[ObjectT]):
    """Objects by namespace and name. Not for threads."""

    def __init__(self, objects: Iterable[ObjectT] = ()) -> None:
        self._objects = {key_of(kept): kept for kept in objects}
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self.changed = asyncio.Event()
        """Set whenever something is not as it was; whoever takes note clears it."""

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> ObjectT | None:
        """Return the object, None if it is not known."""
        return self._objects.get(key)

    def objects(self) -> tuple[ObjectT, ...]:
        """Return a copy of what is known now."""
        return tuple(self._objects.values())

    def put(self, new: ObjectT) -> None:
        """Know *new* from now on."""
        key = key_of(new)
        if self._objects.get(key) == new:
            return
        self._objects[key] = new
        self.changed.set()
        self._wake(key)

    def drop(self, key: Key) -> None:
        """Forget the object."""
        if self._objects.pop(key, None) is not None:
            self.changed.set()

    def replace(self, objects: dict[Key, ObjectT]) -> None:
        """Know *objects* from now on, and nothing else."""
        if objects == self._objects:
            return
        self._objects = objects
        self.changed.set()
        for key in [key for key in self._waiting if key in objects]:
            self._wake(key)

    async def arrival(self, key: Key) -> None:
        """Return when the object was put, or when ``release`` says that there is nothing to wait for."""
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
        """Wake all who wait: nobody would tell them."""
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: Key) -> None:
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)
