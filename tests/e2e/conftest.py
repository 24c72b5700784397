"""A node for each end-to-end test; afterwards no request is open and nothing is left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node.node import MakeNode, Node, prove_clean
from tests.support.node.runtime import PLUGINS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as end-to-end tests."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def shim(entry_point: Path) -> Path:
    """The entry point; skips the test without root or plugins."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not (PLUGINS / "bridge").exists():
        pytest.skip(f"there are no plugins in {PLUGINS}: install Debian's package containernetworking-plugins")
    return entry_point


@pytest.fixture
def make_node(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeNode]:
    """Make nodes without a worker, each with its own settings."""
    with contextlib.ExitStack() as stack:
        made: list[Node] = []

        def make(**settings: Any) -> Node:
            node = stack.enter_context(Node(tmp_path_factory.mktemp("n"), shim, **settings).entered())
            made.append(node)
            return node

        yield make
        for node in made:
            prove_clean(node)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node with a running worker."""
    node = make_node()
    node.start()
    return node


@pytest.fixture
def executing_node(make_node: MakeNode) -> Node:
    """A node with a running worker that executes every plugin."""
    node = make_node(native="never")
    node.start()
    return node


@pytest.fixture(scope="module")
def module_node(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node behind ``shared_node``."""
    with Node(tmp_path_factory.mktemp("n"), shim, delegateTimeout=2).entered() as node:
        node.start()
        yield node


@pytest.fixture
def shared_node(module_node: Node) -> Iterator[Node]:
    """One node with a running worker for the tests of a module, with a *delegateTimeout* of 2 s."""
    yield module_node
    prove_clean(module_node)


@pytest.fixture
def held(held_node: Node) -> Iterator[Node]:
    """The module's ``held_node``, whose drift is repaired; afterwards nothing is left on it."""
    yield held_node
    prove_clean(held_node)
