"""``plumbline install`` and ``plumbline uninstall``: this process becomes the installer of the worker.

The worker's side has the entry point and knows its settings.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

_PASS_THROUGH = {"ignore_unknown_options": True}


def _become(name: str, config: Path | None, arguments: tuple[str, ...]) -> NoReturn:
    """Replace this process by the installer's command *name*, which then gets all signals and sets the exit code."""
    chosen = ["--config", str(config)] if config else []
    os.execv(  # noqa: S606  # no shell is needed
        sys.executable, [sys.executable, "-m", "nodeworker.host.install", *chosen, name, *arguments]
    )


@click.command(
    "install",
    add_help_option=False,
    context_settings=_PASS_THROUGH,
    short_help="Configure the container runtime to call Plumbline.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def install(config: Path | None, arguments: tuple[str, ...]) -> None:
    """Install the entry point and the CNI configuration."""
    _become("install", config, arguments)


@click.command(
    "uninstall",
    add_help_option=False,
    context_settings=_PASS_THROUGH,
    short_help="Restore the container runtime's previous configuration.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def uninstall(config: Path | None, arguments: tuple[str, ...]) -> None:
    """Remove the CNI configuration, then the entry point."""
    _become("uninstall", config, arguments)
