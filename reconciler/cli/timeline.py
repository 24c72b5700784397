"""``plumbline timeline``: read a pod's history from the ledger, which outlives pods, nodes and databases."""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from events import subjects
from events.ledger.anomalies import LISTED, Anomaly
from events.ledger.ledger import Ledger, LedgerError, LedgerUnavailableError
from events.nats.ledger import JetStreamLedger, connect_or_fail
from events.process import logs
from events.process.settings import Settings, SettingsError, load
from events.schema import Stored, rfc3339
from reconciler.cli.errors import exit_with
from reconciler.follow.connections import nearest_ledger
from reconciler.history.catalog import Catalog, NotFoundError
from reconciler.history.redact import redacted
from reconciler.history.timeline import HEADER, Line, Timeline

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_HELD = 1000
"""Lines: a ledger may have more than fit the memory."""
_LOST, _LOOK = 10.0, 0.5
"""Seconds after which ``--follow`` ends without a connection, and between two looks."""
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

    Exit codes: 0 done, 1 no such pod, 2 wrong usage or configuration, 4 the ledger does not answer, or was lost.
    """
    try:
        settings = load(config, Settings)
        logs.configure_command(settings.log_level)
        asyncio.run(_run(settings, pod or "", since or "", _Printer(as_json=as_json), follow=follow))
    except (NotFoundError, SettingsError, LedgerError) as error:
        raise exit_with(error) from error


class _Printer:
    """Prints lines in columns under a header: with colour on a terminal, else plain.

    It holds lines until ``flush``, at most ``_HELD``, because a column is as wide as its widest cell so far.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)
        self._held: list[tuple[tuple[str, ...], str]] = [(HEADER, "bold")]
        self._widths = (0,) * len(HEADER)

    def print(self, lines: Sequence[Line], stored: Stored) -> None:
        if self._as_json:
            click.echo(redacted(stored.event))
            return
        self._held += [(line.cells, "red" if line.failed else "") for line in lines]
        if len(self._held) > _HELD:
            self.flush()

    def flush(self) -> None:
        """Print what is held; the header only with the first line."""
        if len(self._held) == 1 and self._held[0][0] is HEADER:
            return
        for cells, _ in self._held:
            self._widths = tuple(map(max, self._widths, map(len, cells)))
        for cells, style in self._held:
            line = "  ".join(map(str.ljust, cells, self._widths)).rstrip()
            if self._console.is_terminal:
                self._console.print(Text(line, style=style))
            else:
                click.echo(line)
        self._held.clear()


async def _run(settings: Settings, wanted: str, since: str, printer: _Printer, *, follow: bool) -> None:
    ledger = await connect_or_fail(*nearest_ledger(settings), "plumbline-cli", _tell_anomaly)
    timeline, wanted_events = Timeline(), WantedEvents(ledger, wanted)

    def show(stored: Stored) -> None:
        lines = timeline.lines(stored)
        if stored.event.at >= since:
            printer.print(lines, stored)

    async def show_new() -> None:
        async with aclosing(wanted_events.follow()) as events:
            async for stored in events:
                show(stored)
                printer.flush()

    try:
        async with aclosing(wanted_events.history()) as events:
            async for stored in events:
                show(stored)
        printer.flush()
        if follow:
            await _first_to_end(show_new(), _fail_when_lost(ledger))
    finally:
        await ledger.close()


def _tell_anomaly(anomaly: Anomaly) -> None:
    """Print a message that is no event to standard error, unless there are many."""
    if anomaly.number <= LISTED:
        click.echo(f"anomaly: {anomaly}", err=True)
    elif anomaly.number == LISTED + 1:
        click.echo("anomaly: … and more", err=True)


async def _first_to_end(*coroutines: Coroutine[None, None, None]) -> None:
    """Return when the first of *coroutines* does, or raise what it raises; the others are cancelled."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fail_when_lost(ledger: JetStreamLedger) -> None:
    """Raise LedgerUnavailableError when *ledger* was not connected for ``_LOST`` seconds."""
    away = 0.0
    while away < _LOST:
        await asyncio.sleep(_LOOK)
        away = 0.0 if ledger.connected else away + _LOOK
    raise LedgerUnavailableError("the ledger was lost: its server has not answered since; start the command again")


class WantedEvents:
    """The events of *wanted* (empty: all) in ledger order."""

    def __init__(self, ledger: Ledger, wanted: str) -> None:
        self._ledger = ledger
        self._wanted = wanted
        self._catalog = Catalog()
        self._end = 0

    async def history(self) -> AsyncGenerator[Stored, None]:
        """Yield the events up to now. Raises NotFoundError."""
        self._end = await self._ledger.last_sequence()
        if not self._wanted:
            async for stored in _until(self._end, self._ledger.read()):
                yield stored
            return
        for name in _NAMING:
            async for stored in _until(self._end, self._ledger.read(subjects.pattern(event_type=name))):
                self._catalog.add(stored.event)
        self._wanted = self._catalog.resolve(self._wanted)
        for stored in await self._collect():
            yield stored

    async def follow(self) -> AsyncGenerator[Stored, None]:
        """Yield the events behind those of ``history``, until closed."""
        async with aclosing(self._ledger.follow(after=self._end)) as events:
            async for stored in events:
                self._catalog.add(stored.event)
                if not self._wanted or stored.event.sandbox in self._catalog.sandboxes(self._wanted):
                    yield stored

    async def _collect(self) -> list[Stored]:
        histories = [
            [stored async for stored in _until(self._end, self._ledger.read(subjects.pattern(sandbox=sandbox)))]
            for sandbox in self._catalog.sandboxes(self._wanted)
        ]
        return list(heapq.merge(*histories, key=lambda stored: stored.sequence))


async def _until(end: int, source: AsyncGenerator[Stored, None]) -> AsyncGenerator[Stored, None]:
    async with aclosing(source):
        async for stored in source:
            if stored.sequence > end:
                return
            yield stored
