"""Put away what there is of live sandboxes and open matters, so that the ledger may forget how it came to be.

A snapshot is a projection itself, in an SQLite file: the migrations of later versions apply to it. Closed sandboxes and
histories are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from reconciler.projection.engine import ProjectionError, open_engine, transaction
from reconciler.projection.schema import upgrade
from reconciler.projection.tables import (
    addresses,
    attachments,
    leaks,
    network_versions,
    nodes,
    pending,
    position,
    sandboxes,
    statuses,
)

_PAGE = 2000

_IS_LIVE = sa.text("sandboxes.live")
_LIVING = {
    position: sa.select(position),
    nodes: sa.select(nodes),
    pending: sa.select(pending),
    statuses: sa.select(statuses),
    leaks: sa.select(leaks),
    network_versions: sa.select(network_versions),
    sandboxes: sa.select(sandboxes).where(_IS_LIVE),
    attachments: sa.select(attachments)
    .join(
        sandboxes,
        sa.and_(
            attachments.c.container_id == sandboxes.c.container_id, attachments.c.sandbox_ifname == sandboxes.c.ifname
        ),
    )
    .where(_IS_LIVE),
    addresses: sa.select(addresses).where(addresses.c.until_sequence.is_(None)),
}


def save(url: str, path: Path) -> int:
    """Write a snapshot of the projection at *url* to *path*; return the sequence that it is of.

    Raises ProjectionError, DatabaseAwayError.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    target = f"sqlite:///{unfinished}"
    upgrade(target)
    try:
        sequence = _copy(url, target)
        os.replace(unfinished, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
    return sequence


def restore(path: Path, url: str) -> int:
    """Fill the empty projection at *url* from the snapshot in *path*; return the sequence that it is of.

    Raises ProjectionError, DatabaseAwayError.
    """
    if not path.is_file():
        raise ProjectionError(f"there is no snapshot {path}")
    upgrade(f"sqlite:///{path}")
    return _copy(f"sqlite:///{path}", url)


def _copy(url: str, target_url: str) -> int:
    source, target = open_engine(url), open_engine(target_url)
    try:
        with source.connect() as from_, transaction(target) as to:
            if source.dialect.name == "postgresql":
                from_.execution_options(isolation_level="REPEATABLE READ")
            for table, chosen in _LIVING.items():
                for page in from_.execute(chosen, execution_options={"yield_per": _PAGE}).partitions():
                    to.execute(table.insert(), [dict(row._mapping) for row in page])
            return to.scalar(sa.select(position.c.sequence)) or 0
    finally:
        source.dispose()
        target.dispose()
