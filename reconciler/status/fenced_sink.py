"""Write statuses only while no other reconciler can be the leader."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from events.ledger.ledger import ConflictError, LedgerUnavailableError
from events.schema import ErrorClass
from reconciler.projection.fold.published import PodName
from reconciler.status.sink import ObservedStatus, PublishError, StatusSink
from reconciler.status.text import PodStatus


class FencedSink:
    """A ``StatusSink`` for one term: calls *confirm* before each write (see ``reconciler.follow.term``).

    *confirm* raises ConflictError or LedgerUnavailableError unless this reconciler is certainly the leader.
    """

    def __init__(self, sink: StatusSink, confirm: Callable[[], Awaitable[None]]) -> None:
        self._sink = sink
        self._confirm = confirm

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """See ``StatusSink.put``."""
        await self._require_leadership(PodName(status.pod.namespace, status.pod.name))
        return await self._sink.put(status, before)

    async def withdraw(self, pod: PodName) -> bool:
        """See ``StatusSink.withdraw``."""
        await self._require_leadership(pod)
        return await self._sink.withdraw(pod)

    async def withdrawable(self) -> set[PodName]:
        """See ``StatusSink.withdrawable``."""
        return await self._sink.withdrawable()

    def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.watch``."""
        return self._sink.watch()

    def read_all(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.read_all``."""
        return self._sink.read_all()

    async def read(self, pod: PodName) -> ObservedStatus | None:
        """See ``StatusSink.read``."""
        return await self._sink.read(pod)

    async def ready(self) -> bool:
        """See ``StatusSink.ready``."""
        return await self._sink.ready()

    async def close(self) -> None:
        """Do nothing: the sink outlives the term."""

    async def _require_leadership(self, pod: PodName) -> None:
        try:
            await self._confirm()
        except (ConflictError, LedgerUnavailableError) as error:
            raise PublishError(
                ErrorClass.LEDGER_UNAVAILABLE,
                f"pod {pod}: its network-status is not published until this reconciler has confirmed that it is the "
                f"active one: {error}",
            ) from error
