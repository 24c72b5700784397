"""The devices that device plugins gave a pod: from the kubelet's API, else from its checkpoint file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events.schema import Pod
from nodeworker.planning.devices import checkpoint
from nodeworker.planning.devices.source import Devices


class Kubelet:
    """``DeviceSource`` from the kubelet at *socket*; from the file *checkpoint* if that socket does not exist."""

    def __init__(self, socket: Path, checkpoint: Path) -> None:
        self._socket = socket
        self._checkpoint = checkpoint

    async def devices(self, pod: Pod) -> Devices:
        """Return the allocated devices of *pod*. Raises DevicesUnknownError."""
        if not await asyncio.to_thread(self._socket.exists):
            return await asyncio.to_thread(checkpoint.devices, self._checkpoint, pod, self._socket)
        # gRPC costs 4 MB: only a node whose pods have devices imports it.
        from nodeworker.planning.devices import podresources  # noqa: PLC0415

        return await podresources.devices(self._socket, pod)
