"""Write statuses only while it is certain that no other reconciler does."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from events.ledger.ledger import ConflictError, LedgerUnavailableError
from events.schema import ErrorClass
from reconciler.follow.leadership import Term
from reconciler.status.sink import PublishError, Seen, StatusSink
from reconciler.status.text import PodName, PodStatus


class FencedSink:
    """A ``StatusSink`` for one turn: see ``reconciler.follow.leadership`` about what has no fence."""

    def __init__(self, publisher: StatusSink, turn: Term) -> None:
        self._publisher = publisher
        self._turn = turn

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """See ``StatusSink.put``."""
        await self._confirm(PodName(status.pod.namespace, status.pod.name))
        return await self._publisher.put(status, before)

    async def withdraw(self, pod: PodName) -> bool:
        """See ``StatusSink.withdraw``."""
        await self._confirm(pod)
        return await self._publisher.withdraw(pod)

    async def pods(self) -> set[PodName]:
        """See ``StatusSink.pods``."""
        return await self._publisher.pods()

    def seen(self) -> AsyncGenerator[Seen, None]:
        """See ``StatusSink.seen``."""
        return self._publisher.seen()

    def listed(self) -> AsyncGenerator[Seen, None]:
        """See ``StatusSink.listed``."""
        return self._publisher.listed()

    async def read(self, pod: PodName) -> Seen | None:
        """See ``StatusSink.read``."""
        return await self._publisher.read(pod)

    async def ready(self) -> bool:
        """See ``StatusSink.ready``."""
        return await self._publisher.ready()

    async def close(self) -> None:
        """Do nothing: the publisher outlives the turn."""

    async def _confirm(self, pod: PodName) -> None:
        try:
            await self._turn.confirm()
        except (ConflictError, LedgerUnavailableError) as error:
            raise PublishError(
                ErrorClass.LEDGER_UNAVAILABLE,
                f"pod {pod}: its network-status is not published as long as it is not certain that this reconciler is "
                f"the active one: {error}",
            ) from error
