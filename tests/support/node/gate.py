"""A plugin that waits for the test in the middle of a command."""

from __future__ import annotations

from pathlib import Path

from tests.support.node.runtime import PLUGINS
from tests.support.waiting import eventually


class Gate:
    """A plugin that reports its call, waits for ``open``, and then becomes another plugin."""

    def __init__(self, bin_dir: Path, plugin: str, command: str) -> None:
        self.type = f"gated-{plugin}"
        self._started = bin_dir / f"{self.type}.started"
        self._open = bin_dir / f"{self.type}.open"
        for left in (self._started, self._open):  # by an earlier gate of the same node
            left.unlink(missing_ok=True)
        script = bin_dir / self.type
        script.write_text(
            f"#!/bin/sh\nif [ $CNI_COMMAND = {command} ]; then echo $PPID > {self._started}.new; "
            f"mv {self._started}.new {self._started}; "
            f"while [ ! -e {self._open} ]; do sleep 0.01; done; fi\nexec {PLUGINS / plugin}\n"
        )
        script.chmod(0o755)

    def reached(self) -> int:
        """Wait for the call of the plugin; return the process ID of its caller."""
        eventually(self._started.exists, f"{self.type} is called")
        return int(self._started.read_text())

    def open(self) -> None:
        """Continue the plugin."""
        self._open.touch()
