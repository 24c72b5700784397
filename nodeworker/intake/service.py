"""The order in which the worker starts and stops: the socket opens last and closes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeAlias

from nodeworker.intake.recovery import Recovery, take_over
from nodeworker.intake.socket_server import SocketServer
from nodeworker.intake.spool import Spool
from nodeworker.journal.hub_link import HubLink
from nodeworker.journal.journal import Journal
from nodeworker.leaks.evidence.footprint import Footprint
from nodeworker.planning.cluster.open_source import ready
from nodeworker.planning.cluster.source import Source
from nodeworker.sandboxes.answers import Answers
from nodeworker.sandboxes.dispatcher import Dispatcher

Loops: TypeAlias = Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
"""Functions that run without end, by the names of their tasks."""

_GRACE = 5.0
"""Seconds that requests in progress get to finish when the worker is stopped."""


class Service(NamedTuple):
    """The parts that start and stop in order."""

    journal: Journal
    answers: Answers
    footprint: Footprint
    source: Source | None
    hub: HubLink | None
    spool: Spool
    dispatcher: Dispatcher
    recovery: Recovery
    server: SocketServer
    loops: Loops
    later_loops: Loops
    """They start once the worker has finished what was open."""

    async def run(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Take the node over, finish what is open, and serve until *stop*. The loops are *tasks* meanwhile.

        Raises LedgerError, OSError.
        """

        def start(loops: Loops) -> list[asyncio.Task[None]]:
            return [tasks.create_task(loop(), name=name) for name, loop in loops.items()]

        await take_over(self.journal, self.answers, self.spool, self.footprint)
        uplink = [] if self.hub is None else start({"hub": self.hub.run})
        background = start(self.loops)
        if self.source is not None:
            background += start({"source": self.source.run})
            await ready(self.source)
        await self.recovery.catch_up()
        background += start(self.later_loops)
        await self.server.open()
        await stop.wait()
        await self.server.close()
        await self.dispatcher.finish(_GRACE)
        await _cancel(background)
        await self.journal.stop("signal")
        if self.hub is not None:
            await self.hub.settle()
            await _cancel(uplink)
            await self.hub.close()
        if self.source is not None:
            self.source.close()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
