"""What the worker needs of a cluster, whatever tells it: an API server's cache, or a folder of manifests."""

from __future__ import annotations

from typing import Protocol

from nodeworker.resolve.objects import Nad, PodObject


class SourceUnavailableError(Exception):
    """The source can't say whether the object exists; its text says why."""


class Source(Protocol):
    """Look-up of the two kinds of objects that planning needs. None means: there certainly is none."""

    async def pod(self, namespace: str, name: str) -> PodObject | None:
        """Return the pod *namespace*/*name*. Raises SourceUnavailableError."""
        ...

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NetworkAttachmentDefinition *namespace*/*name*. Raises SourceUnavailableError."""
        ...
