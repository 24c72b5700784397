"""The process of an adoption: it connects the files, the kernel and the ledger.

It writes events as the node's worker, so it takes the worker's lock and opens a new epoch. Each sandbox is one
event, so the next run continues an interrupted one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from events.exit_codes import ExitCode
from events.ledger.ledger import Ledger, LedgerError
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.settings import SettingsError, add_config_option, ledger_address, load
from events.schema import AttachRequested, ContainerId, NodeName, SandboxAdopted, WorkerStarted, WorkerStopped, unix_ns
from nodeworker.host.adopt.namespaces import NamespaceFinder, without_false_claims
from nodeworker.host.adopt.plan import Adoption, Leftover, Refusal, Verdict, judge
from nodeworker.host.adopt.read import SandboxFiles, Unreadable, read_state
from nodeworker.host.adopt.settings import AdoptSettings
from nodeworker.journal.journal import Journal
from nodeworker.journal.worker_lock import WorkerRunningError, only_worker, version

log = structlog.get_logger(__name__)

FINISHED = "adoption went through"
"""The reason in ``WorkerStopped`` of an adoption that has processed every sandbox."""

_CONNECT_TIMEOUT = 5.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run: JSON on standard output, which ``plumbline adopt`` prints for people."""

    node: NodeName
    dry_run: bool
    ledger_read: bool
    """False: a dry run without a ledger, so sandboxes that it has already are not known."""
    adoptions: tuple[Adoption, ...]
    refusals: tuple[Refusal, ...]
    orphans: tuple[str, ...]
    """Files that can't be read and belong to no known sandbox."""
    known: int
    """Sandboxes that are in the ledger already."""
    leftovers: int
    """Sandboxes that are gone and hold nothing."""


class Recorded(msgspec.Struct):
    """What the ledger has already."""

    sandboxes: set[ContainerId] = msgspec.field(default_factory=set[ContainerId])
    """Sandboxes that were adopted, or attached by Plumbline."""
    adopted_until: int = 0


def find(settings: AdoptSettings, recorded: Recorded) -> tuple[list[Verdict], tuple[Unreadable, ...], int]:
    """Return verdicts on the sandboxes that are not *recorded*, the files that belong to none, and how many are.

    Raises OSError.
    """
    section = settings.adopt
    # Read the files before the namespaces: a sandbox that is attached meanwhile is not considered removed.
    state = read_state(Path(section.cni_dir), [Path(folder) for folder in section.cache_dirs])
    new = [files for files in state.sandboxes if files.container_id not in recorded.sandboxes]
    finder = NamespaceFinder()
    verdicts = [_judge(files, finder, settings, recorded.adopted_until) for files in new]
    return verdicts, state.orphans, len(state.sandboxes) - len(new)


async def adopt(ledger: Ledger | None, settings: AdoptSettings, *, dry_run: bool) -> Report:
    """Append the adoptions to *ledger*, unless it is a *dry_run*; return what they are.

    Raises LedgerError, OSError.
    """
    recorded = Recorded()
    journal = None
    if ledger is not None:
        journal = Journal(ledger, NodeName(settings.node_name))
        recorded = await _recorded(journal)
    verdicts, orphans, already = find(settings, recorded)
    adoptions = tuple(each for each in verdicts if isinstance(each, Adoption))
    if adoptions and not dry_run:
        assert journal is not None
        await _record(journal, adoptions, settings)
    return Report(
        node=NodeName(settings.node_name),
        dry_run=dry_run,
        ledger_read=ledger is not None,
        adoptions=adoptions,
        refusals=tuple(each for each in verdicts if isinstance(each, Refusal)),
        orphans=tuple(map(str, orphans)),
        known=already,
        leftovers=sum(isinstance(each, Leftover) for each in verdicts),
    )


def _judge(files: SandboxFiles, finder: NamespaceFinder, settings: AdoptSettings, adopted_until: int) -> Verdict:
    namespace = finder.find(files)
    verdict = judge(
        files,
        namespace,
        bin_dir=settings.worker.bin_dir,
        system_namespaces=settings.worker.system_namespaces,
        adopted_until=adopted_until,
    )
    return without_false_claims(verdict, namespace) if isinstance(verdict, Adoption) else verdict


async def _recorded(journal: Journal) -> Recorded:
    recorded = Recorded()
    async for stored in journal.load():
        match stored.event.data:
            case SandboxAdopted() | AttachRequested():
                recorded.sandboxes.add(stored.event.sandbox)
            case WorkerStopped(reason=reason) if reason == FINISHED:
                recorded.adopted_until = unix_ns(stored.event.at)
            case _:
                pass
    return recorded


