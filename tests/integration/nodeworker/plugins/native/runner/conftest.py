"""A node, a container, the native processes, and two plugins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import card
from tests.support.plugins.runner_harness import Plugin


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        card()
        yield path


@pytest.fixture
async def processes(netns: str) -> AsyncIterator[NativePool]:
    with contextlib.closing(NativePool()) as processes:
        yield processes


@pytest.fixture
def runner(processes: NativePool) -> NativeRunner:
    return NativeRunner(PluginExecutor(marker=f"test-{os.urandom(8).hex()}"), AUTO, processes)


@pytest.fixture
def bridge(runner: NativeRunner, netns: str, tmp_path: Path) -> Plugin:
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.77.0.0/29"}
    return Plugin(runner, netns, tmp_path, {"type": "bridge", "bridge": "br0", "ipam": ipam})


@pytest.fixture
def macvlan(runner: NativeRunner, netns: str, tmp_path: Path) -> Plugin:
    ipam = {"type": "static", "addresses": [{"address": "10.77.0.5/24"}]}
    return Plugin(runner, netns, tmp_path, {"type": "macvlan", "master": "par0", "ipam": ipam})
