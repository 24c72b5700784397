"""``plumbline install``: the worker's side has the binary and knows the keys, so this becomes a process of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click


def become(name: str, config: Path | None, arguments: tuple[str, ...]) -> NoReturn:
    """Go on as the installer's command *name*: signals and exit code are its own."""
    chosen = ["--config", str(config)] if config else []
    os.execv(  # noqa: S606  # no shell is wanted
        sys.executable, [sys.executable, "-m", "nodeworker.host.install", *chosen, name, *arguments]
    )


@click.command(
    "install",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Have the container runtime call Plumbline.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(config: Path | None, arguments: tuple[str, ...]) -> None:
    """Install the entry point and its configuration."""
    become("install", config, arguments)