async def _record(journal: Journal, adoptions: Sequence[Adoption], settings: AdoptSettings) -> None:
    try:
        pending = len(journal.state.pending)
        await journal.open_epoch(WorkerStarted(version=version(), pid=os.getpid(), pending=pending))
        for adoption in adoptions:
            await journal.record(adoption.data, adoption.container_id)
        await journal.record(WorkerStopped(reason=FINISHED))
    finally:
        await journal.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Adopt the pods that Multus attached on this node; return the exit code.

    ``IN_PART``: some are not, each with a reason; ``BUSY``: a worker runs.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        logs.configure(settings.log_level if options.output == "log" else "warning", "adopt")
        report = asyncio.run(_run(settings, dry_run=options.dry_run))
    except SettingsError as error:
        return _say(error, error.exit_code)
    except WorkerRunningError as error:
        return _say(f"{error}; stop it first: nothing was adopted", ExitCode.BUSY)
    except LedgerError as error:
        return _say(f"{error}; some sandboxes may be adopted already, run this again for the rest", ExitCode.NO_LEDGER)
    except OSError as error:
        return _say(error, ExitCode.FAILED)
    if options.output == "json":
        sys.stdout.buffer.write(msgspec.json.encode(report))
    else:
        _log(report)
    return ExitCode.IN_PART if report.refusals or report.orphans else ExitCode.DONE


async def _run(settings: AdoptSettings, *, dry_run: bool) -> Report:
    """Connect, and adopt. Raises SettingsError, WorkerRunningError, LedgerError, OSError."""
    with contextlib.nullcontext() if dry_run else only_worker(Path(settings.run_dir)):
        ledger = await _connected(settings, needed=not dry_run)
        try:
            return await adopt(ledger, settings, dry_run=dry_run)
        finally:
            if ledger is not None:
                await ledger.close()


async def _connected(settings: AdoptSettings, *, needed: bool) -> JetStreamLedger | None:
    """Return the ledger; None: it does not answer, and is not *needed*. Raises SettingsError, LedgerError."""
    try:
        address = ledger_address(settings)
    except SettingsError:
        if needed or settings.ledger.url:
            raise
        return None
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await JetStreamLedger.connect(address, config=NODE_STREAM, name="adopt")
    except TimeoutError:
        if needed:
            raise LedgerError(
                f"no ledger answers at {address.url}: is `plumbline up`, or its nats-server, running?"
            ) from None
        return None


def _settings(options: argparse.Namespace) -> AdoptSettings:
    """Return the settings, with the command line's options first. Raises SettingsError."""
    settings = load(options.config, AdoptSettings)
    options_set = {"cni_dir": options.cni_dir, "cache_dirs": tuple(options.cache_dir or ())}
    try:
        section = replace(settings.adopt, **{name: value for name, value in options_set.items() if value})
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return replace(settings, adopt=section)


def _log(report: Report) -> None:
    """Log the *report*, without the plugins' configurations: they may contain secrets."""
    for each in report.adoptions:
        plan = each.data.plan
        names = ",".join(attachment.ifname for attachment in plan.attachments)
        fields = {"pod": str(plan.pod), "sandbox": each.container_id[:12], "interfaces": names}
        log.info("sandbox_would_be_adopted" if report.dry_run else "sandbox_adopted", **fields)
        for note in each.notes:
            log.warning("sandbox_adopted_in_part", **fields, note=note)
    for each in report.refusals:
        log.error("sandbox_not_adopted", pod=str(each.pod), sandbox=each.container_id[:12], error=each.problem)
    for orphan in report.orphans:
        log.error("file_not_understood", error=orphan)
    log.info(
        "adoption_done",
        adopted=len(report.adoptions),
        refused=len(report.refusals),
        known=report.known,
        leftovers=report.leftovers,
    )


def _say(error: object, exit_code: ExitCode) -> int:
    sys.stderr.write(f"plumbline: {error}\n")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plumbline adopt", allow_abbrev=False, description=main.__doc__)
    add_config_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="report what would be adopted, and write nothing")
    parser.add_argument("--cni-dir", metavar="DIR", help="Multus' cniDir (default: /var/lib/cni/multus)")
    parser.add_argument(
        "--cache-dir", metavar="DIR", action="append", help="the runtime's; may be repeated (default: /var/lib/cni)"
    )
    parser.add_argument("--output", choices=("log", "json"), default="log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
