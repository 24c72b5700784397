"""Attach with the pod's network-status published before the runtime is answered, against the bare delegates.

Pods, networks and statuses are those of a real kube-apiserver. Where the time goes is read from the ledger, which has
every step of every attach.

--native never        measure executed plugins
--status-wait 0       answer without waiting for the status
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from bench.report import quantile, report
from bench.stage import NODE, POD, Stage, pods, resident
from events.nats.ledger import JetStreamLedger
from events.process import logs
from events.schema import Event, unix_ns
from nodeworker.planning.resolve.annotation import NETWORKS
from nodeworker.plugins.native.registry import AUTO, NEVER
from tests.support.kube.server import ADMIN, KubeServer

_PATIENCE = 20.0
_STEPS = ("AttachRequested", "AttachPlanned", "AttachCompleted", "StatusPublished")


class ClusterStage(Stage):
    """A stage whose worker and reconciler belong to the cluster of *kube*. Use as a context manager.

    *native* and *status_wait* are the worker's settings ``native`` and ``statusWait``.
    """

    def __init__(self, kube: KubeServer, native: str, status_wait: float) -> None:
        super().__init__()
        self._kube = kube
        self._worker_settings = {"native": native, "statusWait": status_wait}
        self.waits = status_wait > 0
        self.reconciler: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ClusterStage:
        super().__enter__()
        self.reconciler = subprocess.Popen([sys.executable, "-m", "reconciler", "--config", str(self.settings)])
        return self

    def __exit__(self, *_: object) -> None:
        if self.reconciler is not None:
            self.reconciler.terminate()
            self.reconciler.wait(30)
        super().__exit__()

    def cluster_settings(self) -> dict[str, Any]:
        """See ``Stage.cluster_settings``."""
        self._kube.create_nad("default", "macvlan-conf", json.dumps(self.delegates[1]))
        self._kube.create_pod("default", POD, NODE, {NETWORKS: "macvlan-conf"})
        cluster = {"kubernetes": {"kubeconfig": str(self._kube.kubeconfig(self.folder / "kubeconfig", token=ADMIN))}}
        return {"worker": cluster | self._worker_settings, "reconciler": cluster}

    def warm_up(self) -> None:
        """Return after an attach; if answers wait, once one is published before it is answered."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with pods(self, 1) as (pod,):
                self.plumbline("ADD", pod)
                published = "StatusPublished" in self.events_by_type(pod)
                self.plumbline("DEL", pod)
            if published or not self.waits:
                return
        raise TimeoutError("nothing is published")

    def events_by_type(self, pod: str) -> Mapping[str, Event]:
        """Return the last event of each type that the ledger has of the sandbox of *pod* by now."""
        return asyncio.run(self._events_by_type(pod))

    async def _events_by_type(self, pod: str) -> dict[str, Event]:
        ledger = await JetStreamLedger.connect(self.server.address, name="bench")
        try:
            return {s.event.type: s.event async for s in ledger.read(f"plumbline.ev.*.{pod}-cid.>")}
        finally:
            await ledger.close()


def latency(stage: ClusterStage, count: int) -> None:
    """Report the milliseconds of ADD and DEL over the bare delegates, and of the steps of an ADD."""
    adds: dict[str, list[float]] = {"bare": [], "plumbline": []}
    dels: dict[str, list[float]] = {"bare": [], "plumbline": []}
    recorded = _STEPS if stage.waits else _STEPS[:-1]
    steps: dict[str, list[float]] = {name: [] for name in recorded[1:]}
    with pods(stage, 2 * count) as names:
        for ours, bare in zip(names[:count], names[count:], strict=True):
            adds["bare"].append(stage.bare("ADD", bare))
            adds["plumbline"].append(stage.plumbline("ADD", ours))
            events_by_type = stage.events_by_type(
                ours
            )  # at once: if the status is not published now, the answer did not wait for it
            at = [unix_ns(events_by_type[step].at) for step in recorded]
            for name, begin, end in zip(recorded[1:], at, at[1:], strict=False):
                steps[name].append((end - begin) / 1e9)
            dels["bare"].append(stage.bare("DEL", bare))
            dels["plumbline"].append(stage.plumbline("DEL", ours))
    title = "published ADD" if stage.waits else "ADD without statusWait"
    bare, ours = ([quantile(adds[name], q) * 1e3 for q in (0.5, 0.9)] for name in ("bare", "plumbline"))
    report(f"{title}: bare delegates p50", bare[0], "ms")
    report(f"{title}: plumbline p50", ours[0], "ms")
    report(f"{title}: over bare delegates p50", ours[0] - bare[0], "ms", 15.0)
    report(f"{title}: over bare delegates p90", ours[1] - bare[1], "ms")
    report(f"{title}: of bare delegates p50", ours[0] / bare[0], "ratio")
    report(
        "DEL in a cluster: of bare delegates p50",
        quantile(dels["plumbline"], 0.5) / quantile(dels["bare"], 0.5),
        "ratio",
    )
    for name, text in (
        ("AttachPlanned", "from the request to the plan"),
        ("AttachCompleted", "from the plan to the attach"),
        ("StatusPublished", "from the attach to the notice that it is published"),
    ):
        if name in steps:
            report(f"{title}: {text} p50", quantile(steps[name], 0.5) * 1e3, "ms")


def main(arguments: list[str] | None = None) -> None:
    """Run it, where there is a kube-apiserver."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kubernetes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=60)
    parser.add_argument("--native", choices=(AUTO, NEVER), default=AUTO)
    parser.add_argument("--status-wait", type=float, default=2.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    try:
        kube = KubeServer()
    except pytest.skip.Exception as reason:
        sys.stderr.write(f"bench.kubernetes: {reason}\n")
        return
    try:
        kube.start()
        with ClusterStage(kube, options.native, options.status_wait) as stage:
            stage.warm_up()
            latency(stage, options.pods)
            assert stage.worker is not None
            assert stage.reconciler is not None
            report("worker in a cluster", resident(stage.worker.pid), "MiB", 46.0)
            report("reconciler in a cluster", resident(stage.reconciler.pid), "MiB")
    finally:
        kube.stop()


if __name__ == "__main__":
    main()
