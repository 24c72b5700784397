"""Memory of the worker's cluster cache: a full node's pods, and thousands of networks.

The API server is real, because its answers are many times larger than the cached objects. The worker has the
configuration of ``deploy/kubernetes/base``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.report import report
from bench.stage import resident
from events.nats.server import EmbeddedServer
from nodeworker.planning.resolve.annotation import NETWORKS
from tests.support.kube.manifests import nad
from tests.support.kube.server import DEPLOY, WORKER, KubeServer

NODE = "bench-node"
_PATIENCE = 60.0
_NETWORK = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "macvlan",
        "plugins": [
            {
                "type": "macvlan",
                "master": "eth0",
                "mode": "bridge",
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16", "gateway": "10.1.0.1"}]]},
            },
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}},
        ],
    }
)


def worker_knowing(kube: KubeServer, folder: Path) -> float:
    """Return the resident memory of a worker, in MiB, that knows what *kube* has and has copied it to disk."""
    server = EmbeddedServer(folder / "state" / "ledger", folder / "run")
    server.start()
    try:
        with _worker(kube, folder) as worker:
            # The copies come last, and are written line by line.
            _wait_for(worker, [folder / "state" / "cluster" / name for name in ("pods.json", "networks.json")])
            return resident(worker.pid)
    finally:
        server.stop()


@contextlib.contextmanager
def _worker(kube: KubeServer, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = json.loads((DEPLOY / "kubernetes" / "base" / "plumbline.json").read_text())
    settings |= {"node": NODE, "stateDir": str(folder / "state"), "runDir": str(folder / "run"), "logLevel": "warning"}
    settings["worker"]["kubernetes"]["kubeconfig"] = str(kube.kubeconfig(folder / "kubeconfig", token=WORKER))
    config = folder / "plumbline.json"
    config.write_text(json.dumps(settings))
    worker = subprocess.Popen([sys.executable, "-m", "nodeworker", "--config", str(config)])
    try:
        _wait_for(worker, [folder / "run" / "worker.sock"])
        yield worker
    finally:
        worker.terminate()
        worker.wait(30)


def _wait_for(worker: subprocess.Popen[bytes], files: list[Path]) -> None:
    until = time.monotonic() + _PATIENCE
    while not all(file.exists() for file in files):
        if worker.poll() is not None:
            raise ChildProcessError(f"the worker ended with exit code {worker.returncode}")
        if time.monotonic() > until:
            raise TimeoutError(f"not within {_PATIENCE} s: {files}")
        time.sleep(0.05)


def _fill(kube: KubeServer, pods: range, networks: range) -> None:
    kube.etcd.store_nads(nad("default", f"network-{number}", _NETWORK) for number in networks)
    for number in pods:
        kube.create_pod("default", f"pod-{number}", NODE, {NETWORKS: f"network-{number}"})


def _measured(kube: KubeServer) -> float:
    with tempfile.TemporaryDirectory(prefix="plumbline-bench-") as folder:
        return worker_knowing(kube, Path(folder))


def main(arguments: list[str] | None = None) -> None:
    """Run it, where there is a kube-apiserver."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_memory", description=__doc__)
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--networks", type=int, nargs="+", default=[500, 10_000], help="in ascending order")
    options = parser.parse_args(arguments)
    try:
        kube = KubeServer()
    except pytest.skip.Exception as missing:
        sys.stderr.write(f"bench.cluster_memory is left out: {missing}\n")
        return
    try:
        kube.start()
        _fill(kube, range(1), range(1))
        report("worker that knows 1 pod and 1 network", _measured(kube), "MiB")
        _fill(kube, range(1, options.pods), range(0))
        for count in options.networks:
            _fill(kube, range(0), range(count))
            target = 52.0 if (options.pods, count) == (250, 500) else None
            report(f"worker that knows {options.pods} pods and {count} networks", _measured(kube), "MiB", target)
    finally:
        kube.stop()


if __name__ == "__main__":
    main()
