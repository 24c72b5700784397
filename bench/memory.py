"""What the worker holds while it idles, and what attaching and detaching again and again adds to that."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
from pathlib import Path
from typing import NamedTuple

from bench.report import report
from bench.stage import Stage, pods, resident

_WARM = 100
"""Cycles after which every lazily imported module is loaded."""


def cycle(stage: Stage, cycles: int) -> None:
    """Attach and detach pods, eight at a time, *cycles* times in all."""
    with pods(stage, 8) as names, concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        for _ in range(cycles // len(names)):
            for command in ("ADD", "DEL"):
                list(pool.map(lambda pod, command=command: stage.plumbline(command, pod), names))


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000, help="10000 takes some ten minutes")
    options = parser.parse_args(arguments)
    with Stage() as stage:
        assert stage.worker is not None
        worker = stage.worker.pid
        report("worker idle", resident(worker), "MiB", 40.0)
        report("worker idle, with its processes", proportional(family(worker)), "MiB")
        report("nats-server idle", resident(stage.server.pid), "MiB", 32.0)
        cycle(stage, _WARM)
        before = _held(worker)
        cycle(stage, options.cycles - _WARM)
        after = _held(worker)
        report(f"worker after {_WARM} attach/detach cycles", before.own, "MiB")
        report(f"worker after {options.cycles} attach/detach cycles", after.own, "MiB", 46.0)
        report(f"worker after {options.cycles} attach/detach cycles, with its processes", after.memory, "MiB")
        span = f"worker and its processes, from {_WARM} to {options.cycles} cycles"
        report(span, after.memory - before.memory, "MiB", 5.0)
        report(f"{span}, threads", after.threads - before.threads, "threads", 8)
        report(f"{span}, descriptors", after.files - before.files, "files", 0)
        report(f"nats-server after {options.cycles} attach/detach cycles", resident(stage.server.pid), "MiB", 32.0)


class _Held(NamedTuple):
    own: float
    memory: float
    threads: int
    files: int


def _held(worker: int) -> _Held:
    pids = family(worker)
    return _Held(resident(worker), proportional(pids), _count(pids, "task"), _count(pids, "fd"))


def family(worker: int) -> list[int]:
    """Return the process *worker* and its children."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return [worker, *map(int, children)]


def proportional(pids: list[int]) -> float:
    """Return the memory of the processes *pids* in MiB, of what they share with others each its part."""
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _count(pids: list[int], what: str) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/{what}")) for pid in pids)


if __name__ == "__main__":
    main()
