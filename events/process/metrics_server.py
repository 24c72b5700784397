"""Serve the metrics of a process to Prometheus.

A busy port stops no worker and no reconciler, because pods need networks more than metrics: the server logs it and
retries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from events.process.settings import MetricsSettings

log = structlog.get_logger(__name__)

PAUSE = 5.0
"""Seconds between two attempts."""


@contextlib.asynccontextmanager
async def serve_metrics(registry: CollectorRegistry, where: MetricsSettings) -> AsyncGenerator[None]:
    """Serve ``/metrics`` on a separate thread inside the block, as soon as the port is free; port 0: not at all."""
    if not where.port:
        yield
        return
    serving = asyncio.create_task(_serve(registry, where), name="metrics")
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def _serve(registry: CollectorRegistry, where: MetricsSettings) -> None:
    logged = ""
    while True:
        try:
            server, thread = start_http_server(where.port, where.host, registry)
        except OSError as error:
            if (reason := error.strerror or str(error)) != logged:
                log.warning("metrics_not_served", host=where.host, port=where.port, error=reason, retry_every=PAUSE)
                logged = reason
            await asyncio.sleep(PAUSE)
        else:
            break
    log.info("metrics_served", host=where.host, port=where.port)
    try:
        await asyncio.Event().wait()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
