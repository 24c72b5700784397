"""A worker with a fault at one append: it is killed there, or the next event overtakes."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

from events.ledger.ledger import Expect, Ledger
from events.process import logs
from events.process.settings import load
from events.schema import (
    Event,
    Stored,
)
from nodeworker.__main__ import run
from nodeworker.settings import WorkerSettings


class FaultyLedger:
    """The ledger *inner* with a fault at the *count*-th append of an event of type *name*.

    *moment* is ``before`` (the process ends, and the ledger never sees the event), ``after`` (it ends, and the worker
    never learns that the ledger has it) or ``behind`` (the ledger takes it behind the next event).
    """

    def __init__(self, inner: Ledger, moment: str, name: str, count: int) -> None:
        self._inner = inner
        self._moment = moment
        self._name = name
        self._left = count
        self._appended = asyncio.Event()

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        chosen = event.type == self._name and self._next()
        if chosen and self._moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if chosen and self._moment == "behind":
            self._appended.clear()
            await self._appended.wait()
        sequence = await self._inner.append(event, expect)
        self._appended.set()
        if chosen and self._moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return sequence

    def _next(self) -> bool:
        self._left -= 1
        return self._left == 0

    def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        return self._inner.read(subject, after)

    def follow(self, patterns: tuple[str, ...] = ("plumbline.ev.>",), after: int = 0) -> AsyncGenerator[Stored, None]:
        return self._inner.follow(patterns, after)

    async def last(self, subject: str) -> Stored | None:
        return await self._inner.last(subject)

    async def last_sequence(self) -> int:
        return await self._inner.last_sequence()

    async def purge(self, subject: str, up_to: int) -> int:
        return await self._inner.purge(subject, up_to)

    async def close(self) -> None:
        await self._inner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--fault", required=True, metavar="MOMENT:TYPE:COUNT")
    options = parser.parse_args()
    moment, name, count = options.fault.split(":")
    settings = load(options.config, WorkerSettings)
    logs.configure(settings.log_level, "worker")
    asyncio.run(run(settings, wrap=lambda ledger: FaultyLedger(ledger, moment, name, int(count))))


if __name__ == "__main__":
    main()
