"""``plumbline``: one command line, one module for each command."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from events.settings import DEFAULT_PATH

COMMANDS = ("adopt", "check-config", "install", "rebuild", "snapshot", "timeline", "uninstall", "up", "verify")
"""Each is the object ``command`` of the module of that name; it is imported when it is asked for."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"reconciler.cli.{cmd_name.replace('-', '_')}").command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Configuration file. Default: {DEFAULT_PATH}, if it is there.",
)
@click.version_option(package_name="plumbline")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Tell what the ledger knows, and run what writes it.

    Exit codes: 0 done, 1 not found, 2 wrong usage or configuration, 4 the ledger is out of reach, 130 interrupted.
    """
    ctx.obj = config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
