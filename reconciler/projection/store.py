"""Store the projection in a database: each batch and its position in one transaction.

A database that several reconcilers share has a fence (``Store.claim``): each writing transaction locks the position,
which names the election whose winner may write. So a replaced reconciler can't write, even after an hour's freeze or in
the middle of its last batch.

All methods block; ``reconciler.follow.loop`` calls them on a separate thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from events.fold import Leaked, Sandbox
from events.schema import NodeName, Stored
from reconciler.projection.batch_cache import BatchCache
from reconciler.projection.fold.batch import Changes, Loaded, needed, project
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.fold.rows import leaked_of, sandbox_of
from reconciler.projection.pods import IS_LIVE, PodFunction, Pods
from reconciler.projection.sql import deletion, indexes
from reconciler.projection.sql.deletion import Forgotten
from reconciler.projection.sql.engine import ProjectionError, ReplacedError, open_engine, transaction
from reconciler.projection.sql.loader import Loader
from reconciler.projection.sql.schema import upgrade
from reconciler.projection.sql.tables import addresses, leaks, position, sandboxes
from reconciler.projection.sql.writer import Writer

T = TypeVar("T")


class Holder(msgspec.Struct, frozen=True):
    """The attachment that held an address on a network, and the time."""

    network: str
    prefix_length: int
    node: str
    namespace: str
    pod: str
    uid: str
    container_id: str
    ifname: str
    since: str
    until: str | None
    """None: it is held now."""


class Store:
    """The rows of one ledger. *ledger* is the name of its stream.

    *unfinished*: an SQLite file that is useless before it is complete, so commits need not survive a crash.
    """

    def __init__(self, url: str, ledger: str, *, unfinished: bool = False) -> None:
        self._url = url
        self._engine = open_engine(url, unfinished=unfinished)
        self._ledger = ledger
        self._shareable = self._engine.dialect.name == "postgresql"
        self._loader = Loader(self._engine.dialect.name)
        self._writer = Writer.of(self._engine.dialect.name)
        self._pods = Pods(self._engine.dialect.name)
        self._cache = BatchCache()
        self._election = 0

    def prepare(self) -> None:
        """Upgrade the tables to the schema of this version. Raises DatabaseUnavailableError, ProjectionError."""
        upgrade(self._url)

    def claim(self, election: int) -> None:
        """Exclude the winners of earlier elections. *election* is the sequence of the election in the ledger.

        Uncommitted writes of an earlier winner fail. Raises the errors of ``apply``.
        """
        self._election = election
        with self._transaction() as connection:
            if connection.execute(_POSITION).one_or_none() is None:
                self._writer.insert_position(connection, self._ledger)
            self._position_to_write(connection)
            self._writer.set_election(connection, election)

    def fill_if_empty(self, fill: Callable[[sa.Connection], object]) -> None:
        """Call *fill* to insert all rows, unless there are rows already. Raises the errors of ``apply``."""
        self._engine.dispose()
        engine = open_engine(self._url, empty=True)
        try:
            with self._transaction(engine) as connection:
                if self._position_to_write(connection) == 0:
                    fill(connection)
                    self._position_to_write(connection)
        finally:
            engine.dispose()

    def drop_reader_indexes(self) -> None:
        """Drop the indexes that only readers need. Raises the errors of ``apply``."""
        with self._transaction() as connection:
            indexes.drop(connection)

    def position(self) -> int:
        """Return the sequence of the last projected event.

        Raises DatabaseUnavailableError, and ProjectionError if the rows belong to another ledger.
        """
        with self._transaction() as connection:
            return self._position(connection)

    def apply(self, batch: Sequence[Stored], *, for_listeners: bool = True) -> Changes | None:
        """Project *batch*; return the changes, None if the rows have all its events already.

        Without *for_listeners*, ``published`` and ``detached_pods`` stay empty. Raises the errors of ``position``, and
        ReplacedError after a later election.
        """
        try:
            return self._apply(batch, for_listeners)
        except BaseException:
            self._cache.clear()
            raise

    def _apply(self, batch: Sequence[Stored], for_listeners: bool) -> Changes | None:
        with self._transaction() as connection:
            done = self._position_to_write(connection)
            fresh = [stored for stored in batch if stored.sequence > done]
            if not fresh:
                return None
            if done != self._cache.position:
                self._cache.clear()
            what, loaded = needed(fresh), Loaded(sequence=done)
            self._loader.load(connection, self._cache.load(what, loaded), loaded)
            changes = project(loaded, fresh)
            self._writer.write(connection, self._ledger, changes)
            if for_listeners:
                published = self._pods.published(connection, changes.attached_pods)
                closed = changes.closed_pods
                detached = closed - self._pods.live(connection, closed)
                changes = replace(changes, published=published, detached_pods=detached)
        self._cache.committed(what, changes)
        return changes

    def skip_to(self, sequence: int) -> None:
        """Set the position to *sequence*: the ledger has no events up to it. Raises the errors of ``apply``."""
        with self._transaction() as connection:
            if sequence > self._position_to_write(connection):
                self._writer.set_position(connection, self._ledger, sequence)

    def forget(self, before: str, limit: int) -> Forgotten:
        """Delete at most *limit* rows of each kind that ended before *before*, RFC 3339. Raises the errors of
        ``apply``."""
        with self._transaction() as connection:
            self._position_to_write(connection)
            gone = deletion.forget(connection, before, limit)
        self._cache.drop(gone.containers)
        return gone

    def map_live_pods(self, function: PodFunction[T]) -> list[T]:
        """Return the results of *function* for all live pods. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return self._pods.map_all(connection, function)

    def map_some_live_pods(self, pods: Collection[PodName], function: PodFunction[T]) -> list[T]:
        """Return the results of *function* for the live pods in *pods*. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return self._pods.map_some(connection, pods, function)

    def unsettled_pods(self) -> list[PodName]:
        """Return the pods that may need a publication of their network-status. Raises DatabaseUnavailableError.

        It omits pods whose rows alone show, without their folds, that nothing is pending.
        """
        with self._transaction() as connection:
            return self._pods.unsettled(connection)

    def live(self, pods: Set[PodName]) -> frozenset[PodName]:
        """Return the live pods in *pods*. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return self._pods.live(connection, pods)

    def live_pods(self) -> list[tuple[PodName, Published | None]]:
        """Return each live pod and the last publication of its status. Raises DatabaseUnavailableError.

        Reading the sandboxes as well takes more than twice as long.
        """
        with self._transaction() as connection:
            return self._pods.all(connection)

    def live_pod(self, pod: PodName) -> tuple[list[Sandbox], Published | None]:
        """Return the sandboxes of one pod, oldest first, and the last publication of its status.

        Nothing if it is not live. Raises DatabaseUnavailableError.
        """
        with self._transaction() as connection:
            return self._pods.one(connection, pod)

    def drifting(self) -> list[Sandbox]:
        """Return the live sandboxes with drift, oldest first. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return [sandbox_of(fold) for (fold,) in connection.execute(_DRIFTING)]

    def leaks(self) -> list[tuple[NodeName, Leaked]]:
        """Return the open leaks and their nodes, oldest first. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return [(NodeName(node), leaked_of(fold)) for node, fold in connection.execute(_LEAKS)]

    def live_phases(self) -> Counter[str]:
        """Return the number of live sandboxes in each phase. Raises DatabaseUnavailableError."""
        with self._transaction() as connection:
            return Counter({row.phase: row.live for row in connection.execute(_LIVE_PHASES)})

    def holders(self, address: str, at: str) -> list[Holder]:
        """Return the attachments that held *address* (canonical) at the time *at* (RFC 3339 as in events).

        Several: different networks use the address, or it was assigned twice. Raises DatabaseUnavailableError.
        """
        with self._transaction() as connection:
            rows = connection.execute(_HOLDERS, {"address": address, "at": at})
            return [Holder(**row._mapping) for row in rows]

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        try:
            with transaction(engine or self._engine) as connection:
                yield connection
        except msgspec.MsgspecError as error:
            raise ProjectionError(
                f"the database has rows that this version of Plumbline can't read ({error}): "
                "rename the database, and the reconciler rebuilds it from the ledger"
            ) from error

    def _position(self, connection: sa.Connection) -> int:
        row = connection.execute(_POSITION).one_or_none()
        return self._own_position(row)

    def _position_to_write(self, connection: sa.Connection) -> int:
        """Return the position, and lock it until the end of the transaction."""
        if self._shareable:
            connection.exec_driver_sql(_LIMIT_FROZEN_LEADER)
        row = connection.execute(_POSITION_LOCKED).one_or_none()
        if row is not None and 0 < self._election < row.election:
            raise ReplacedError(f"election {row.election} took the database from election {self._election}")
        return self._own_position(row)

    def _own_position(self, row: sa.Row[Any] | None) -> int:
        if row is None:
            return 0
        if row.ledger != self._ledger:
            raise ProjectionError(
                f"the database is the projection of the ledger {row.ledger}, not of {self._ledger}: "
                "use a separate database for each ledger"
            )
        return row.sequence


# Module constants: SQLAlchemy builds a statement in more time than SQLite executes it.

_POSITION = sa.select(position)
_POSITION_LOCKED = _POSITION.with_for_update()
_LIMIT_FROZEN_LEADER = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
"""A leader that freezes within a batch would block its successor; a normal batch pauses for milliseconds only."""
_LEAKS = sa.select(leaks.c.node, leaks.c.fold).order_by(leaks.c.first_at, leaks.c.node, leaks.c.leak_id)
_DRIFTING = (
    sa.select(sandboxes.c.fold).where(sa.text("sandboxes.drifting"), sandboxes.c.live).order_by(sandboxes.c.created)
)
_LIVE_PHASES = sa.select(sandboxes.c.phase, sa.func.count().label("live")).where(IS_LIVE).group_by(sandboxes.c.phase)
_HOLDERS = (
    sa.select(*(addresses.c[name] for name in Holder.__struct_fields__))
    .where(
        addresses.c.address == sa.bindparam("address"),
        addresses.c.since <= sa.bindparam("at"),
        sa.or_(addresses.c.until.is_(None), addresses.c.until > sa.bindparam("at")),
    )
    .order_by(addresses.c.sequence)
)
