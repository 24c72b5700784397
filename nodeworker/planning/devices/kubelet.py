"""The devices that device plugins gave a pod, as the kubelet says: in answer to a request, else in its own file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events.schema import Pod
from nodeworker.planning.devices import checkpoint
from nodeworker.planning.devices.source import Devices


class Kubelet:
    """``DeviceSource`` from the kubelet that listens at *socket*; where there is no such file, from *checkpoint*."""

    def __init__(self, socket: Path, checkpoint: Path) -> None:
        self._socket = socket
        self._checkpoint = checkpoint

    async def devices(self, pod: Pod) -> Devices:
        """Return the devices that *pod* was given. Raises DevicesUnknownError."""
        if not await asyncio.to_thread(self._socket.exists):
            return await asyncio.to_thread(checkpoint.devices, self._checkpoint, pod, self._socket)
        # gRPC costs 4 MB, which only a node pays whose pods have devices.
        from nodeworker.planning.devices import podresources  # noqa: PLC0415

        return await podresources.devices(self._socket, pod)
