"""``plumbline rebuild`` and ``plumbline snapshot``: rebuild the projection, and save a starting point for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from events.exit_codes import ExitCode
from events.ledger.ledger import LedgerError
from events.nats.ledger import connect_or_fail
from events.nats.read_ahead import ReadAhead
from events.process import logs
from events.process.settings import SettingsError, load
from reconciler.cli.errors import exit_with
from reconciler.follow.connections import whole_ledger
from reconciler.projection.batching import collect_garbage_rarely
from reconciler.projection.rebuild.rebuild import rebuild as rebuild_projection
from reconciler.projection.rebuild.snapshot import save
from reconciler.projection.sql.engine import DatabaseUnavailableError, ProjectionError
from reconciler.settings import ReconcilerSettings


@click.command("rebuild")
@click.option(
    "--snapshot",
    "start_from",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Start from this snapshot instead of the ledger's first event.",
)
@click.pass_obj
def rebuild(config: Path | None, start_from: Path | None) -> None:
    """Rebuild the reconciler's database from the ledger.

    The new database replaces the old one when it has caught up. The reconciler can keep running.

    \b
    Examples:
      plumbline rebuild
      plumbline rebuild --snapshot /backup/plumbline.snapshot

    Exit codes: 0 done, 2 wrong configuration or unusable file, 4 ledger or database does not answer.
    """
    done = _run(lambda settings: asyncio.run(_rebuild(settings, start_from)), config)
    click.echo(f"rebuilt up to sequence {done}")


@click.command("snapshot")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def snapshot(config: Path | None, file: Path) -> None:
    """Save live sandboxes, open requests and open leaks to FILE.

    `plumbline rebuild --snapshot FILE` then needs no older part of the ledger.

    \b
    Example:
      plumbline snapshot /backup/plumbline.snapshot

    Exit codes: 0 done, 2 wrong configuration or unusable database, 4 the database does not answer.
    """
    done = _run(lambda settings: save(settings.database, file), config)
    click.echo(f"snapshot of sequence {done}")


def _run(work: Callable[[ReconcilerSettings], int], config: Path | None) -> int:
    try:
        settings = load(config, ReconcilerSettings)
        logs.configure_command(settings.log_level)
        return work(settings)
    except DatabaseUnavailableError as error:
        raise exit_with(error, ExitCode.NO_LEDGER) from error
    except ProjectionError as error:
        raise exit_with(error, ExitCode.WRONG) from error
    except (SettingsError, LedgerError) as error:
        raise exit_with(error) from error


async def _rebuild(settings: ReconcilerSettings, start_from: Path | None) -> int:
    collect_garbage_rarely()
    address, config = whole_ledger(settings)
    ledger = await connect_or_fail(address, config, "plumbline-cli")
    columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("events", total=None)
            return await rebuild_projection(
                settings.database,
                ReadAhead(ledger, address),
                ledger.stream,
                lambda done, end: bar.update(task, completed=done, total=end),
                start_from,
            )
    finally:
        await ledger.close()
