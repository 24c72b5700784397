"""Where network-status is read, and what can go wrong in bringing it there.

Two places keep one protocol: the pod's annotation at the API server (``reconciler.status.kubernetes.annotation_sink``)
and a file beside the manifests, on a machine that has no API server (``reconciler.status.folder_sink``).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from events.schema import ErrorClass, Failure, Phase
from reconciler.status.text import PodName, PodStatus

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_POD = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


class PublishError(Exception):
    """A status was not published. *final*: nor will it be. *retry_after*: seconds that were asked for."""

    def __init__(
        self, error_class: ErrorClass, message: str, *, final: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        # No runtime is told of it, so there is no CNI code.
        self.failure = Failure(error_class=error_class, phase=Phase.PUBLISH, message=message, code=0)
        self.final = final
        self.retry_after = retry_after


class Seen(NamedTuple):
    """What a place says of a pod."""

    pod: PodName
    uid: str
    text: str | None
    """The status; None: it says nothing."""
    gone: bool = False
    """The pod is no more."""


LISTED = Seen(PodName("", ""), "", None)
"""Comes once all that there is has been told of."""


class StatusSink(Protocol):
    """A place where people and programs read what a pod is attached to. Every call may be repeated."""

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """Make the place say *status*; return False when it did already.

        *before* is what it says as far as the ledger knows. Raises PublishError.
        """
        ...

    async def withdraw(self, pod: PodName) -> bool:
        """Let the place forget *pod*, which is attached to nothing; return False when there is nothing to do.

        Raises PublishError.
        """
        ...

    async def pods(self) -> set[PodName]:
        """Return the pods that it would have to forget if they were attached to nothing."""
        ...

    def seen(self) -> AsyncGenerator[Seen, None]:
        """Yield what the place says of every pod, then ``LISTED``, then what changes there, without end."""
        ...

    def listed(self) -> AsyncGenerator[Seen, None]:
        """Yield what the place says of every pod. Raises PublishError."""
        ...

    async def read(self, pod: PodName) -> Seen | None:
        """Return what the place says of *pod*; None: there is no such pod, as far as it knows. Raises PublishError."""
        ...

    async def ready(self) -> bool:
        """Return whether it is likely that a status can be published now. It is asked every second."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def require_pod_name(pod: PodName) -> None:
    """Raise PublishError for a name that no pod can have: it becomes part of a path."""
    if not (_fits(_NAMESPACE, pod.namespace, 63) and _fits(_POD, pod.name, 253)):
        raise PublishError(
            ErrorClass.INVALID_REQUEST,
            f"pod {pod}: that is no name in the sense of RFC 1123, so its network-status is not published; "
            f"the runtime has to correct CNI_ARGS",
            final=True,
        )


def _fits(pattern: re.Pattern[str], name: str, longest: int) -> bool:
    return len(name) <= longest and pattern.fullmatch(name) is not None
