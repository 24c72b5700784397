"""The reconciler's section of the configuration file."""

from __future__ import annotations

import msgspec

from events.settings import MetricsSettings, Settings

_SQLITE = "sqlite:///"


class ReconcilerSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The key ``reconciler``."""

    database: str = ""
    """SQLAlchemy URL of the projection. Empty: an SQLite file in ``stateDir``."""
    metrics: MetricsSettings = MetricsSettings()

    def __post_init__(self) -> None:
        dialect = self.database.partition(":")[0].partition("+")[0]
        if self.database and dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"database begins with {dialect!r}, not with sqlite or postgresql")
        if dialect == "sqlite" and self.database.partition("///")[2] in ("", ":memory:"):
            raise ValueError("database names no file: write sqlite:////absolute/path")


class ReconcilerSettings(Settings, frozen=True, kw_only=True):
    """What the reconciler reads of the file; the sections of other processes are theirs to judge."""

    reconciler: ReconcilerSection = ReconcilerSection()

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the projection."""
        return self.reconciler.database or f"{_SQLITE}{self.state_dir}/reconciler.db"
