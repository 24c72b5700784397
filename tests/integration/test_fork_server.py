"""A forked program has the same environment and the same end as an executed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY
from tests.support.run.fork_server import WORKER

SURROUNDINGS = """
import gc, json, os, signal, sys, threading
signals = {number.name: str(signal.getsignal(number)) for number in signal.valid_signals() if number not in (9, 19)
           and isinstance(number, signal.Signals)}
print(json.dumps({
    "arguments": sys.argv, "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ),
    "files": {number: os.path.exists(f"/proc/self/fd/{number}") for number in range(64)}, "signals": signals,
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "warnings": sys.warnoptions,
    "garbage": [gc.get_threshold(), gc.isenabled()], "threads": threading.active_count(), "name": __name__,
    "switch": sys.getswitchinterval(), "network": os.stat("/proc/self/ns/net").st_ino,
    "standard": [os.readlink("/proc/self/fd/0"), sys.stdin.encoding, sys.stdout.encoding, sys.stderr.line_buffering],
    "group": os.getpgid(0), "session": os.getsid(0), "umask": os.umask(0o22),
}))
"""


def executed(*program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *program],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def forked(*program: str) -> subprocess.CompletedProcess[str]:
    return WORKER.run(*program, env={"PYTHONPATH": str(REPOSITORY)})


def surroundings(*program: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, other = forked(*program), executed(*program)
    assert (one.stderr, one.returncode) == (other.stderr, other.returncode) == ("", 0)
    return json.loads(one.stdout), json.loads(other.stdout)


def test_code_finds_the_same_when_it_is_forked() -> None:
    one, other = surroundings("-c", SURROUNDINGS, "an argument")
    assert one == other


def test_a_script_finds_the_same_when_it_is_forked(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SURROUNDINGS)
    one, other = surroundings(str(script), "--option")
    assert one == other


@pytest.mark.parametrize("arguments", [("--help",), ("--unknown",), ("--check-config", "/nowhere")])
def test_the_worker_says_the_same_when_it_is_forked(arguments: tuple[str, ...]) -> None:
    one, other = forked("-m", "nodeworker", *arguments), executed("-m", "nodeworker", *arguments)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import atexit; atexit.register(print, 'goodbye')",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "open('/dev/null')",
    ],
)
def test_a_program_ends_alike_when_it_is_forked(code: str) -> None:
    one, other = forked("-c", code), executed("-c", code)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_an_error_is_shown_with_its_traceback() -> None:
    done = forked("-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_running_program_is_signalled() -> None:
    process = WORKER.start("-c", "import time; time.sleep(60)", stdout=1, stderr=2)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.kill()
    assert process.poll() == -signal.SIGTERM


def test_two_programs_do_not_share_random_numbers() -> None:
    code = "import random; print(random.random())"
    assert forked("-c", code).stdout != forked("-c", code).stdout
