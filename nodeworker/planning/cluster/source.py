"""What the worker needs of a cluster, whatever tells it: an API server's cache, or a folder of manifests."""

from __future__ import annotations

from typing import Protocol

from nodeworker.planning.devices.source import DeviceSource
from nodeworker.planning.resolve.objects import Nad, PodObject


class SourceUnavailableError(Exception):
    """The source can't say whether the object exists; its text says why."""


class Source(Protocol):
    """Look-up of the two kinds of objects that planning needs. None means: there certainly is none."""

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        """Return the pod *namespace*/*name*, if possible the incarnation *uid*, which another may have followed.

        Raises SourceUnavailableError.
        """
        ...

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NetworkAttachmentDefinition *namespace*/*name*. Raises SourceUnavailableError."""
        ...

    @property
    def claims(self) -> DeviceSource | None:
        """Who knows of the devices that pods have by resource claims; None where there are no claims."""
        ...

    async def run(self) -> None:
        """Keep what is looked up current, until cancelled."""
        ...

    async def ready(self, seconds: float) -> bool:
        """Return true once all can be looked up at once, false if that is not so within *seconds*."""
        ...

    def close(self) -> None:
        """Let go of what the source holds. ``run`` has ended before."""
        ...
