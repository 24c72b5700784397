"""What the container runtime says it has: without its word nothing is taken for abandoned but what a reboot ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from nodeworker.leaks.judge import Known

USUAL_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
)
"""Of containerd, CRI-O, and what k3s and Docker bring along."""


class RuntimeUnknownError(Exception):
    """The runtime can't be asked; the text is one clause that says why."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent
        """True: there is none with a CRI on this node, so there are no sandboxes of one."""


class ContainerRuntime(Protocol):
    """Whoever runs the pods of the node."""

    async def known(self) -> Known:
        """Return what it has at a moment after the call. Raises RuntimeUnknownError."""
        ...


class CriRuntime:
    """The runtime behind a CRI socket: the *configured* one, else the first of the *usual* ones that is there."""

    def __init__(self, configured: str = "", usual: Sequence[str] = USUAL_SOCKETS) -> None:
        self._configured = configured
        self._usual = tuple(usual)

    async def known(self) -> Known:
        """See ``ContainerRuntime.known``."""
        socket = await asyncio.to_thread(self._socket)
        # gRPC costs 4 MB, which only a node pays that has such a runtime.
        from nodeworker.leaks.evidence import cri  # noqa: PLC0415

        return await cri.known(socket)

    def _socket(self) -> str:
        if self._configured:
            return self._configured  # if it is not there, it is expected to come
        found = next((path for path in self._usual if os.path.exists(path)), None)
        if found is None:
            raise RuntimeUnknownError("no container runtime has its CRI socket in a usual place", absent=True)
        return found


class SharedRuntime:
    """Asks a runtime once for all who want to know at the same time: a hundred reclaims are no hundred questions."""

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._asking: asyncio.Task[Known] | None = None
        self._next: asyncio.Task[Known] | None = None

    async def known(self) -> Known:
        """See ``ContainerRuntime.known``: a question that is under way was asked too early, the next one serves all."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._asking))
            self._next.add_done_callback(_heard)
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[Known] | None) -> Known:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._runtime.known()


def _heard(task: asyncio.Task[Known]) -> None:
    """Whoever asked has lost interest, maybe; that the question failed is no news then."""
    if not task.cancelled():
        task.exception()
