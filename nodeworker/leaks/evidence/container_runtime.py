"""Ask the container runtime which sandboxes it has: without its answer only a reboot proves that a sandbox ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from nodeworker.leaks.judge import Inventory

USUAL_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
)
"""The CRI sockets of containerd, CRI-O, k3s and Docker."""


class RuntimeUnknownError(Exception):
    """The runtime can't be asked; the text is one clause with the reason."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent
        """Whether the node has no runtime with a CRI, and so no sandboxes of one."""


class ContainerRuntime(Protocol):
    """The container runtime of the node."""

    async def inventory(self) -> Inventory:
        """Return what the runtime has at some moment after the call. Raises RuntimeUnknownError."""
        ...


class CriRuntime:
    """The runtime behind a CRI socket: the *configured* one, else the first of the *usual* ones that exists."""

    def __init__(self, configured: str = "", usual: Sequence[str] = USUAL_SOCKETS) -> None:
        self._configured = configured
        self._usual = tuple(usual)

    async def inventory(self) -> Inventory:
        """See ``ContainerRuntime.inventory``."""
        socket = await asyncio.to_thread(self._socket)
        # gRPC costs 4 MB: only a node with such a runtime imports it.
        from nodeworker.leaks.evidence import cri  # noqa: PLC0415

        return await cri.inventory(socket)

    def _socket(self) -> str:
        if self._configured:
            return self._configured  # it may appear later
        found = next((path for path in self._usual if os.path.exists(path)), None)
        if found is None:
            raise RuntimeUnknownError("no container runtime has its CRI socket at a usual path", absent=True)
        return found


class SharedRuntime:
    """Shares one request to a runtime among concurrent callers: a hundred reclaims cause two requests at most."""

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._running: asyncio.Task[Inventory] | None = None
        self._next: asyncio.Task[Inventory] | None = None

    async def inventory(self) -> Inventory:
        """See ``ContainerRuntime.inventory``. A running request began before the call, so the next one answers it."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
            self._next.add_done_callback(_retrieve)
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[Inventory] | None) -> Inventory:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._runtime.inventory()


def _retrieve(task: asyncio.Task[Inventory]) -> None:
    """Retrieve the exception: asyncio logs an error if all callers were cancelled and none retrieved it."""
    if not task.cancelled():
        task.exception()
