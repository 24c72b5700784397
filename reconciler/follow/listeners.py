"""The interfaces between the loop and everything that acts on its batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from reconciler.projection.fold.batch import Changes
from reconciler.projection.store import Store

T = TypeVar("T")


class Query(Protocol):
    """Runs a function with the store on the projection's thread. Retries while the database does not answer."""

    async def __call__(self, work: Callable[[Store], T]) -> T:
        """Return the result of *work*."""
        ...


class Listener(Protocol):
    """Acts on the events of the ledger while this replica is the leader."""

    async def caught_up(self, query: Query) -> None:
        """Take up all open work in the projection. Called once, after catch-up; no batch repeats that work."""
        ...

    def changed(self, changes: Changes) -> None:
        """Take note of a batch that came after ``caught_up``. Must not block: the loop waits for it."""
        ...

    async def run(self) -> None:
        """Act until cancelled."""
        ...


Serve: TypeAlias = Callable[[int, Sequence[Listener]], Awaitable[None]]
"""Runs listeners until cancelled, once the projection has the given sequence: that of the election."""


class Leadership(Protocol):
    """Decides when this replica is the leader."""

    async def run(self, serve: Serve) -> None:
        """Call *serve* at the start of each term, and cancel it at the end. Runs until cancelled."""
        ...


class Maintenance(Protocol):
    """A task that maintains the projection while this replica writes to it."""

    async def run(self, query: Query) -> None:
        """Maintain the projection until cancelled."""
        ...


class Bootstrap(Protocol):
    """Fills an empty projection before the first event is read."""

    async def bootstrap(self, query: Query) -> None:
        """Fill the projection if there is something to fill it with. Raises LedgerUnavailableError."""
        ...
