"""``plumbline up`` and every process that it starts log in one format."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from events.process import logs

PROCESSES = {"up", "worker", "reconciler"}
TIMEOUT = 60.0
"""Seconds until all of them have logged, on a busy machine."""

PLUMBLINE = Path(sys.executable).with_name("plumbline")
CONSOLE_LINE = re.compile(r"\d\d:\d\d:\d\d (\w+) +(?:WARNING )?[a-z_]+( [a-z_]+=.*)?")


def of_json(line: str) -> str:
    """Return the process that wrote the JSON object *line*."""
    return str(json.loads(line)["process"])


def of_console(line: str) -> str:
    """Return the process that wrote *line* for a coloured terminal."""
    assert "\x1b[" in line
    found = CONSOLE_LINE.fullmatch(re.sub(r"\x1b\[\d+m", "", line))
    assert found, line
    return found[1]


def lines_of_up(folder: Path, stderr: int, read: int, **environment: str) -> list[str]:
    """Return what ``plumbline up`` and its children write to *stderr*, until the reconciler is ready."""
    config = folder / "plumbline.json"
    places = {"stateDir": str(folder / "state"), "runDir": str(folder / "run")}
    config.write_text(json.dumps({"node": "n1", **places, "leaks": {"policy": "off"}, "drift": {"policy": "off"}}))
    started = subprocess.Popen(
        [PLUMBLINE, "--config", config, "up"], stderr=stderr, env={**os.environ, "NO_COLOR": "", **environment}
    )
    os.close(stderr)
    written = b""
    try:
        until = time.monotonic() + TIMEOUT
        while b"reconciler_ready" not in written or b"worker_open" not in written:
            assert time.monotonic() < until, written.decode()
            written += os.read(read, 65536)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(TIMEOUT)
    return written.decode().replace("\r", "").rpartition("\n")[0].splitlines()


@pytest.mark.parametrize(
    ("chosen", "opened", "process_of"),
    [(logs.JSON, os.pipe, of_json), (logs.AUTO, os.openpty, of_console)],
    ids=["json to a pipe", "console on a terminal"],
)
def test_every_process_logs_in_the_format_of_up(
    chosen: str, opened: Callable[[], tuple[int, int]], process_of: Callable[[str], str], tmp_path: Path
) -> None:
    read, write = opened()
    try:
        lines = lines_of_up(tmp_path, write, read, **{logs.FORMAT_VARIABLE: chosen})
    finally:
        os.close(read)
    assert {process_of(line) for line in lines} == PROCESSES
