"""Record what was done for an intent, one event or several behind each other."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TypeVar

from msgspec.structs import replace

from events.ledger.ledger import LedgerError
from events.schema import AttachCompleted, Data, DetachCompleted, Event, InterfaceAttached, InterfaceDetached, Phase
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.journal.journal import Journal

T = TypeVar("T", bound=Data)


async def record(journal: Journal, data: Data, intent: Event) -> None:
    """Record what was done for *intent*. Raises RequestFailedError when the ledger does not take it."""
    await confirmed(journal.begin(data, intent.sandbox, intent.id))


async def confirmed(recording: asyncio.Task[None]) -> None:
    """Return once *recording* (``Journal.begin``) is done. Raises RequestFailedError as ``record`` does."""
    try:
        await asyncio.shield(recording)
    except LedgerError as error:
        raise _refused(error) from error


class EffectLog:
    """Events of effects, each appended while the next effect is made, or with the outcome.

    As a context manager it ends when all are durable, whether its block succeeded or not, because what follows, good or
    bad, builds on their being there; then it raises what the ledger did not take, as ``record`` does.
    """

    def __init__(self, journal: Journal, intent: Event) -> None:
        self._journal = journal
        self._intent = intent
        self._tasks: list[asyncio.Task[None]] = []
        self._held: list[InterfaceAttached | InterfaceDetached] = []

    def put(self, data: Data) -> None:
        """Have *data* recorded behind those before."""
        self._release()
        self._begin(data)

    def hold(self, effect: InterfaceAttached | InterfaceDetached) -> None:
        """Have *effect* recorded with the outcome, or before whatever else comes behind it."""
        self._held.append(effect)

    def end(self, outcome: T) -> T:
        """Have *outcome* recorded behind all that was put, and return it as it is recorded."""
        if isinstance(outcome, AttachCompleted | DetachCompleted):
            outcome = replace(outcome, effects=tuple(self._held))
            self._held.clear()
        self.put(outcome)
        return outcome

    async def __aenter__(self) -> EffectLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        if self._tasks:
            await asyncio.wait(self._tasks)
        problem = next((problem for task in self._tasks if (problem := task.exception()) is not None), None)
        if problem is not None and error is None:
            raise (_refused(problem) if isinstance(problem, LedgerError) else problem) from problem

    def _release(self) -> None:
        held, self._held = self._held, []
        for effect in held:
            self._begin(effect)

    def _begin(self, data: Data) -> None:
        self._tasks.append(self._journal.begin(data, self._intent.sandbox, self._intent.id))


def _refused(error: LedgerError) -> RequestFailedError:
    return failed(class_of(error), Phase.INTAKE, str(error))
