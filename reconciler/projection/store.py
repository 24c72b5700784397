"""Keep the projection in a database: a batch and its position in one transaction.

A database that several reconcilers share has a fence (``Store.take``): in each transaction that writes, the position is
locked, and it names the election whose winner may write. So one that was frozen for an hour, or whose last batch was on
its way when it was replaced, finds itself shut out.

Everything here blocks; ``reconciler.follow.loop`` calls it on one thread of its own.
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
    """Who held an address, on which network, from when to when."""

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
    """None: it is held still."""


class Store:
    """The rows of one ledger. *ledger* is the name of its stream.

    *unfinished*: an SQLite file is of no worth before it is finished, so what was committed need not outlive a crash.
    """

    def __init__(self, url: str, ledger: str, *, unfinished: bool = False) -> None:
        self._url = url
        self._engine = open_engine(url, unfinished=unfinished)
        self._ledger = ledger
        self._shareable = self._engine.dialect.name == "postgresql"
        self._loader = Loader(self._engine.dialect.name)
        self._writer = Writer(self._engine.dialect.name)
        self._pods = Pods(self._engine.dialect.name)
        self._cache = BatchCache()
        self._election = 0

    def prepare(self) -> None:
        """Make the tables what this code works with. Raises DatabaseAwayError, ProjectionError."""
        upgrade(self._url)

    def claim(self, election: int) -> None:
        """Shut out whoever was elected before *election*, the sequence of that event in the ledger.

        Of whatever was not committed by then nothing will be. Raises as ``apply``.
        """
        self._election = election
        with self._transaction() as connection:
            if connection.execute(_POSITION).one_or_none() is None:
                self._writer.begin(connection, self._ledger)
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
        """Let go of what only readers need. Raises as ``apply``."""
        with self._transaction() as connection:
            indexes.drop(connection)

    def position(self) -> int:
        """Return the sequence up to which the ledger is projected.

        Raises DatabaseAwayError, and ProjectionError when the rows are another ledger's.
        """
        with self._transaction() as connection:
            return self._position(connection)

    def apply(self, batch: Sequence[Stored], *, for_listeners: bool = True) -> Changes | None:
        """Project *batch*; return what changed, None when all of it was there.

        Unless somebody is *told* of it, ``published`` and ``left`` stay empty. Raises as ``position``, and
        ReplacedError when another took the database.
        """
        try:
            return self._apply(batch, for_listeners)
        except BaseException:
            self._cache.forget()
            raise

    def _apply(self, batch: Sequence[Stored], for_listeners: bool) -> Changes | None:
        with self._transaction() as connection:
            done = self._position_to_write(connection)
            fresh = [stored for stored in batch if stored.sequence > done]
            if not fresh:
                return None
            if done != self._cache.position:
                self._cache.forget()
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
        """Note that there is nothing more to read up to *sequence*. Raises as ``apply``."""
        with self._transaction() as connection:
            if sequence > self._position_to_write(connection):
                self._writer.set_position(connection, self._ledger, sequence)

    def forget(self, before: str, limit: int) -> Forgotten:
        """Forget at most *limit* rows of each kind of what was over *before*, RFC 3339. Raises as ``apply``."""
        with self._transaction() as connection:
            self._position_to_write(connection)
            gone = deletion.forget(connection, before, limit)
        self._cache.drop(gone.containers)
        return gone

    def map_live_pods(self, function: PodFunction[T]) -> list[T]:
        """Return what *judge* says of each pod that has something on a node. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return self._pods.map_all(connection, function)

    def map_some_live_pods(self, pods: Collection[PodName], function: PodFunction[T]) -> list[T]:
        """Return the same of those of *pods* that have something on a node. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return self._pods.map_some(connection, pods, function)

    def unsettled_pods(self) -> list[PodName]:
        """Return the pods whose network-status may have to be published. Raises DatabaseAwayError.

        That leaves out those of which the rows say without a look at their folds that nothing is ``due``.
        """
        with self._transaction() as connection:
            return self._pods.unsettled(connection)

    def live(self, pods: Set[PodName]) -> frozenset[PodName]:
        """Return which of *pods* have something on a node. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return self._pods.live(connection, pods)

    def live_pods(self) -> list[tuple[PodName, Published | None]]:
        """Return each pod that has something on a node, and what is published of it. Raises DatabaseAwayError.

        Whoever needs no more asks this: to read the sandboxes of all pods takes more than twice as long.
        """
        with self._transaction() as connection:
            return self._pods.all(connection)

    def live_pod(self, pod: PodName) -> tuple[list[Sandbox], Published | None]:
        """Return the sandboxes of one pod, oldest first, and what is published of it.

        Nothing if it has nothing on a node. Raises DatabaseAwayError.
        """
        with self._transaction() as connection:
            return self._pods.one(connection, pod)

    def drifting(self) -> list[Sandbox]:
        """Return the live sandboxes that their node differs from, oldest first. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return [sandbox_of(fold) for (fold,) in connection.execute(_DRIFTING)]

    def leaks(self) -> list[tuple[NodeName, Leaked]]:
        """Return what is held without a live attachment, and where, oldest first. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return [(NodeName(node), leaked_of(fold)) for node, fold in connection.execute(_LEAKS)]

    def live_phases(self) -> Counter[str]:
        """Return how many live sandboxes are in each phase. Raises DatabaseAwayError."""
        with self._transaction() as connection:
            return Counter({row.phase: row.live for row in connection.execute(_LIVE_PHASES)})

    def holders(self, address: str, at: str) -> list[Holder]:
        """Return who held *address*, in canonical form, at the time *at*, RFC 3339 as events have it.

        More than one: the address is used on several networks, or it was given twice. Raises DatabaseAwayError.
        """
        with self._transaction() as connection:
            rows = connection.execute(_HOLDERS, {"address": address, "at": at})
            return [Holder(**row._mapping) for row in rows]

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        try:
            with transaction(engine or self._engine) as connection:
                yield connection
        except msgspec.MsgspecError as error:
            raise ProjectionError(
                f"the database has rows that this version of Plumbline can't read ({error}): "
                "move it away to have it made again from the ledger"
            ) from error

    def _position(self, connection: sa.Connection) -> int:
        row = connection.execute(_POSITION).one_or_none()
        return self._own_position(row)

    def _position_to_write(self, connection: sa.Connection) -> int:
        """Return the position, with others kept from it until the transaction is over."""
        if self._shareable:
            connection.exec_driver_sql(_LET_GO_OF_FROZEN)
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
                "give each ledger a database of its own"
            )
        return row.sequence


# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.

_POSITION = sa.select(position)
_POSITION_LOCKED = _POSITION.with_for_update()
_LET_GO_OF_FROZEN = "SET LOCAL idle_in_transaction_session_timeout = '5s'"
"""One that is frozen in the middle of a batch would keep its successor waiting; a batch pauses for milliseconds."""
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
