"""Drift: from a change in the kernel to the repaired link, on a node with many pods, and what watching costs.

The pods are attached through the entry point; then, one at a time, an interface of a pod is set down, and the clock
runs until it is up again: kernel, worker, ledger, reconciler, command, repair.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.report import quantile, report
from bench.stage import Stage, pods, resident
from events.schema import Phase
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.socket import Netlink

_PATIENCE = 20.0
_PAUSE = 0.0005
_IDLE = 20.0


def repair(names: list[str], count: int) -> None:
    """Report the milliseconds from a link being set down until it is up again."""
    seconds: list[float] = []
    for number in range(count):
        pod = names[number % len(names)]
        with Netlink.in_namespace(f"/run/netns/{pod}", Phase.CHECK) as inside:
            link = links.find(inside, links.by_name("net1"))
            assert link is not None
            started = time.perf_counter()
            inside.do(links.change(link.index, up=False))
            while not (now := links.find(inside, links.by_index(link.index))) or not now.up:
                if time.perf_counter() - started > _PATIENCE:
                    raise TimeoutError(f"net1 of {pod} was not set up again")
                time.sleep(_PAUSE)
            seconds.append(time.perf_counter() - started)
    size = len(names)
    report(f"link down to repaired p50, {size} pods", quantile(seconds, 0.5) * 1e3, "ms", 250.0)
    report(f"link down to repaired p99, {size} pods", quantile(seconds, 0.99) * 1e3, "ms", 1000.0)


def idle(stage: Stage, size: int) -> None:
    """Report which part of a core the worker uses while nothing happens, and its memory."""
    assert stage.worker is not None
    before = _cpu(stage.worker.pid)
    time.sleep(_IDLE)
    used = (_cpu(stage.worker.pid) - before) / _IDLE * 100
    report(f"worker that watches {size} pods, of a core", used, "%", 1.0)
    report(f"worker that watches {size} pods", resident(stage.worker.pid), "MiB")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--changes", type=int, default=300)
    options = parser.parse_args(arguments)
    with Stage() as stage, pods(stage, options.pods) as names:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pod: stage.plumbline("ADD", pod), names))
        reconciler = subprocess.Popen([sys.executable, "-m", "reconciler", "--config", str(stage.settings)])
        try:
            time.sleep(_IDLE / 2)
            idle(stage, len(names))
            repair(names, options.changes)
        finally:
            reconciler.terminate()
            reconciler.wait(30)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pod: stage.plumbline("DEL", pod), names))


if __name__ == "__main__":
    main()
