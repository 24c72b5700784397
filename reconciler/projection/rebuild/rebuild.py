"""Build a new projection from the ledger beside the one in use, then replace that one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, closing
from pathlib import Path

from events.ledger.ledger import Readable
from events.schema import Stored
from reconciler.projection.batching import in_batches
from reconciler.projection.rebuild import snapshot
from reconciler.projection.rebuild.shadow_database import ShadowDatabase
from reconciler.projection.sql.engine import ProjectionError
from reconciler.projection.store import Store

Progress = Callable[[int, int], None]
"""Called with the last projected sequence and the last sequence of the ledger."""


async def rebuild(url: str, ledger: Readable, name: str, progress: Progress, start_from: Path | None = None) -> int:
    """Rebuild the projection at *url* from *ledger*; return its sequence. *name* is the name of the ledger's stream.

    With *start_from* it starts from that snapshot, else with the ledger's first event. A reconciler may run meanwhile.
    Raises ProjectionError, DatabaseUnavailableError, LedgerUnavailableError; then the projection in use is unchanged.
    """
    shadow = ShadowDatabase(url)
    try:
        with closing(Store(shadow.draft, name, unfinished=True)) as store:
            store.prepare()
            if start_from is not None:
                snapshot.restore(start_from, shadow.draft)
            store.drop_reader_indexes()
            done = await _read(store, ledger, await ledger.last_sequence(), progress)
        await asyncio.to_thread(shadow.finish)  # in a thread: the event loop must answer the ledger's server
        with closing(Store(shadow.url, name)) as store, shadow.swapping() as (connection, in_use):
            if in_use > done:
                done = await _read(store, ledger, in_use, progress)
            shadow.swap(connection)
        return done
    finally:
        shadow.close()


async def _read(store: Store, ledger: Readable, end: int, progress: Progress) -> int:
    done = store.position()
    if done > end:
        raise ProjectionError(
            f"the snapshot has {done} events of the ledger, but the ledger has only {end}: it is of another ledger"
        )

    async def apply(batch: Sequence[Stored]) -> None:
        store.apply(batch, for_listeners=False)  # not in a thread: both would compete for the GIL, which costs 20 %
        progress(min(batch[-1].sequence, end), end)

    async with aclosing(ledger.read(after=done)) as events:
        await in_batches(events, apply)
    store.skip_to(end)
    progress(end, end)
    return store.position()
