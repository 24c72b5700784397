"""Delay the answer to a runtime until the pod's network-status is published: programs in the pod may read it.

The worker publishes nothing itself. The reconciler sends the node a notice of each status that it has published or
could not publish, and every second a notice of its presence. Without presence for ``PRESENCE_LOST`` seconds no answer
waits. The wait is bounded, because the pod is attached and its status will follow.
"""

from __future__ import annotations

import asyncio

import structlog

from events import subjects
from events.fold import Sandbox
from events.ledger.ledger import LedgerUnavailableError
from events.ledger.notices import PRESENCE_LOST, PUBLISHER_PRESENT, Notice, Notices
from events.schema import EventId, MalformedEventError, NodeName, StatusPublished, StatusPublishFailed, decode
from nodeworker.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

_MARGIN = 0.1
"""Seconds before the runtime's deadline at which the wait ends, so that the answer still arrives."""
_RETRY = 1.0


class StatusWait:
    """The answers that wait for a status, each for at most *seconds*; 0: none waits."""

    def __init__(self, notices: Notices, node: NodeName, seconds: float, metrics: WorkerMetrics) -> None:
        self._notices = notices
        types = (StatusPublished.__name__, StatusPublishFailed.__name__)
        self._subjects = (PUBLISHER_PRESENT, *(subjects.down(node, event_type) for event_type in types))
        self._seconds = seconds
        self._metrics = metrics
        self._expected: dict[EventId, asyncio.Future[str]] = {}
        self._present_at = float("-inf")

    async def run(self) -> None:
        """Listen to the reconciler, without end unless *seconds* is 0."""
        while self._seconds:
            try:
                async with self._notices.subscribe(*self._subjects) as heard:
                    async for notice in heard:
                        self._take(notice)
            except LedgerUnavailableError as error:
                log.info("publisher_not_heard", error=str(error), retry_in=_RETRY)
                await asyncio.sleep(_RETRY)

    def expect(self, sandbox: Sandbox) -> None:
        """Expect the status of *sandbox*, if its answer is to wait for that.

        Call it before the sandbox's outcome is recorded: the status may follow at once. ``wait`` or ``forget`` is next.
        """
        if sandbox.plan is not None and sandbox.plan.publish and self._seconds and self._publisher_present:
            self._expected[sandbox.intent] = asyncio.get_running_loop().create_future()

    def expects(self, intent: EventId) -> bool:
        """Return whether the answer to *intent* waits for its status."""
        return intent in self._expected

    def forget(self, intent: EventId) -> None:
        """Expect no status for *intent* any more."""
        self._expected.pop(intent, None)

    async def wait(self, intent: EventId, seconds_left: float) -> None:
        """Return once the status is published, its publication failed, or the wait timed out.

        *seconds_left*: until the runtime stops waiting for the answer.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(min(self._seconds, max(0.0, seconds_left - _MARGIN))):
                result = await self._expected[intent]
        except TimeoutError:
            result = "timeout"
            # The wait timed out: the answer goes out without the status, which will follow.
            log.warning("status_not_awaited", intent=intent, after=round(loop.time() - started, 3))
        finally:
            self.forget(intent)
        self._metrics.status_waited(result, loop.time() - started)

    @property
    def _publisher_present(self) -> bool:
        return asyncio.get_running_loop().time() - self._present_at < PRESENCE_LOST

    def _take(self, notice: Notice) -> None:
        if notice.subject == PUBLISHER_PRESENT:
            # A node can store an event with this subject as the reply subject. The NATS server then sends its
            # acknowledgement here. An acknowledgement has a payload; the reconciler's notice has none.
            if notice.payload:
                return
            self._present_at = asyncio.get_running_loop().time()
            return
        try:
            event = decode(notice.payload)
        except MalformedEventError as error:
            log.warning("notice_malformed", subject=notice.subject, error=str(error))
            return
        match event.data:
            case StatusPublished():
                result = "published"
            case StatusPublishFailed():
                result = "failed"
            case _:
                return
        expected = self._expected.get(event.cause)
        if expected is not None and not expected.done():
            expected.set_result(result)
