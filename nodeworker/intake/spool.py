"""The spool: DEL requests on disk, for times when the worker or the ledger is unavailable.

The entry point writes a request here if no worker answers, and the worker does if the ledger does not accept it. In
both cases the runtime gets success, because the request is durable. A file is removed only after its intent is in the
ledger.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from events.process import logs
from events.schema import RequestId
from nodeworker.errors import RequestFailedError
from nodeworker.intake.intents import environment, intent_data
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.sandboxes.answers import Answers
from nodeworker.shim.frame import Frame, FrameError, decode_frame, encode_request

log = structlog.get_logger(__name__)

_SUFFIX = ".req"


class Spooled(NamedTuple):
    """One request on disk."""

    path: Path
    frame: Frame


class Spool:
    """The folder, shared with the entry point."""

    def __init__(self, folder: Path, journal: Journal, answers: Answers, metrics: WorkerMetrics) -> None:
        self._folder = folder
        self._journal = journal
        self._answers = answers
        self._draining = asyncio.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        metrics.spooled.set_function(self._count)  # the entry point writes there, too

    def __len__(self) -> int:
        with os.scandir(self._folder) as entries:
            return sum(entry.name.endswith(_SUFFIX) for entry in entries)

    def requests(self) -> Iterator[Spooled]:
        """Yield the requests, oldest first. Renames a file that is not a request, so that it is read only once."""
        files = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in files:
            try:
                yield Spooled(path, decode_frame(path.read_bytes()))
            except FrameError as error:
                aside = path.with_suffix(".bad")
                path.rename(aside)
                log.warning("spooled_request_set_aside", file=str(aside), error=str(error))

    def has_one_of(self, container_id: str) -> bool:
        """Return whether there is a request of the container."""
        return any(spooled.frame.env.get("CNI_CONTAINERID") == container_id for spooled in self.requests())

    def put(self, frame: Frame) -> None:
        """Store *frame* durably. Raises OSError."""
        target = self._folder / f"{frame.request}{_SUFFIX}"
        draft = self._folder / f".{frame.request}.tmp"
        try:
            with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(encode_request(frame))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(target)
            self._sync()
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    async def drain(self) -> list[RequestId]:
        """Make intents of the requests on disk and remove them; return the requests. Raises LedgerError, OSError."""
        async with self._draining:  # two drains at once would make each intent twice
            drained: list[RequestId] = []
            for spooled in self.requests():
                drained += await self._make_intent(spooled)
                self.remove(spooled)
        return drained

    def remove(self, spooled: Spooled) -> None:
        """Remove a request whose intent is in the ledger."""
        spooled.path.unlink(missing_ok=True)
        self._sync()

    async def _make_intent(self, spooled: Spooled) -> list[RequestId]:
        """Append the intent of one request and return the request; none if it asks for nothing known."""
        frame = spooled.frame
        try:
            request, sandbox = intent_data(frame.env.get("CNI_COMMAND", ""), frame, spooled=True)
        except RequestFailedError as error:
            env = environment(frame)
            with logs.about(pod_of(env.get("CNI_ARGS", "")), env.get("CNI_CONTAINERID", "")):
                log.warning("spooled_request_refused", file=spooled.path.name, error=error.failure.message)
            return []
        # If the ledger does not confirm the intent, the next drain appends it again: DEL is idempotent.
        await self._journal.append_intent(self._journal.event(request, sandbox))
        self._answers.open(frame.request)
        return [frame.request]

    def _count(self) -> float:
        """Return the number of requests; not a number if the folder can't be read."""
        try:
            return len(self)
        except OSError:
            return float("nan")

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
