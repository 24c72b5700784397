"""The lock of a node, between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.waiting import eventually

LOCKED = "locked\n"

WORKER = """
import subprocess, sys
from pathlib import Path
from nodeworker.journal.worker_lock import only_worker

with only_worker(Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["cat"], pass_fds=(lock,))
    print("locked", flush=True)
    child.wait()
"""
"""Has a child that keeps the lock, as native processes do, and ends with its standard input."""


def start(run_dir: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run_dir)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def waits_for_lock(pid: int) -> bool:
    waiting = (line.split() for line in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in line)
    return any(fields[5] == str(pid) for fields in waiting)


def test_worker_waits_while_children_of_a_killed_one_hold_the_lock(tmp_path: Path) -> None:
    with start(tmp_path) as killed:
        assert killed.stdin
        assert killed.stdout
        assert killed.stdout.readline() == LOCKED
        killed.kill()
        with start(tmp_path) as successor:
            assert successor.stdout
            eventually(lambda: waits_for_lock(successor.pid), "the successor waits for the lock")
            killed.stdin.close()
            assert successor.stdout.readline() == LOCKED
            assert successor.communicate() == ("", "")
            assert successor.returncode == 0


def test_worker_is_refused_while_another_one_runs(tmp_path: Path) -> None:
    with start(tmp_path) as running:
        assert running.stdout
        assert running.stdout.readline() == LOCKED
        with start(tmp_path) as refused:
            stdout, stderr = refused.communicate()
        assert (refused.returncode, stdout) == (1, "")
        assert f"WorkerRunningError: another worker has locked {tmp_path}/worker.lock: stop it" in stderr
        assert running.poll() is None
        running.communicate()
        assert running.returncode == 0
