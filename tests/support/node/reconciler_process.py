"""The reconciler beside a node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.node.node import Node
from tests.support.run.fork_server import RECONCILER
from tests.support.waiting import eventually


@contextlib.contextmanager
def reconciler(node: Node) -> Iterator[None]:
    """Run the reconciler of *node* for the duration of the context; it writes to the worker's log."""
    before = _ready(node)
    with node.log.open("ab") as said:
        process = RECONCILER.start("-m", "reconciler", "--config", str(node.config), stdout=said, stderr=said)
    try:
        eventually(lambda: process.poll() is not None or _ready(node) > before, "the reconciler is ready", 30)
        yield
    finally:
        process.terminate()
        try:
            assert process.wait(20) == 0, node.log.read_text()
        finally:
            process.kill()


def _ready(node: Node) -> int:
    return node.log.read_text().count("event=reconciler_ready")
