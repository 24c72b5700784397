"""Log lines in each format, and copies of the lines of one context."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
import structlog

from events.process import logs
from events.process.settings import SettingsError


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


def lines_in(chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what a process in the format *chosen* logs of a request that was done and one that failed."""
    monkeypatch.setenv(logs.FORMAT_VARIABLE, chosen)
    logs.configure("info", "worker")
    log = structlog.get_logger("test")
    log.info("request_done", command="ADD", pod="default/web")
    log.warning("request_failed", error="no such network")
    return capsys.readouterr().err.splitlines()


def test_console_line_is_time_process_event_and_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, failed = lines_in(logs.CONSOLE, monkeypatch, capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d worker     request_done command=ADD pod=default/web", done)
    assert failed.endswith('worker     WARNING request_failed error="no such network"')


def test_console_has_colors_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any("\x1b" in line for line in lines_in(logs.CONSOLE, monkeypatch, capsys))
    structlog.reset_defaults()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert all("\x1b" in line for line in lines_in(logs.AUTO, monkeypatch, capsys))
    structlog.reset_defaults()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b" in line for line in lines_in(logs.AUTO, monkeypatch, capsys))


def test_json_line_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done, failed = (json.loads(line) for line in lines_in(logs.JSON, monkeypatch, capsys))
    assert list(done) == ["timestamp", "level", "process", "event", "command", "pod"]
    assert (failed["level"], failed["event"], failed["error"]) == ("warning", "request_failed", "no such network")


def test_a_pipe_gets_logfmt_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, _ = lines_in("", monkeypatch, capsys)
    assert re.match(r"timestamp=\S+Z level=info process=worker event=request_done command=ADD pod=default/web", done)


def test_copy_is_for_programs_whatever_the_terminal_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies: list[str] = []
    with logs.copied(lambda _, line: copies.append(line)):
        shown = lines_in(logs.CONSOLE, monkeypatch, capsys)
    assert "event=request_failed" in copies[1]
    assert "event=" not in shown[1]


def test_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "xml")
    with pytest.raises(SettingsError, match="PLUMBLINE_LOG_FORMAT is 'xml', not one of auto, console, logfmt, json"):
        logs.configure("info", "worker")
