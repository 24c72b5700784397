"""``plumbline check-config``: find errors in the configuration before a node does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import exc

from events.process.settings import DEFAULT_PATH, SettingsError, load
from reconciler.settings import ReconcilerSettings

_SECONDS = 30.0


@click.command("check-config")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.pass_obj
def command(configured: Path | None, path: Path | None) -> None:
    """Check the configuration file PATH, and print the effective configuration.

    PATH defaults to the file of --config.

    \b
    Examples:
      plumbline check-config
      plumbline check-config ./config.yaml

    Exit codes: 0 valid, 2 invalid.
    """
    chosen = path or configured or DEFAULT_PATH
    try:
        settings = load(chosen, ReconcilerSettings)
        sa.make_url(settings.database)
    except (SettingsError, exc.ArgumentError) as error:
        problems = [str(error)]
    else:
        problems = _problems_of_worker(chosen)
        if not problems:
            click.echo("configuration is valid")
            click.echo(effective(settings))
            return
    for problem in problems:
        click.echo(problem, err=True)
    raise SystemExit(2)


def effective(settings: ReconcilerSettings) -> str:
    """Return *settings* with all defaults as JSON text, without the database's password."""
    database = sa.make_url(settings.database).render_as_string(hide_password=True)
    shown = replace(settings, node=settings.node_name, reconciler=replace(settings.reconciler, database=database))
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode()


def _problems_of_worker(path: Path) -> list[str]:
    """Return the worker's complaints. It runs as a process: the two share no code."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nodeworker", "--check-config", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"the worker did not check {path} within {_SECONDS:.0f} s"]
    if done.returncode == 0:
        return []
    return done.stderr.splitlines() or [f"the worker refused {path} with exit code {done.returncode} without a message"]
