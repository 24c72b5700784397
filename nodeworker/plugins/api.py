"""The interface by which the worker runs plugins, native or executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from events.schema import ErrorClass, PlannedAttachment, PluginRun


class PluginError(Exception):
    """A plugin could not be run to its end; its text is one sentence that names the plugin."""

    def __init__(self, error_class: ErrorClass, message: str, run: PluginRun | None = None) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.run = run
        """None when it was never started."""


class Runner(Protocol):
    """Runs a plugin, natively or by executing it."""

    async def run(
        self,
        plugin_type: str,
        *,
        command: str,
        env: Mapping[str, str],
        stdin: bytes,
        plugin_folders: Sequence[str],
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[PluginRun, bytes]:
        """Return how *plugin_type* ran, whatever its exit code, and all that it printed on standard output.

        *plugin_folders* are the folders with plugin binaries. Raises PluginError.

        *timeout*: seconds after which an executed plugin is killed. A native plugin is not ended once it was started.
        """
        ...


class Runners(Protocol):
    """Chooses the runner of a plugin. *config* is its rendered configuration, *native* what was planned for it."""

    def runner(self, config: str, native: bool, plugin_folders: Sequence[str]) -> Runner:
        """Return the runner of the plugin."""
        ...

    def require(self, config: str, native: bool, plugin_folders: Sequence[str]) -> None:
        """Raise PluginError (plugin_missing) unless everything that the plugin needs is installed."""
        ...

    def is_one_pool_job(self, attachment: PlannedAttachment) -> bool:
        """Return whether the ADD of *attachment* is one job of the native pool, and so is its DEL.

        A chain is several jobs, also if all its plugins are native. An attachment with device information is none: its
        file is prepared before the ADD and read after it. Two things follow. Several such ADDs are submitted
        together: the pool does them in order. And each of their effects is recorded in the event of the outcome if no
        other event comes before it, else as its own event: they take little time, and a repeated ADD or DEL finds what
        is there.
        """
        ...

    async def remove_links(self, attachments: Sequence[PlannedAttachment], netns: str) -> None:
        """Remove the links of the first *attachments* together, where the plugins allow that before their DEL.

        It saves time; each DEL still follows, removes the rest, and reports what could not be removed.
        """
        ...
