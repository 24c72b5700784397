"""What tests of the Kubernetes source share."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nodeworker.planning.cluster.apiserver.credentials import Credentials, from_kubeconfig
from nodeworker.planning.cluster.apiserver.source import Kubernetes
from nodeworker.planning.cluster.apiserver.watch import WatchTimings
from nodeworker.planning.resolve.annotation import NETWORKS
from tests.support.kube.fake_api import FakeApi
from tests.support.kube.manifests import write_kubeconfig
from tests.support.kube.server import WORKER, KubeServer
from tests.support.waiting import BOUND, until

BRISK = WatchTimings(first=0.05, most=0.5, steady=60.0)
"""Comes back quickly after an outage."""

_counter = itertools.count(1)


def unique(prefix: str) -> str:
    """Return a name that no other test uses: all test processes share the API server."""
    return f"{prefix}-{os.getpid()}-{next(_counter)}"


@asynccontextmanager
async def running(
    credentials: Credentials, node: str, folder: Path, *, synced: bool = True, **options: Any
) -> AsyncGenerator[Kubernetes, None]:
    """Run the source for *node*; enter when it is in line with the API server, or at once."""
    source = Kubernetes(credentials, node, folder, **{"timings": BRISK, **options})
    task = asyncio.create_task(source.run())
    try:
        if synced:
            assert await source.ready(BOUND)
            await until(lambda: source.connected)
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        source.close()
        await asyncio.sleep(0)  # connections are let go of in the loop's next turn


def worker(kube: KubeServer, folder: Path, **user: str) -> Credentials:
    """Return the worker's credentials."""
    return from_kubeconfig(kube.kubeconfig(folder / "kubeconfig", **(user or {"token": WORKER})))


def visitor(fake: FakeApi, folder: Path) -> Credentials:
    """Return credentials for the fake."""
    return from_kubeconfig(write_kubeconfig(folder / "kubeconfig", {"server": fake.url}, {"token": "token"}))


def selecting(networks: str) -> dict[str, str]:
    """Return the annotations of a pod that selects *networks*."""
    return {NETWORKS: networks}
