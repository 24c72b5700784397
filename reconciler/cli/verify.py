"""``plumbline verify``: check that projection, ledger and reality agree, or list the differences."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import msgspec

from events.ledger.ledger import LedgerError
from events.process import logs
from events.process.settings import SettingsError, load
from events.schema import NodeName
from reconciler.cli.errors import exit_with
from reconciler.settings import ReconcilerSettings
from reconciler.verify.reality import PATIENCE
from reconciler.verify.report import lines
from reconciler.verify.run import verify_configured


@click.command("verify")
@click.option("--node", default="", help="Check only this node.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=PATIENCE,
    show_default=True,
    help="Seconds to wait for the answer of a node.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_obj
def command(config: Path | None, node: str, wait: float, as_json: bool) -> None:
    """Compare projection, ledger and reality.

    The command replays the ledger and compares it with the database, asks every node to compare itself with the ledger,
    and reads the network-status of all pods. It repairs nothing itself; it records what it finds, and
    the reconciler may repair that.

    \b
    Examples:
      plumbline verify
      plumbline verify --node worker-1 --wait 60
      plumbline verify --json

    Exit codes: 0 no differences, 1 differences, 2 wrong usage or configuration, 3 no differences, but some checks were
    impossible, 4 the ledger does not answer.
    """
    try:
        settings = load(config, ReconcilerSettings)
        logs.configure_command(settings.log_level)
        report = asyncio.run(verify_configured(settings, NodeName(node), wait))
    except (SettingsError, LedgerError) as error:
        raise exit_with(error) from error
    click.echo(msgspec.json.encode(report).decode() if as_json else "\n".join(lines(report)))
    sys.exit(report.exit_code)
