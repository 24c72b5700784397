"""A node for tests that kill its worker."""

from __future__ import annotations

import pytest

from tests.support.node.kill_points import EXECUTED, NATIVE
from tests.support.node.node import MakeNode, Node


@pytest.fixture(params=[NATIVE, EXECUTED], ids=["native", "executed"])
def node(make_node: MakeNode, request: pytest.FixtureRequest) -> Node:
    """A node whose worker does not run yet. It makes interfaces itself, or it executes plugins."""
    return make_node(native=request.param)
