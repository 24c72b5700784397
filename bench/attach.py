"""Attach and detach through entry point, ledger and worker, against the same delegates executed bare.

Both take turns pod by pod, so that whatever else the machine does meets both alike; what counts is the difference, and
for many pods at once the ratio.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import time
from collections.abc import Callable

from bench.report import quantile, report
from bench.stage import Stage, pods, resident


def latency(stage: Stage, count: int) -> None:
    """Report the milliseconds that an ADD and a DEL take over the bare delegates."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with pods(stage, 2 * count) as names:
        for ours, bare in zip(names[:count], names[count:], strict=True):
            for command in ("ADD", "DEL"):
                seconds.setdefault((command, "bare"), []).append(stage.bare(command, bare))
                seconds.setdefault((command, "plumbline"), []).append(stage.plumbline(command, ours))
    for command in ("ADD", "DEL"):
        bare, ours = (
            [quantile(seconds[command, subject], q) * 1e3 for q in (0.5, 0.9)] for subject in ("bare", "plumbline")
        )
        report(f"{command} bare delegates p50", bare[0], "ms")
        report(f"{command} plumbline p50", ours[0], "ms")
        report(f"{command} over bare delegates p50", ours[0] - bare[0], "ms", 5.0)
        report(f"{command} over bare delegates p90", ours[1] - bare[1], "ms")


def throughput(stage: Stage, count: int, concurrency: int, rounds: int) -> None:
    """Report how many pods are attached in a second, as a ratio to the bare delegates."""
    rates: dict[str, list[float]] = {"bare": [], "plumbline": []}
    for _ in range(rounds):
        for subject, call in (("bare", stage.bare), ("plumbline", stage.plumbline)):
            with pods(stage, count) as names:
                rates[subject].append(count / _wall(call, "ADD", names, concurrency))
                _wall(call, "DEL", names, concurrency)
    bare, ours = (quantile(rates[subject], 0.5) for subject in ("bare", "plumbline"))
    report(f"{count} pods at concurrency {concurrency}, bare delegates", bare, "pods/s")
    report(f"{count} pods at concurrency {concurrency}, plumbline", ours, "pods/s")
    report(f"{count} pods at concurrency {concurrency}, of bare delegates", ours / bare, "ratio", 0.8, better="more")


def memory(stage: Stage, cycles: int) -> None:
    """Report resident memory after *cycles* of attach and detach."""
    assert stage.worker is not None
    with pods(stage, 8) as names, concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        for _ in range(cycles // len(names)):
            for command in ("ADD", "DEL"):
                list(pool.map(lambda pod, command=command: stage.plumbline(command, pod), names))
    report(f"worker after {cycles} attach/detach cycles", resident(stage.worker.pid), "MiB", 46.0)
    report(f"nats-server after {cycles} attach/detach cycles", resident(stage.server.pid), "MiB", 32.0)


def _wall(call: Callable[[str, str], float], command: str, names: list[str], concurrency: int) -> float:
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(lambda pod: call(command, pod), names))
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach", description=__doc__)
    parser.add_argument("--pods", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=1000)
    options = parser.parse_args(arguments)
    with Stage() as stage:
        assert stage.worker is not None
        report("worker idle", resident(stage.worker.pid), "MiB", 40.0)
        report("nats-server idle", resident(stage.server.pid), "MiB", 32.0)
        memory(stage, options.cycles)
    with Stage() as stage:
        latency(stage, options.pods)
        throughput(stage, 60, 16, options.rounds)


if __name__ == "__main__":
    main()
