"""Query the live pods, their sandboxes, and the last publication of their status.

A pod is live while one of its sandboxes may hold resources on a node.
"""

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
"""Takes a pod, its sandboxes (oldest first), and the last publication of its status."""

IS_LIVE = sa.text("sandboxes.live")  # the exact text of the index's condition
_PAGE = 500

# Module constants: SQLAlchemy builds a statement in more time than SQLite executes it.

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
"""True if the ledger's last record is about this sandbox, and is either final or newer than all its other events."""
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
    """Queries for one database dialect. They raise msgspec.MsgspecError for an unreadable fold."""

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
        """Return the results of *function* for all live pods."""
        return _map(_all(connection), function)

    def map_some(self, connection: sa.Connection, pods: Collection[PodName], function: PodFunction[T]) -> list[T]:
        """Return the results of *function* for the live pods in *pods*."""
        return _map(connection.execute(self._of_live, key_parameters(self._dialect, pods)), function) if pods else []

    def unsettled(self, connection: sa.Connection) -> list[PodName]:
        """Return the live pods, in order, whose rows do not show a settled status."""
        return [PodName(*row) for row in connection.execute(_UNSETTLED)]

    def all(self, connection: sa.Connection) -> list[tuple[PodName, Published | None]]:
        """Return each live pod and the last publication of its status."""
        rows = connection.execute(_LIVE_NAMES, execution_options={"yield_per": _PAGE})
        return list({PodName(row.namespace, row.pod): _status_of(row) for row in rows}.items())

    def one(self, connection: sa.Connection, pod: PodName) -> tuple[list[Sandbox], Published | None]:
        """Return the sandboxes of *pod*, oldest first, and the last publication; nothing if it is not live."""
        rows = connection.execute(_LIVE_POD, {"namespace": pod.namespace, "pod": pod.name}).all()
        return [sandbox_of(row.fold) for row in rows], _status_of(rows[0]) if rows else None

    def published(self, connection: sa.Connection, pods: frozenset[PodName]) -> dict[PodName, Published]:
        """Return the last publication of each of *pods*."""
        if not pods:
            return {}
        rows = connection.execute(self._published, key_parameters(self._dialect, pods))
        return {
            PodName(row.namespace, row.pod): Published(row.uid, row.intent, row.text, row.refused, row.sequence)
            for row in rows
        }

    def live(self, connection: sa.Connection, pods: Set[PodName]) -> frozenset[PodName]:
        """Return the live pods in *pods*."""
        if not pods:
            return frozenset()
        return frozenset(PodName(*row) for row in connection.execute(self._live, key_parameters(self._dialect, pods)))


def _all(connection: sa.Connection) -> Iterable[sa.Row[Any]]:
    return connection.execute(_LIVE_PODS, execution_options={"yield_per": _PAGE})


def _map(rows: Iterable[sa.Row[Any]], function: PodFunction[T]) -> list[T]:
    """Return the results of *function* for each pod in *rows* of ``_LIVE_PODS``."""
    results: list[T] = []
    for name, group in groupby(rows, lambda row: PodName(row.namespace, row.pod)):
        same = list(group)
        results.append(function(name, [sandbox_of(row.fold) for row in same], _status_of(same[0])))
    return results


def _status_of(row: sa.Row[Any]) -> Published | None:
    """Return the last publication in a row of ``_LIVE_PODS``."""
    values = [getattr(row, f"status_{name}") for name in Published._fields]
    return None if values[0] is None else Published(*values)
