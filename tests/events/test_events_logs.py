"""Lines of the log, and copies of those of one context."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import structlog

from events.process import logs


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


async def test_copy_has_the_lines_of_its_own_context_with_their_levels(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "worker")
    log = structlog.get_logger("test")
    copies: list[tuple[int, str]] = []

    async def elsewhere(inside: asyncio.Event, go_on: asyncio.Event) -> None:
        inside.set()
        await go_on.wait()
        log.info("elsewhere")

    inside, go_on = asyncio.Event(), asyncio.Event()
    other = asyncio.create_task(elsewhere(inside, go_on))
    await inside.wait()
    log.info("before")
    with logs.copied(lambda level, line: copies.append((level, line))):
        log.info("request_done", pod="default/a b")
        log.debug("below the level of the log")
        log.warning("request_failed", error='say "no"')
        go_on.set()
        await other
    log.info("after")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("event=")[1].split()[0] for line in lines] == [
        "before",
        "request_done",
        "request_failed",
        "elsewhere",
        "after",
    ]
    assert copies == [(logging.INFO, lines[1]), (logging.WARNING, lines[2])]
    assert 'process=worker event=request_done pod="default/a b"' in lines[1]
