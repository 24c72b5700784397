"""The ledger: the protocol of the append-only event log, and its errors.

Two implementations pass one contract suite (``tests/integration/events/ledger/test_ledger_contract.py``):
``events.ledger.memory`` and ``events.nats.ledger``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from events.schema import Event, Stored


class Expect(NamedTuple):
    """A condition of an append: the last event that matches *subject* has *sequence* (0: there is none).

    A message that is no event (``events.ledger.anomalies``) does not affect it.
    """

    subject: str
    sequence: int


class LedgerError(Exception):
    """The ledger did not do what it was asked to."""


class LedgerUnavailableError(LedgerError):
    """No answer in time: an append may or may not be done. Repeating it with the same event is safe."""


class LedgerFullError(LedgerError):
    """The ledger is full (disk or configured limit). Nothing was appended."""


class ConflictError(LedgerError):
    """Another writer was first: the condition of the append does not hold. Nothing was appended."""


class Readable(Protocol):
    """The current content of a ledger.

    A caller that leaves ``read`` before its end must close it (``contextlib.aclosing``), because it has a consumer.
    """

    def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """Yield the events after *after* that match *subject*, up to the last one at the time of the call."""
        ...

    async def last_sequence(self) -> int:
        """Return the sequence of the newest event, 0 if there never was one. Raises LedgerUnavailableError."""
        ...


class Ledger(Readable, Protocol):
    """An append-only log of events in one total order. A caller that leaves ``follow`` must close it, as ``read``."""

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """Return the sequence of *event* once it is durable.

        An event that is appended again (same id) returns the sequence that it has. Raises LedgerUnavailableError,
        LedgerFullError, ConflictError.
        """
        ...

    def follow(self, patterns: tuple[str, ...] = ("plumbline.ev.>",), after: int = 0) -> AsyncGenerator[Stored, None]:
        """Yield events as ``read``, but without end: each once and in order, over reconnects and server restarts."""
        ...

    async def last(self, subject: str) -> Stored | None:
        """Return the newest event that matches *subject*. Raises LedgerUnavailableError."""
        ...

    async def purge(self, subject: str, up_to: int) -> int:
        """Delete the events that match *subject* up to and including sequence *up_to*; return their number."""
        ...

    async def close(self) -> None:
        """Close the connection and everything that depends on it."""
        ...
