"""The reconciler beside a node."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from events.process.child_process import die_with_parent
from tests.support.node.kernel import eventually
from tests.support.node.node import Node
from tests.support.repository import REPOSITORY


@contextlib.contextmanager
def reconciler(node: Node) -> Iterator[None]:
    """Run the reconciler of *node* meanwhile; what it says goes to the worker's log."""
    before = _ready(node)
    with node.log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "reconciler", "--config", str(node.config)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # pytest has no other thread
        )
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
