"""``plumbline timeline``: read a pod's history from the ledger, which outlives pods, nodes and databases."""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from events import subjects
from events.ledger.anomalies import LISTED, Anomaly
from events.ledger.ledger import Ledger, LedgerError
from events.nats.ledger import connect_or_fail
from events.process import logs
from events.process.settings import Settings, SettingsError, load
from events.schema import Stored, rfc3339
from reconciler.cli.errors import exit_with
from reconciler.follow.connections import nearest_ledger
from reconciler.history.catalog import Catalog, NotFoundError
from reconciler.history.redact import redacted
from reconciler.history.timeline import Line, Timeline

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_NAMING = ("AttachRequested", "DetachRequested", "SandboxAdopted")
"""Event types that name a pod before all others."""


class _Since(click.ParamType):
    name = "duration|time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return rfc3339(_nanoseconds(value))
        except (ValueError, OverflowError):  # also for dates before the calendar's beginning
            self.fail(f"{value!r} is neither a duration like 1h30m nor a time like 2026-08-20T03:14:00Z", param, ctx)


def _nanoseconds(value: str) -> int:
    """Return the time in nanoseconds since 1970. Raises ValueError, OverflowError."""
    match = _DURATION.fullmatch(value)
    if match is not None and value:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        ago = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        return time.time_ns() - ago * 1_000_000_000
    then = datetime.fromisoformat(value)
    return int(then.replace(tzinfo=then.tzinfo or UTC).timestamp() * 1e6) * 1000


@click.command("timeline")
@click.argument("pod", required=False)
@click.option("--since", type=_Since(), help="Skip older events: 5m, 1h30m, 2d, or an RFC 3339 time.")
@click.option("--follow", "-f", is_flag=True, help="Continue with new events.")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line as JSON, without secrets.")
@click.pass_obj
def command(config: Path | None, pod: str | None, since: str | None, follow: bool, as_json: bool) -> None:
    """Show what happened to POD, or to everything in the ledger.

    POD is namespace/name, a name (in the namespace default, else in the only namespace that has it), or the beginning
    of a container ID. Deleted pods are included, as long as the ledger keeps their events.

    \b
    Examples:
      plumbline timeline default/web
      plumbline timeline web --since 1h30m --follow
      plumbline timeline 3f2a91c07d11 --json

    Exit codes: 0 done, 1 no such pod, 2 wrong usage or configuration, 4 the ledger does not answer.
    """
    try:
        settings = load(config, Settings)
        logs.configure(settings.log_level if settings.log_level != "info" else "warning", "cli")
        asyncio.run(_run(settings, pod or "", since or "", _Printer(as_json=as_json), follow=follow))
    except NotFoundError as error:
        raise exit_with(error, 1) from error
    except SettingsError as error:
        raise exit_with(error, 2) from error
    except LedgerError as error:
        raise exit_with(error, 4) from error


class _Printer:
    """Prints lines: with colour on a terminal, else plain."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)

    def print(self, lines: Sequence[Line], stored: Stored) -> None:
        if self._as_json:
            click.echo(redacted(stored.event))
            return
        for line in lines:
            if self._console.is_terminal:
                self._console.print(Text(str(line), style="red" if line.failed else ""))
            else:
                click.echo(str(line))


async def _run(settings: Settings, wanted: str, since: str, printer: _Printer, *, follow: bool) -> None:
    ledger = await connect_or_fail(*nearest_ledger(settings), "plumbline-cli", _tell_anomaly)
    try:
        timeline = Timeline()
        async with aclosing(history(ledger, wanted, follow=follow)) as events:
            async for stored in events:
                lines = timeline.lines(stored)
                if stored.event.at >= since:
                    printer.print(lines, stored)
    finally:
        await ledger.close()


def _tell_anomaly(anomaly: Anomaly) -> None:
    """Print a message that is no event to standard error, unless there are many."""
    if anomaly.number <= LISTED:
        click.echo(f"anomaly: {anomaly}", err=True)
    elif anomaly.number == LISTED + 1:
        click.echo("anomaly: … and more", err=True)


async def history(ledger: Ledger, wanted: str, *, follow: bool) -> AsyncGenerator[Stored, None]:
    """Yield the events of *wanted* (empty: all) in ledger order. *follow*: then yield new ones until closed.

    Raises NotFoundError.
    """
    end = await ledger.last_sequence()
    catalog = Catalog()
    if not wanted:
        async for stored in _until(end, ledger.read()):
            yield stored
    else:
        for name in _NAMING:
            async for stored in _until(end, ledger.read(subjects.pattern(event_type=name))):
                catalog.add(stored.event)
        wanted = catalog.resolve(wanted)
        for stored in await _collect(ledger, catalog, wanted, end):
            yield stored
    if not follow:
        return
    async with aclosing(ledger.follow(after=end)) as events:
        async for stored in events:
            catalog.add(stored.event)
            if not wanted or stored.event.sandbox in catalog.sandboxes(wanted):
                yield stored


async def _collect(ledger: Ledger, catalog: Catalog, wanted: str, end: int) -> list[Stored]:
    histories = [
        [stored async for stored in _until(end, ledger.read(subjects.pattern(sandbox=sandbox)))]
        for sandbox in catalog.sandboxes(wanted)
    ]
    return list(heapq.merge(*histories, key=lambda stored: stored.sequence))


async def _until(end: int, source: AsyncGenerator[Stored, None]) -> AsyncGenerator[Stored, None]:
    async with aclosing(source):
        async for stored in source:
            if stored.sequence > end:
                return
            yield stored
