"""The ledger: what every room needs of the append-only event log, whatever keeps it.

Two implementations pass one contract suite (``tests/integration/events/ledger/test_ledger_contract.py``):
``events.ledger.memory`` and ``events.nats.ledger``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from events.schema import Event, Stored


class Expect(NamedTuple):
    """A condition of an append: the last event whose subject matches *subject* has *sequence* (0: there is none)."""

    subject: str
    sequence: int


class LedgerError(Exception):
    """The ledger did not do what was asked of it."""


class LedgerUnavailableError(LedgerError):
    """No answer in time: nobody knows whether an append was done. Repeating it with the same event is safe."""


class LedgerFullError(LedgerError):
    """The ledger has no room (disk or configured limit); nothing was appended."""


class ConflictError(LedgerError):
    """Another writer was first: what was expected of the ledger no longer holds; nothing was appended."""


class Readable(Protocol):
    """What there is of a ledger now.

    Whoever leaves ``read`` before its end closes it (``contextlib.aclosing``): it holds a consumer.
    """

    def read(self, subject: str = "plumbline.ev.>", after: int = 0) -> AsyncGenerator[Stored, None]:
        """Yield the events that match *subject* and follow *after*, up to the last one there is at the call."""
        ...

    async def last_sequence(self) -> int:
        """Return the sequence of the newest event, 0 when there never was one. Raises LedgerUnavailableError."""
        ...


class Ledger(Readable, Protocol):
    """An append-only log of events in one total order.

    Whoever leaves ``follow`` closes it, as ``read``.
    """

    async def append(self, event: Event, expect: Expect | None = None) -> int:
        """Return the sequence of *event* once it is durable.

        Appending the same event (by id) again returns the sequence it has. Raises LedgerUnavailableError,
        LedgerFullError, ConflictError.
        """
        ...

    def follow(self, subjects: tuple[str, ...] = ("plumbline.ev.>",), after: int = 0) -> AsyncGenerator[Stored, None]:
        """Yield the same without end, each once and in order, over reconnects and restarts of the server."""
        ...

    async def last(self, subject: str) -> Stored | None:
        """Return the newest event that matches *subject*. Raises LedgerUnavailableError."""
        ...

    async def purge(self, subject: str, up_to: int) -> int:
        """Forget the events that match *subject* up to and including sequence *up_to*; return how many."""
        ...

    async def close(self) -> None:
        """Let go of everything the ledger holds."""
        ...
