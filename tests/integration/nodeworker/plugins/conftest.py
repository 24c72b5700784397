"""Fixtures for tests of executed plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeworker.plugins.chain import Target
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.orphans import orphans
from tests.support.plugins.scripts import Plugins, namespace, own_node


@pytest.fixture
def marker() -> Iterator[str]:
    """The marker of this test; no process with it outlives the test."""
    marker = f"test-{os.urandom(8).hex()}"
    yield marker
    left = orphans(marker)
    for pid in left:
        os.kill(pid, 9)
    assert not left, "plugins outlived the test"


@pytest.fixture
def executor(marker: str) -> PluginExecutor:
    return PluginExecutor(marker=marker)


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    return Plugins(tmp_path / "plugins")


@pytest.fixture
def node() -> Iterator[None]:
    """A node of the test's own: the main network namespace as plugins see it."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with own_node():
        yield


@pytest.fixture
def netns(node: None) -> Iterator[str]:
    """The network namespace of a sandbox."""
    with namespace() as name:
        yield name


@pytest.fixture
def target(plugins: Plugins) -> Target:
    return Target(container_id="cid", netns="/run/netns/a", plugin_folders=(str(plugins.folder), "/opt/cni/bin"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls"
