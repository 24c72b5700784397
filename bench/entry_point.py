"""What the entry point costs by itself: its start against an empty static program's, and its memory."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.report import quantile, report
from nodeworker import shim


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.entry_point", description=__doc__)
    parser.add_argument("--starts", type=int, default=1000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        source = Path(folder) / "empty.c"
        source.write_text("int main(void) { return 0; }\n")
        subprocess.run(["gcc", "-static", "-Os", "-s", "-o", str(empty), str(source)], check=True)
        seconds: dict[Path, list[float]] = {empty: [], shim.binary(): []}
        for _ in range(options.starts):
            for binary, taken in seconds.items():
                taken.append(_start(binary))
    bare, ours = (quantile(taken, 0.5) * 1e3 for taken in seconds.values())
    report("start of an empty static program p50", bare, "ms")
    report("entry point over an empty static program p50", ours - bare, "ms", 2.0)
    report("entry point with 1 MiB on stdin, most resident", _peak_memory(), "MiB", 1.5)


def _start(binary: Path) -> float:
    start = time.perf_counter()
    pid = os.posix_spawn(binary, [binary], {"CNI_COMMAND": "VERSION"}, file_actions=_SILENT)
    os.waitpid(pid, 0)
    return time.perf_counter() - start


_SILENT = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


def _peak_memory() -> float:
    """Return the peak resident memory of an entry point without a worker, in MiB."""
    read, write = os.pipe()
    env = {"CNI_COMMAND": "ADD", "PLUMBLINE_SOCKET": "/nonexistent/worker.sock", "PLUMBLINE_DEADLINE": "0.2"}
    pid = os.posix_spawn(shim.binary(), [shim.binary()], env, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), *_SILENT])
    os.close(read)
    with open(write, "wb") as stdin:
        stdin.write(b" " * (1 << 20))
    peak = 0.0
    while (seen := _high_water(pid)) is not None:  # ru_maxrss would count what the parent had at the fork
        peak = max(peak, seen)
        time.sleep(0.01)
    os.waitpid(pid, 0)
    return peak


def _high_water(pid: int) -> float | None:
    """Return the peak resident memory of a living process in MiB, None once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
