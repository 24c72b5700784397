"""What the worker holds while it idles, and what attaching and detaching again and again adds to that."""

from __future__ import annotations

import argparse
import concurrent.futures
import os

from bench.report import report
from bench.stage import Stage, pods, resident

_WARM = 100
"""Cycles after which everything that is loaded when it is first needed has been."""


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
        report("nats-server idle", resident(stage.server.pid), "MiB", 32.0)
        cycle(stage, _WARM)
        before = resident(worker), _count(worker, "task"), _count(worker, "fd")
        cycle(stage, options.cycles - _WARM)
        after = resident(worker), _count(worker, "task"), _count(worker, "fd")
        report(f"worker after {_WARM} attach/detach cycles", before[0], "MiB")
        report(f"worker after {options.cycles} attach/detach cycles", after[0], "MiB", 46.0)
        report(f"worker, from {_WARM} to {options.cycles} cycles", after[0] - before[0], "MiB", 5.0)
        report(f"worker's threads, from {_WARM} to {options.cycles} cycles", after[1] - before[1], "threads", 8)
        report(f"worker's descriptors, from {_WARM} to {options.cycles} cycles", after[2] - before[2], "files", 0)
        report(f"nats-server after {options.cycles} attach/detach cycles", resident(stage.server.pid), "MiB", 32.0)


def _count(pid: int, what: str) -> int:
    return len(os.listdir(f"/proc/{pid}/{what}"))


if __name__ == "__main__":
    main()
