"""Attach with the pod's network-status published before the runtime is answered, against the bare delegates.

Pods, networks and statuses are those of a real kube-apiserver. Where the time goes is read from the ledger, which has
every step of every attach.
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
from tests.support.kube.server import ADMIN, KubeServer

_PATIENCE = 20.0
_STEPS = ("AttachRequested", "AttachPlanned", "AttachCompleted", "StatusPublished")


class ClusterStage(Stage):
    """A stage whose worker and reconciler belong to the cluster of *kube*. Use as a context manager."""

    def __init__(self, kube: KubeServer) -> None:
        super().__init__()
        self._kube = kube
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
        return {"worker": cluster, "reconciler": cluster}

    def warm_up(self) -> None:
        """Return once an attach is published before it is answered."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with pods(self, 1) as (pod,):
                self.plumbline("ADD", pod)
                published = "StatusPublished" in self.story(pod)
                self.plumbline("DEL", pod)
            if published:
                return
        raise TimeoutError("nothing is published")

    def story(self, pod: str) -> Mapping[str, Event]:
        """Return the last event of each type that the ledger has of the sandbox of *pod* by now."""
        return asyncio.run(self._story(pod))

    async def _story(self, pod: str) -> dict[str, Event]:
        ledger = await JetStreamLedger.connect(self.server.address, name="bench")
        try:
            return {s.event.type: s.event async for s in ledger.read(f"plumbline.ev.*.{pod}-cid.>")}
        finally:
            await ledger.close()


def latency(stage: ClusterStage, count: int) -> None:
    """Report the milliseconds of an ADD over the bare delegates, and of its steps."""
    seconds: dict[str, list[float]] = {"bare": [], "plumbline": []}
    steps: dict[str, list[float]] = {name: [] for name in _STEPS[1:]}
    with pods(stage, 2 * count) as names:
        for ours, bare in zip(names[:count], names[count:], strict=True):
            seconds["bare"].append(stage.bare("ADD", bare))
            seconds["plumbline"].append(stage.plumbline("ADD", ours))
            story = stage.story(ours)  # at once: what is not published by now was not waited for
            at = [unix_ns(story[step].at) for step in _STEPS]
            for name, begin, end in zip(_STEPS[1:], at, at[1:], strict=False):
                steps[name].append((end - begin) / 1e9)
            stage.bare("DEL", bare)
            stage.plumbline("DEL", ours)
    bare, ours = ([quantile(seconds[name], q) * 1e3 for q in (0.5, 0.9)] for name in ("bare", "plumbline"))
    report("published ADD: bare delegates p50", bare[0], "ms")
    report("published ADD: plumbline p50", ours[0], "ms")
    report("published ADD: over bare delegates p50", ours[0] - bare[0], "ms", 15.0)
    report("published ADD: over bare delegates p90", ours[1] - bare[1], "ms")
    report("published ADD: of bare delegates p50", ours[0] / bare[0], "ratio")
    for name, text in (
        ("AttachPlanned", "from the request to the plan"),
        ("AttachCompleted", "from the plan to the attach"),
        ("StatusPublished", "from the attach to the word that it is published"),
    ):
        report(f"published ADD: {text} p50", quantile(steps[name], 0.5) * 1e3, "ms")


def main(arguments: list[str] | None = None) -> None:
    """Run it, where there is a kube-apiserver."""
    parser = argparse.ArgumentParser(prog="python -m bench.kubernetes", description=__doc__)
    parser.add_argument("--pods", type=int, default=60)
    options = parser.parse_args(arguments)
    logs.configure("error", "bench")
    try:
        kube = KubeServer()
    except pytest.skip.Exception as reason:
        sys.stderr.write(f"bench.kubernetes: {reason}\n")
        return
    try:
        kube.start()
        with ClusterStage(kube) as stage:
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
