"""Ask which pods have something on a node, what that is, and what is published of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from events.fold import Sandbox, SandboxPhase
from reconciler.projection.fold.published import PodName, Published
from reconciler.projection.fold.rows import sandbox_of
from reconciler.projection.sql.key_lookup import is_one_of, key_parameters
from reconciler.projection.sql.tables import sandboxes, statuses

T = TypeVar("T")

PodFunction: TypeAlias = Callable[[PodName, Sequence[Sandbox], Published | None], T]
"""Is given a pod, its sandboxes, oldest first, and what is published of it."""

IS_LIVE = sa.text("sandboxes.live")  # in the words of the index
_PAGE = 500

# Statements are made once: SQLAlchemy takes longer to make one than SQLite to execute it.

_WITH_STATUS = sa.outerjoin(
    sandboxes, statuses, sa.and_(sandboxes.c.namespace == statuses.c.namespace, sandboxes.c.pod == statuses.c.pod)
)
_NAMED = (sandboxes.c.namespace, sandboxes.c.pod)
_STATUS = tuple(statuses.c[name].label(f"status_{name}") for name in Published._fields)
_LIVE_PODS = (
    sa.select(*_NAMED, sandboxes.c.fold, *_STATUS)
    .select_from(_WITH_STATUS)
    .where(IS_LIVE, sandboxes.c.pod != "")
    .order_by(*_NAMED, sandboxes.c.created)
)
_SETTLED = sa.and_(
    statuses.c.intent == sandboxes.c.intent, sa.or_(statuses.c.refused, statuses.c.sequence > sandboxes.c.sequence)
)
"""Where the ledger's last word is of this sandbox, and later than all that happened to it, or final."""
_UNSETTLED = (
    sa.select(*_NAMED)
    .distinct()
    .select_from(_WITH_STATUS)
    .where(
        IS_LIVE,
        sandboxes.c.pod != "",
        sandboxes.c.phase == SandboxPhase.ATTACHED.value,
        sa.not_(sandboxes.c.silent),
        sa.not_(sa.func.coalesce(_SETTLED, sa.false())),
    )
    .order_by(*_NAMED)
)
_LIVE_NAMES = (
    sa.select(*_NAMED, *_STATUS).select_from(_WITH_STATUS).where(IS_LIVE, sandboxes.c.pod != "").order_by(*_NAMED)
)
_LIVE_POD = _LIVE_PODS.where(sandboxes.c.namespace == sa.bindparam("namespace"), sandboxes.c.pod == sa.bindparam("pod"))


class Pods:
    """Asks the tables of one kind of database. Raises msgspec.MsgspecError for a fold that can't be read."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._published = sa.select(statuses).where(is_one_of(dialect, statuses.c.namespace, statuses.c.pod))
        self._of_live = _LIVE_PODS.where(is_one_of(dialect, sandboxes.c.namespace, sandboxes.c.pod))
        self._live = (
            sa.select(sandboxes.c.namespace, sandboxes.c.pod)
            .distinct()
            .where(is_one_of(dialect, sandboxes.c.namespace, sandboxes.c.pod), IS_LIVE)
        )

    def map_all(self, connection: sa.Connection, function: PodFunction[T]) -> list[T]:
        """Return what *function* says of each."""
        return _map(_all(connection), function)

    def map_some(self, connection: sa.Connection, pods: Collection[PodName], function: PodFunction[T]) -> list[T]:
        """Return what *function* says of those of *pods* that there are."""
        return _map(connection.execute(self._of_live, key_parameters(self._dialect, pods)), function) if pods else []

    def unsettled(self, connection: sa.Connection) -> list[PodName]:
        """Return those whose status the rows do not call settled, in their order."""
        return [PodName(*row) for row in connection.execute(_UNSETTLED)]

    def all(self, connection: sa.Connection) -> list[tuple[PodName, Published | None]]:
        """Return each, and what is published of it."""
        rows = connection.execute(_LIVE_NAMES, execution_options={"yield_per": _PAGE})
        return list({PodName(row.namespace, row.pod): _status_of(row) for row in rows}.items())

    def one(self, connection: sa.Connection, pod: PodName) -> tuple[list[Sandbox], Published | None]:
        """Return the sandboxes of *pod*, oldest first, and what is published of it; nothing if it is not live."""
        rows = connection.execute(_LIVE_POD, {"namespace": pod.namespace, "pod": pod.name}).all()
        return [sandbox_of(row.fold) for row in rows], _status_of(rows[0]) if rows else None

    def published(self, connection: sa.Connection, pods: frozenset[PodName]) -> dict[PodName, Published]:
        """Return what is published of *pods*."""
        if not pods:
            return {}
        rows = connection.execute(self._published, key_parameters(self._dialect, pods))
        return {
            PodName(row.namespace, row.pod): Published(row.uid, row.intent, row.text, row.refused, row.sequence)
            for row in rows
        }

    def live(self, connection: sa.Connection, pods: Set[PodName]) -> frozenset[PodName]:
        """Return which of *pods* have something on a node."""
        if not pods:
            return frozenset()
        return frozenset(PodName(*row) for row in connection.execute(self._live, key_parameters(self._dialect, pods)))


def _all(connection: sa.Connection) -> Iterable[sa.Row[Any]]:
    return connection.execute(_LIVE_PODS, execution_options={"yield_per": _PAGE})


def _map(rows: Iterable[sa.Row[Any]], function: PodFunction[T]) -> list[T]:
    """Return what *function* says of each pod that *rows* of ``_LIVE_PODS`` are of."""
    results: list[T] = []
    for name, group in groupby(rows, lambda row: PodName(row.namespace, row.pod)):
        same = list(group)
        results.append(function(name, [sandbox_of(row.fold) for row in same], _status_of(same[0])))
    return results


def _status_of(row: sa.Row[Any]) -> Published | None:
    """Return what is published of the pod that *row* of ``_LIVE_PODS`` is of."""
    values = [getattr(row, f"status_{name}") for name in Published._fields]
    return None if values[0] is None else Published(*values)
