"""``plumbline``: the command line. Each command is in a module of this package."""

from __future__ import annotations

import errno
import importlib
import io
import sys
from pathlib import Path
from typing import Any

import click

from events.exit_codes import ExitCode
from events.process.settings import DEFAULT_PATH
from reconciler.cli.errors import exit_with

COMMANDS = {
    "adopt": "adopt:command",
    "check-config": "check_config:command",
    "install": "install:install",
    "rebuild": "rebuild:rebuild",
    "snapshot": "rebuild:snapshot",
    "timeline": "timeline:command",
    "uninstall": "install:uninstall",
    "up": "up:command",
    "verify": "verify:command",
}
"""Module and object of each command. A module is imported when its command is used: imports take time."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(importlib.import_module(f"reconciler.cli.{module}"), name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. An interrupt or a refused file access ends every command in the same way."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal can't show must not break the output
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(ExitCode.INTERRUPTED) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader closed the pipe: click ends silently
            raise exit_with(error) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Configuration file. Default: {DEFAULT_PATH}, if it exists.",
)
@click.version_option(package_name="plumbline")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Show what the ledger knows, and run the processes that write it.

    \b
    Examples:
      plumbline up
      plumbline timeline default/web
      plumbline verify

    \b
    Exit codes, of every command:
      0    done; for a check: all is as it should be
      1    not found, or not possible; for a check: something differs
      2    wrong usage, wrong configuration, or a file that can't be used
      3    a part could not be done or checked; a sentence for each says which
      4    the ledger, or the database, does not answer
      5    another process of Plumbline is in the way
      130  interrupted
    """
    ctx.obj = config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
