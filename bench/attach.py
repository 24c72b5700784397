"""Attach and detach through entry point, ledger and worker, compared with the same delegates executed directly.

Both alternate pod by pod, so that other load on the machine affects both alike; only the ratio counts.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import time
from collections.abc import Callable

from bench.report import quantile, report
from bench.stage import Stage, pods


def latency(stage: Stage, count: int, networks: int, targets: dict[str, float]) -> None:
    """Report the times of ADD and DEL of a pod with *networks* macvlan networks, divided by the delegates' time."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with pods(stage, 2 * count) as names:
        for ours, bare in zip(names[:count], names[count:], strict=True):
            for command in targets:
                seconds.setdefault((command, "bare"), []).append(stage.bare(command, bare, networks))
                seconds.setdefault((command, "plumbline"), []).append(stage.plumbline(command, ours, networks))
    for command, target in targets.items():
        what = f"{command} bridge + {networks} macvlan"
        for q in (0.5, 0.9):
            bare, ours = (quantile(seconds[command, subject], q) * 1e3 for subject in ("bare", "plumbline"))
            report(f"{what}, bare delegates p{q * 100:.0f}", bare, "ms")
            report(f"{what}, plumbline p{q * 100:.0f}", ours, "ms")
            report(f"{what}, of bare delegates p{q * 100:.0f}", ours / bare, "ratio", target if q == 0.5 else None)


def throughput(stage: Stage, count: int, concurrency: int, networks: int, rounds: int) -> None:
    """Report how many pods are attached and detached in a second, as a ratio to the bare delegates."""
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for subject, call in (("bare", stage.bare), ("plumbline", stage.plumbline)):
            with pods(stage, count) as names:
                for command in ("ADD", "DEL"):
                    wall = _wall(lambda pod, call=call, verb=command: call(verb, pod, networks), names, concurrency)
                    rates.setdefault((command, subject), []).append(count / wall)
    for command in ("ADD", "DEL"):
        what = f"{command} of {count} pods with {networks + 1} interfaces at concurrency {concurrency}"
        bare, ours = (quantile(rates[command, subject], 0.5) for subject in ("bare", "plumbline"))
        report(f"{what}, bare delegates", bare, "pods/s")
        report(f"{what}, plumbline", ours, "pods/s")
        report(f"{what}, of bare delegates", ours / bare, "ratio", 3.0, better="more")


def _wall(call: Callable[[str], float], names: list[str], concurrency: int) -> float:
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        list(pool.map(call, names))
        return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach", description=__doc__)
    parser.add_argument("--pods", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with Stage() as stage:
        latency(stage, options.pods, 1, {"ADD": 0.5, "DEL": 0.4})
        latency(stage, options.pods // 3, 8, {"ADD": 0.25, "DEL": 0.4})
        throughput(stage, 60, 16, 1, options.rounds)
        throughput(stage, 110, 16, 2, options.rounds)


if __name__ == "__main__":
    main()
