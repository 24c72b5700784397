"""``plumbline check-config``: find errors in the configuration before a node does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import click
import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import exc

from events.exit_codes import ExitCode
from events.process.settings import DEFAULT_PATH, SettingsError, load, missing_files
from reconciler.settings import ReconcilerSettings

_SECONDS = 30.0
_HEADER = ("KEY", "VALUE", "FROM")


class _Worker(msgspec.Struct, frozen=True):
    """What the worker says of the file; see ``nodeworker.settings.Checked``."""

    sections: dict[str, Any]
    missing: list[str]
    notes: list[str]


@click.command("check-config")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
@click.option("--elsewhere", is_flag=True, help="The file is for another machine: do not look for files that it names.")
@click.pass_obj
def command(configured: Path | None, path: Path | None, output: str, elsewhere: bool) -> None:
    """Check the configuration file PATH, and print the effective configuration.

    PATH defaults to the file of --config. Every mistake is one sentence on standard error.

    \b
    Examples:
      plumbline check-config
      plumbline check-config ./plumbline.json --elsewhere
      plumbline check-config -o json

    Exit codes: 0 valid, 2 invalid.
    """
    chosen = path or configured or DEFAULT_PATH
    try:
        settings = load(chosen, ReconcilerSettings)
        sa.make_url(settings.database)
        worker = _ask_worker(chosen)
    except (SettingsError, exc.ArgumentError) as error:
        _refuse([str(error)])
    if not elsewhere and (missing := dict.fromkeys((*missing_files(settings), *worker.missing))):
        _refuse([f"{chosen}: {each}" for each in missing])
    for note in worker.notes:
        click.echo(f"{chosen}: {note}", err=True)
    effective = _effective(settings) | worker.sections
    click.echo(
        msgspec.json.format(msgspec.json.encode(effective), indent=2) if output == "json" else _table(effective, chosen)
    )


def _refuse(problems: list[str]) -> NoReturn:
    for problem in problems:
        click.echo(f"plumbline: {problem}", err=True)
    raise SystemExit(ExitCode.WRONG)


def _effective(settings: ReconcilerSettings) -> dict[str, Any]:
    """Return *settings* with all defaults, without the database's password."""
    database = sa.make_url(settings.database).render_as_string(hide_password=True)
    shown = replace(settings, node=settings.node_name, reconciler=replace(settings.reconciler, database=database))
    return cast("dict[str, Any]", msgspec.to_builtins(shown))


def _table(effective: Mapping[str, Any], path: Path) -> str:
    """Return one line for each setting: its key, its value, and whether the file gives it."""
    given = cast("dict[str, Any]", msgspec.json.decode(path.read_bytes()))
    rows = [_HEADER, *((key, _shown(value), _origin(key, given)) for key, value in _leaves(effective))]
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{key:{key_width}}  {value:{value_width}}  {origin}" for key, value, origin in rows)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(cast("dict[str, Any]", inner), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else msgspec.json.encode(value).decode()


def _origin(key: str, given: object) -> str:
    found = given
    for part in key.split("."):
        found = cast("dict[str, Any]", found).get(part) if isinstance(found, dict) else None
    if found is not None:
        return "file"
    return "PLUMBLINE_NODE" if key == "node" and os.environ.get("PLUMBLINE_NODE") else "default"


def _ask_worker(path: Path) -> _Worker:
    """Return what the worker says of the file; it runs as a process, because the two share no code.

    Raises SettingsError.
    """
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
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout, type=_Worker)
    except subprocess.TimeoutExpired:
        raise SettingsError(f"the worker did not check {path} within {_SECONDS:.0f} s") from None
    except msgspec.MsgspecError as error:
        raise SettingsError(f"the worker's answer about {path} can't be read: {error}") from error
    said = done.stderr.strip().removeprefix("plumbline-worker: ")
    raise SettingsError(said or f"the worker refused {path} with exit code {done.returncode} without a message")
