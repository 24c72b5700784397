"""The adoption's process: the only place that knows the files, the kernel and the ledger of one.

It writes as the node's worker does, so it holds the worker's lock and opens an epoch of its own; each sandbox is one
event, so a run that was cut is continued by the next.
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

from events.ledger.ledger import Ledger, LedgerError
from events.nats.ledger import JetStreamLedger
from events.nats.streams import NODE_STREAM
from events.process import logs
from events.process.settings import DEFAULT_PATH, SettingsError, ledger_address, load
from events.schema import AttachRequested, ContainerId, NodeName, SandboxAdopted, WorkerStarted, WorkerStopped, unix_ns
from nodeworker.host.adopt.places import Places, without_false_claims
from nodeworker.host.adopt.plan import Adoption, Leftover, Refusal, Verdict, judge
from nodeworker.host.adopt.read import Files, Unreadable, read
from nodeworker.host.adopt.settings import AdoptSettings
from nodeworker.journal.journal import Journal
from nodeworker.journal.worker_lock import WorkerRunningError, only_worker, version

log = structlog.get_logger(__name__)

FINISHED = "adoption went through"
"""Why the epoch of an adoption ended that has seen every sandbox."""

_NOT_ALL, _WRONG, _WORKER_RUNS, _NO_LEDGER = 1, 2, 3, 4
_PATIENCE = 5.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: on standard output, for ``plumbline adopt`` to tell."""

    node: NodeName
    dry_run: bool
    ledger_read: bool
    """False: a dry run without a ledger, so nothing is known of what it holds already."""
    adoptions: tuple[Adoption, ...]
    refusals: tuple[Refusal, ...]
    orphans: tuple[str, ...]
    """Files that can't be read and belong to nobody that is known."""
    known: int
    """Sandboxes that are in the ledger already."""
    leftovers: int
    """Sandboxes that are gone and hold nothing."""


class Known(msgspec.Struct):
    """What the ledger has of this already."""

    sandboxes: set[ContainerId] = msgspec.field(default_factory=set[ContainerId])
    """Those that were adopted, or attached by Plumbline itself."""
    adopted_until: int = 0


def find(settings: AdoptSettings, known: Known) -> tuple[list[Verdict], tuple[Unreadable, ...], int]:
    """Return a verdict on each sandbox that is not *known*, the files that belong to none, and how many are known.

    Raises OSError.
    """
    section = settings.adopt
    # The namespaces are looked at after the files: whoever is attached meanwhile is not taken for gone.
    state = read(Path(section.cni_dir), [Path(folder) for folder in section.cache_dirs])
    fresh = [files for files in state.sandboxes if files.container_id not in known.sandboxes]
    places = Places()
    verdicts = [_judge(files, places, settings, known.adopted_until) for files in fresh]
    return verdicts, state.orphans, len(state.sandboxes) - len(fresh)


async def adopt(ledger: Ledger | None, settings: AdoptSettings, *, dry_run: bool) -> Report:
    """Append what has to be in *ledger*, unless it is a *dry_run*, and return what that is.

    Raises LedgerError, OSError.
    """
    known = Known()
    journal = None
    if ledger is not None:
        journal = Journal(ledger, NodeName(settings.node_name))
        known = await _known(journal)
    verdicts, orphans, already = find(settings, known)
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


def _judge(files: Files, places: Places, settings: AdoptSettings, adopted_until: int) -> Verdict:
    place = places.find(files)
    verdict = judge(files, place, bin_dir=settings.worker.network.bin_dir, adopted_until=adopted_until)
    return without_false_claims(verdict, place) if isinstance(verdict, Adoption) else verdict


async def _known(journal: Journal) -> Known:
    known = Known()
    async for stored in journal.load():
        match stored.event.data:
            case SandboxAdopted() | AttachRequested():
                known.sandboxes.add(stored.event.sandbox)
            case WorkerStopped(reason=reason) if reason == FINISHED:
                known.adopted_until = unix_ns(stored.event.at)
            case _:
                pass
    return known


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
    """Take over what Multus attached on this node; return the exit code.

    0: all is taken over; 1: not all, and each that is not has its sentence; 2: configuration; 3: a worker runs; 4: the
    ledger is out of reach.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        logs.configure(settings.log_level if options.output == "log" else "warning", "adopt")
        report = asyncio.run(_run(settings, dry_run=options.dry_run))
    except SettingsError as error:
        return _say(error, _WRONG)
    except WorkerRunningError as error:
        return _say(f"{error}; stop it first: nothing was adopted", _WORKER_RUNS)
    except LedgerError as error:
        return _say(f"{error}; what was adopted until then is, run this again for the rest", _NO_LEDGER)
    except OSError as error:
        return _say(error, _NOT_ALL)
    if options.output == "json":
        sys.stdout.buffer.write(msgspec.json.encode(report))
    else:
        _log(report)
    return _NOT_ALL if report.refusals or report.orphans else 0


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
    """Return the ledger; None: none answers, and none is *needed*. Raises SettingsError, LedgerError."""
    try:
        address = ledger_address(settings)
    except SettingsError:
        if needed or settings.ledger.url:
            raise
        return None
    try:
        async with asyncio.timeout(_PATIENCE):
            return await JetStreamLedger.connect(address, config=NODE_STREAM, name="adopt")
    except TimeoutError:
        if needed:
            raise LedgerError(f"the ledger at {address.url} does not answer: is nats-server running?") from None
        return None


def _settings(options: argparse.Namespace) -> AdoptSettings:
    """Return the settings with what the command line says in their place. Raises SettingsError."""
    settings = load(options.config, AdoptSettings)
    given = {"cni_dir": options.cni_dir, "cache_dirs": tuple(options.cache_dir or ())}
    try:
        section = replace(settings.adopt, **{name: value for name, value in given.items() if value})
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return replace(settings, adopt=section)


def _log(report: Report) -> None:
    """Tell the log what *report* says; never what a plugin was given."""
    for each in report.adoptions:
        plan = each.data.plan
        names = ",".join(attachment.ifname for attachment in plan.attachments)
        told = {"pod": str(plan.pod), "sandbox": each.container_id[:12], "interfaces": names}
        log.info("sandbox_would_be_adopted" if report.dry_run else "sandbox_adopted", **told)
        for note in each.notes:
            log.warning("sandbox_adopted_in_part", **told, note=note)
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


def _say(error: object, exit_code: int) -> int:
    sys.stderr.write(f"plumbline: {error}\n")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plumbline adopt", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    parser.add_argument("--dry-run", action="store_true", help="say what would be adopted, and write nothing")
    parser.add_argument("--cni-dir", metavar="DIR", help="Multus' cniDir (default: /var/lib/cni/multus)")
    parser.add_argument(
        "--cache-dir", metavar="DIR", action="append", help="the runtime's, may be repeated (default: /var/lib/cni)"
    )
    parser.add_argument("--output", choices=("log", "json"), default="log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
