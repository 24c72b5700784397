"""``plumbline uninstall``: the mirror of ``plumbline install``."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.install import become


@click.command(
    "uninstall",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Give the container runtime back what it had.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(config: Path | None, arguments: tuple[str, ...]) -> None:
    """Remove the configuration, then the entry point."""
    become("uninstall", config, arguments)
