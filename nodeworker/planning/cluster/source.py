"""The interface to the cluster: the cache of an API server, or a folder of manifests."""

from __future__ import annotations

from typing import Protocol

from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.resolve.objects import Nad, PodObject


class SourceUnavailableError(Exception):
    """The source doesn't know whether the object exists; the text says why."""


class Source(Protocol):
    """Looks up pods and networks. None means that the object certainly does not exist."""

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        """Return the pod *namespace*/*name*, preferably its incarnation *uid*; a later one may have replaced it.

        Raises SourceUnavailableError.
        """
        ...

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NetworkAttachmentDefinition *namespace*/*name*. Raises SourceUnavailableError."""
        ...

    @property
    def claims(self) -> DeviceSource | None:
        """The source of devices by resource claims; None: this cluster has no claims."""
        ...

    async def run(self) -> None:
        """Update the cached objects until cancelled."""
        ...

    async def ready(self, seconds: float) -> bool:
        """Return true when all objects are cached, false after *seconds*."""
        ...

    def close(self) -> None:
        """Release connections, threads and files. Call it after ``run`` has ended."""
        ...
