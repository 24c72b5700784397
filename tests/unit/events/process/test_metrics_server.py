"""Metrics are served as soon as the port is free, and a busy port stops nothing else."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs
from structlog.typing import EventDict

from events.process import metrics_server
from events.process.metrics_server import serve_metrics
from events.process.settings import MetricsSettings
from tests.support.waiting import BOUND


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "of all", registry=registry).set(42)
    return registry


async def scraped(port: int) -> str:
    """Return the page once the server answers."""
    while True:
        try:
            return await asyncio.to_thread(_page, port)
        except OSError:
            await asyncio.sleep(0.01)


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def taken() -> socket.socket:
    """Return a socket that listens on a free port."""
    return socket.create_server(("127.0.0.1", 0))


async def said(logs: list[EventDict], event: str) -> None:
    """Return once *event* is in *logs*."""
    while True:
        if event in {each["event"] for each in logs}:
            return
        await asyncio.sleep(0.01)


async def test_busy_port_is_logged_once_and_used_when_free(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "PAUSE", 0.01)
    with capture_logs() as logs, taken() as holder:
        port = holder.getsockname()[1]
        async with asyncio.timeout(BOUND), serve_metrics(registry, MetricsSettings(port=port)):
            await said(logs, "metrics_not_served")
            await asyncio.sleep(0.05)
            holder.close()
            await said(logs, "metrics_served")
            assert "answer 42.0" in await scraped(port)
    assert [(each["event"], each["port"]) for each in logs] == [("metrics_not_served", port), ("metrics_served", port)]
    assert "in use" in logs[0]["error"]


async def test_port_is_free_after_the_block(registry: CollectorRegistry) -> None:
    with taken() as holder:
        port = holder.getsockname()[1]
    for _ in range(2):
        async with asyncio.timeout(BOUND), serve_metrics(registry, MetricsSettings(port=port)):
            assert "answer 42.0" in await scraped(port)


async def test_unknown_host_stops_nothing(registry: CollectorRegistry) -> None:
    with capture_logs() as logs:
        async with asyncio.timeout(BOUND), serve_metrics(registry, MetricsSettings(host="192.0.2.1", port=9)):
            await said(logs, "metrics_not_served")
    assert logs[0]["event"] == "metrics_not_served"


async def test_port_0_serves_nothing(registry: CollectorRegistry) -> None:
    with capture_logs() as logs:
        async with serve_metrics(registry, MetricsSettings()):
            await asyncio.sleep(0)
    assert logs == []
