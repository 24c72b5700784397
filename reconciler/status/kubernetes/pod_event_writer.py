"""Write the Events of ``reconciler.status.kubernetes.pod_events`` to the API server.

An Event is a notification, and the ledger has the history. So the writer keeps nothing for later: it counts and drops
an Event that the API server refuses, and a restarted reconciler writes no old Events. RBAC: ``create`` and ``patch`` on
``events``.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aiohttp
import structlog
from kubernetes_asyncio import client

from reconciler.follow.listeners import Query
from reconciler.metrics import Metrics
from reconciler.projection.fold.batch import Changes
from reconciler.status.kubernetes.pod_events import PodEvent, Throttle, pod_events

log = structlog.get_logger(__name__)

COMPONENT = "plumbline"
_QUEUE_SIZE = 1000
"""Maximum number of Events in the queue."""
_TIMEOUT = 5.0
_EXISTS = 409
_UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)


class _Queued(NamedTuple):
    event: PodEvent
    times: int
    at: str


class PodEventWriter:
    """Writes Kubernetes Events about attachments. A ``reconciler.follow.listeners.Listener``."""

    def __init__(self, api: client.ApiClient, metrics: Metrics) -> None:
        # Any: the library has no types for raw responses and content types.
        self._events: Any = client.CoreV1Api(api)
        self._metrics = metrics
        self._throttle = Throttle()
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue(_QUEUE_SIZE)
        self._last_error = ""

    async def caught_up(self, query: Query) -> None:
        """Do nothing: earlier events are not news."""

    def changed(self, changes: Changes) -> None:
        """Queue the Events of a batch, within the rate limit."""
        for event, sandbox in changes.events:
            for queued in pod_events(event, sandbox):
                self.write(queued)

    def write(self, event: PodEvent) -> None:
        """Queue *event*, within the rate limit."""
        times, admitted = self._throttle.admit(event, time.monotonic())
        if not admitted or self._queue.full():
            self._metrics.pod_events_dropped.inc()
        else:
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._queue.put_nowait(_Queued(event, times, at))

    async def run(self) -> None:
        """Write queued Events until cancelled."""
        while True:
            await self._send(await self._queue.get())
            self._queue.task_done()

    async def written(self) -> None:
        """Return when the queue is empty."""
        await self._queue.join()

    async def _send(self, queued: _Queued) -> None:
        try:
            error_text = await self._create(queued)
        except _UNREACHABLE as error:
            error_text = str(error) or type(error).__name__
        if error_text:
            self._metrics.pod_events_dropped.inc()
            if error_text != self._last_error:
                log.warning("pod_event_not_written", pod=str(queued.event.pod), error=error_text)
        else:
            self._metrics.pod_events_written.inc()
        self._last_error = error_text

    async def _create(self, queued: _Queued) -> str:
        """Write one Event; return the reason of a refusal, else an empty text. A repetition increments the Event's
        count."""
        namespace = queued.event.pod.namespace
        plain = {"_preload_content": False, "_request_timeout": _TIMEOUT}
        if queued.times == 1:
            status, text = await _read_answer(
                await self._events.create_namespaced_event(namespace, _body(queued), **plain)
            )
            if status != _EXISTS:
                return text
        body = {"count": max(2, queued.times), "lastTimestamp": queued.at}
        kind = "application/merge-patch+json"
        answer = await self._events.patch_namespaced_event(
            queued.event.name, namespace, body, _content_type=kind, **plain
        )
        _, text = await _read_answer(answer)
        return text


async def _read_answer(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    """Return the status code, and the body of a refusal."""
    content = await answer.read()
    return answer.status, "" if answer.status < 300 else content[:300].decode(errors="replace")


def _body(queued: _Queued) -> dict[str, Any]:
    """Return the core/v1 Event: ``kubectl describe`` of every release reads this form."""
    event = queued.event
    return {
        "metadata": {"name": event.name, "namespace": event.pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": event.pod.namespace,
            "name": event.pod.name,
            "uid": event.pod.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": COMPONENT, "host": event.node},
        "reportingComponent": COMPONENT,
        "reportingInstance": event.node,
        "firstTimestamp": queued.at,
        "lastTimestamp": queued.at,
        "count": 1,
    }
