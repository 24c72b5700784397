"""Let an ADD wait while its network's garbage is collected.

The list of what is to be kept is made before the plugins look at what there is. What was planned by then is on it; what
is planned later is not, and must not have anything yet that a plugin could take for garbage.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Set


class CollectionsUnderWay:
    """The networks of which garbage is being collected, by the name that plugins know them by."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.Event] = {}

    async def ended(self, networks: Set[str]) -> None:
        """Return when no collection of any of *networks* is under way."""
        while under_way := [self._ends[network] for network in networks if network in self._ends]:
            await under_way[0].wait()

    @contextlib.asynccontextmanager
    async def of(self, network: str) -> AsyncIterator[None]:
        """Hold up the ADDs of *network* meanwhile."""
        await self.ended({network})
        self._ends[network] = end = asyncio.Event()
        try:
            yield
        finally:
            del self._ends[network]
            end.set()
