"""Record the effects and the outcome of one intent, in order."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TypeVar

from msgspec.structs import replace

from events.ledger.ledger import LedgerError
from events.schema import AttachCompleted, Data, DetachCompleted, Event, InterfaceAttached, InterfaceDetached, Phase
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.journal.journal import Journal, Recording

T = TypeVar("T", bound=Data)


async def confirm(recording: Recording) -> None:
    """Return once *recording* is done. Raises RequestFailedError if the ledger did not acknowledge the event."""
    try:
        await recording
    except LedgerError as error:
        raise _refused(error) from error


class EffectLog:
    """The events of one intent's effects, each appended while the next effect is made, or carried by the outcome.

    As a context manager it exits once all its events are durable, whether its block succeeded or not: what follows
    builds on them. It then raises RequestFailedError for the first event that the ledger did not acknowledge.
    """

    def __init__(self, journal: Journal, intent: Event) -> None:
        self._journal = journal
        self._intent = intent
        self._recordings: list[Recording] = []
        self._carried: list[InterfaceAttached | InterfaceDetached] = []

    def append(self, data: Data) -> None:
        """Append *data* as a separate event, after the effects so far."""
        carried, self._carried = self._carried, []
        for effect in (*carried, data):
            self._recordings.append(self._journal.record(effect, self._intent.sandbox, self._intent.id))

    def carry(self, effect: InterfaceAttached | InterfaceDetached) -> None:
        """Put *effect* into the event of the outcome; if another event comes before that, append it first."""
        self._carried.append(effect)

    def finish(self, outcome: T) -> T:
        """Start to append *outcome*, with the carried effects if it succeeded, and return the recorded event.

        The end of the block waits for the acknowledgement.
        """
        if isinstance(outcome, AttachCompleted | DetachCompleted):
            outcome = replace(outcome, effects=tuple(self._carried))
            self._carried.clear()
        self.append(outcome)
        return outcome

    async def __aenter__(self) -> EffectLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        carried, self._carried = self._carried, []
        for effect in carried:
            self.append(effect)
        if self._recordings:
            await asyncio.wait(self._recordings)
        problem = next((problem for each in self._recordings if (problem := each.exception()) is not None), None)
        if problem is not None and error is None:
            raise (_refused(problem) if isinstance(problem, LedgerError) else problem) from problem


def _refused(error: LedgerError) -> RequestFailedError:
    return failed(class_of(error), Phase.RECORD, str(error))
