"""The reconciler beside a node."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from e2e_node import Node

from events.process import die_with_parent


@contextlib.contextmanager
def reconciler(node: Node) -> Iterator[None]:
    """Run the reconciler of *node* meanwhile; what it says goes to the worker's log."""
    repository = Path(__file__).parents[2]
    with node.log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "reconciler", "--config", str(node.config)],
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(repository)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # pytest has no other thread
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            assert process.wait(20) == 0, node.log.read_text()
        finally:
            process.kill()
