"""``plumbline adopt``: provide a ledger, run the worker's adoption, print its report.

Only the worker's side reads the node and writes the ledger.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from events.exit_codes import ExitCode
from events.nats.server import EmbeddedServer, ServerError
from events.process.settings import Settings, SettingsError, ledger_address, load
from events.schema import NO_CAUSE, ContainerId, Event, EventId, NodeName, Pod, SandboxAdopted
from reconciler.cli.errors import exit_with
from reconciler.history.redact import redacted, without_secrets
from reconciler.history.timeline import printable
from reconciler.history.words import SANDBOX_LETTERS, words


class _Adoption(msgspec.Struct, frozen=True):
    container_id: ContainerId
    data: SandboxAdopted
    notes: tuple[str, ...] = ()


class _Refusal(msgspec.Struct, frozen=True):
    container_id: ContainerId
    problem: str
    pod: Pod = Pod()


class _Report(msgspec.Struct, frozen=True):
    """The report of ``nodeworker.host.adopt``."""

    node: NodeName
    dry_run: bool
    ledger_read: bool
    adoptions: tuple[_Adoption, ...]
    refusals: tuple[_Refusal, ...]
    orphans: tuple[str, ...]
    known: int
    leftovers: int


@click.command("adopt")
@click.option("--dry-run", is_flag=True, help="Print what would be adopted; write nothing.")
@click.option("--cni-dir", metavar="DIR", help="Multus' cniDir. Default: /var/lib/cni/multus.")
@click.option(
    "--cache-dir",
    metavar="DIR",
    multiple=True,
    help="The runtime's cache directory; can be repeated. Default: /var/lib/cni.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def command(config: Path | None, dry_run: bool, cni_dir: str | None, cache_dir: tuple[str, ...], output: str) -> None:
    """Take over the pods that Multus attached on this node. The pods keep running.

    Each pod becomes one event in the ledger, so that DEL, CHECK and repair know it. The files of Multus do not change.
    Stop the worker first. If no ledger runs, the command starts one for its duration. You can repeat the command: it
    skips what is in the ledger.

    \b
    Examples:
      plumbline adopt --dry-run
      plumbline adopt --output json

    \b
    Exit codes:
      0  every pod is taken over
      2  wrong usage or configuration
      3  some are not; one sentence for each says why
      4  the ledger does not answer
      5  a worker runs
    """
    argv = [sys.executable, "-m", "nodeworker.host.adopt", "--output", "json"]
    argv += ["--config", str(config)] if config else []
    argv += ["--dry-run"] if dry_run else []
    argv += ["--cni-dir", cni_dir] if cni_dir else []
    argv += [part for folder in cache_dir for part in ("--cache-dir", folder)]
    try:
        settings = load(config, Settings)
        with contextlib.nullcontext() if dry_run else _ledger(settings):
            done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    except SettingsError as error:
        raise exit_with(error) from error
    except (ServerError, OSError) as error:
        raise exit_with(error, ExitCode.NO_LEDGER) from error
    if done.stdout:
        report = msgspec.json.decode(done.stdout, type=_Report)
        click.echo(_json(report) if output == "json" else "\n".join(_lines(report)))
    sys.exit(done.returncode)


@contextlib.contextmanager
def _ledger(settings: Settings) -> Iterator[None]:
    """Provide a ledger: the running one, or an embedded one. Raises ServerError."""
    if settings.ledger.url or _runs(settings):
        yield
        return
    server = EmbeddedServer(
        settings.store, Path(settings.run_dir), port=settings.ledger.port, max_store=settings.ledger.max_bytes
    )
    server.start()
    try:
        yield
    finally:
        server.stop()


def _runs(settings: Settings) -> bool:
    try:
        address = urlsplit(ledger_address(settings).url)
        socket.create_connection((address.hostname or "", address.port or 0), timeout=1).close()
    except (SettingsError, OSError, ValueError):
        return False
    return True


def _lines(report: _Report) -> Iterator[str]:
    if not report.ledger_read:
        yield "no ledger runs: sandboxes that it may already contain are listed, too"
    for each in report.adoptions:
        yield _line(each.container_id, words(_event(report, each)))
        yield from (_line("", f"note: {without_secrets(note)}") for note in each.notes)
    for refused in report.refusals:
        yield _line(refused.container_id, without_secrets(refused.problem))
    for orphan in report.orphans:
        yield _line("-", f"{orphan}, and belongs to no known sandbox: remove it")
    verb = "would be adopted" if report.dry_run else "adopted"
    yield (
        f"{_count(len(report.adoptions))} {verb}, {len(report.refusals)} not; "
        f"{report.known} in the ledger already, {report.leftovers} gone without resources"
    )


def _json(report: _Report) -> str:
    adopted = [
        {
            "sandbox": each.container_id,
            "data": msgspec.json.decode(redacted(_event(report, each)))["data"],
            "notes": [without_secrets(note) for note in each.notes],
        }
        for each in report.adoptions
    ]
    refused = [
        {"sandbox": each.container_id, "pod": str(each.pod), "problem": without_secrets(each.problem)}
        for each in report.refusals
    ]
    document: dict[str, Any] = {
        "node": report.node,
        "dryRun": report.dry_run,
        "ledgerRead": report.ledger_read,
        "adopted": adopted,
        "refused": refused,
        "orphans": report.orphans,
        "known": report.known,
        "leftovers": report.leftovers,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _event(report: _Report, adoption: _Adoption) -> Event:
    """Return the event for output; the ledger sets its time and epoch."""
    return Event(
        id=EventId(""),
        at="",
        node=report.node,
        boot_id="",
        epoch=0,
        sandbox=adoption.container_id,
        cause=NO_CAUSE,
        trace="",
        data=adoption.data,
    )


def _line(sandbox: str, text: str) -> str:
    return f"{printable(sandbox[:SANDBOX_LETTERS]):<{SANDBOX_LETTERS}}  {printable(text)}"


def _count(number: int) -> str:
    return f"{number} sandbox{'' if number == 1 else 'es'}"
