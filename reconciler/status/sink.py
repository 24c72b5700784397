"""The interface of the places where network-statuses are read, and the error of a failed publication.

Two implementations pass one contract: the pod's annotation at the API server
(``reconciler.status.kubernetes.annotation_sink``), and on a machine without an API server a file beside the manifests
(``reconciler.status.folder_sink``).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from events.schema import ErrorClass, Failure, Phase
from reconciler.projection.fold.published import PodName
from reconciler.status.text import PodStatus

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_POD = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


class PublishError(Exception):
    """A status was not published. *final*: a retry can't succeed. *retry_after*: seconds that the server asked for."""

    def __init__(
        self, error_class: ErrorClass, message: str, *, final: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        # No runtime gets this error, so there is no CNI code.
        self.failure = Failure(error_class=error_class, phase=Phase.PUBLISH, message=message, code=0)
        self.final = final
        self.retry_after = retry_after


class ObservedStatus(NamedTuple):
    """The network-status of a pod as a sink has it."""

    pod: PodName
    uid: str
    text: str | None
    """The status; None: there is none."""
    deleted: bool = False
    """The pod was deleted."""


LISTED = ObservedStatus(PodName("", ""), "", None)
"""Marks the end of the initial list in ``StatusSink.watch``."""


class StatusSink(Protocol):
    """A place where people and programs read the network-status of pods. Every call can be repeated."""

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """Write *status*; return False if it was there already.

        *before* is the present status as far as the ledger knows. Raises PublishError.
        """
        ...

    async def withdraw(self, pod: PodName) -> bool:
        """Remove the status of *pod*, which has no attachments; return False if there is nothing to remove.

        Raises PublishError.
        """
        ...

    async def withdrawable(self) -> set[PodName]:
        """Return the pods with a status that ``withdraw`` would remove."""
        ...

    def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        """Yield the status of every pod, then ``LISTED``, then each change. Runs until closed."""
        ...

    def read_all(self) -> AsyncGenerator[ObservedStatus, None]:
        """Yield the status of every pod once. Raises PublishError."""
        ...

    async def read(self, pod: PodName) -> ObservedStatus | None:
        """Return the status of *pod*; None: the sink knows no such pod. Raises PublishError."""
        ...

    async def ready(self) -> bool:
        """Return whether a publication would probably succeed now. Called every second."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def require_pod_name(pod: PodName) -> None:
    """Raise PublishError for an invalid pod name (RFC 1123): the name becomes part of a path."""
    if not (_fits(_NAMESPACE, pod.namespace, 63) and _fits(_POD, pod.name, 253)):
        raise PublishError(
            ErrorClass.INVALID_REQUEST,
            f"pod {pod}: the name is invalid (RFC 1123), so its network-status is not published; "
            f"correct the runtime's CNI_ARGS",
            final=True,
        )


def _fits(pattern: re.Pattern[str], name: str, longest: int) -> bool:
    return len(name) <= longest and pattern.fullmatch(name) is not None
