"""Record what was done for an intent, one event or several behind each other."""

from __future__ import annotations

import asyncio
from types import TracebackType

from events.ledger import LedgerError
from events.schema import Data, Event, Phase
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.recorder import Recorder


async def record(recorder: Recorder, data: Data, intent: Event) -> None:
    """Record what was done for *intent*. Raises RequestFailedError when the ledger does not take it."""
    await confirmed(recorder.begin(data, intent.sandbox, intent.id))


async def confirmed(recording: asyncio.Task[None]) -> None:
    """Return once *recording* (``Recorder.begin``) is done. Raises RequestFailedError as ``record`` does."""
    try:
        await asyncio.shield(recording)
    except LedgerError as error:
        raise _refused(error) from error


class Pipeline:
    """Events of effects, each appended while the next effect is made.

    As a context manager it ends when all are durable, whether its block succeeded or not, because what follows, good or
    bad, builds on their being there; then it raises what the ledger did not take, as ``record`` does.
    """

    def __init__(self, recorder: Recorder, intent: Event) -> None:
        self._recorder = recorder
        self._intent = intent
        self._tasks: list[asyncio.Task[None]] = []

    def put(self, data: Data) -> None:
        """Have *data* recorded behind those before."""
        self._tasks.append(self._recorder.begin(data, self._intent.sandbox, self._intent.id))

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        problem = next((problem for task in self._tasks if (problem := task.exception()) is not None), None)
        if problem is not None and error is None:
            raise (_refused(problem) if isinstance(problem, LedgerError) else problem) from problem


def _refused(error: LedgerError) -> RequestFailedError:
    return failed(class_of(error), Phase.INTAKE, str(error))
