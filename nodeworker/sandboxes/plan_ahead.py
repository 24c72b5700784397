"""Plan an attach while the ledger stores its request.

The plan is sent to the ledger after the request, may be stored before it, and is applied after it. Planning only looks
things up, so it may start before the request is durable. It starts and ends in ``PlanAhead.ahead``; an attach whose
plan was not started early is planned in ``PlanAhead.ensure_recorded``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from events.fold import SandboxKey
from events.schema import AttachRequested, Data, Event, EventId
from nodeworker.deadline import Deadline
from nodeworker.journal.effect_log import confirm
from nodeworker.journal.journal import Journal, Recording
from nodeworker.planning.planner import Planner
from nodeworker.sandboxes.scheduler import Scheduler


class PlanAhead:
    """The plans that are made for attaches that were not started yet."""

    def __init__(self, journal: Journal, scheduler: Scheduler, planner: Planner) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._planner = planner
        self._planning: dict[EventId, asyncio.Task[Recording]] = {}
        """The plans in progress, by intent."""

    @contextlib.contextmanager
    def ahead(self, intent: Event, request: Data, readiness_wait: float) -> Iterator[None]:
        """Plan for *intent* during the block, if it is an attach that would start at once.

        The block appends the intent and waits for its answer; at its end, planning that no attach took is cancelled.
        *readiness_wait*: see ``ensure_recorded``. Only a new container is planned for early: the state of another may
        still change.
        """
        if isinstance(request, AttachRequested) and self._may_start(intent, request):
            self._planning[intent.id] = asyncio.create_task(
                self._record_plan_after_request(intent, request, readiness_wait)
            )
        try:
            yield
        finally:
            if (planning := self._planning.pop(intent.id, None)) is not None:
                planning.cancel()
                planning.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def ensure_recorded(
        self, intent: Event, request: AttachRequested, deadline: Deadline, readiness_wait: float
    ) -> None:
        """Return once the plan for *intent* is in the ledger. Raises RequestFailedError.

        *readiness_wait*: seconds to wait for a default network that is not ready.
        """
        planning = self._planning.pop(intent.id, None) or self._record_plan(intent, request, readiness_wait)
        await confirm(await deadline.within(planning))

    def _may_start(self, intent: Event, request: AttachRequested) -> bool:
        return (
            self._scheduler.would_start(intent.sandbox)
            and SandboxKey(intent.sandbox, request.ifname) not in self._journal.state.sandboxes
            and not self._journal.has_open_intent(intent.sandbox)
        )

    async def _record_plan_after_request(
        self, intent: Event, request: AttachRequested, readiness_wait: float
    ) -> Recording:
        await asyncio.sleep(0)  # the request is sent first
        return await self._record_plan(intent, request, readiness_wait)

    async def _record_plan(self, intent: Event, request: AttachRequested, readiness_wait: float) -> Recording:
        planned = await self._planner.plan(request, intent.sandbox, readiness_wait)
        return self._journal.record(planned, intent.sandbox, intent.id)
