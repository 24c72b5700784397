"""The reconciler's section of the configuration file."""

from __future__ import annotations

from math import inf
from pathlib import Path

import msgspec

from events.process.settings import MetricsSettings, Settings

_SQLITE = "sqlite:///"


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The API server at whose pods the status is published."""

    kubeconfig: str = ""
    """Empty: the service account of the reconciler's own pod."""
    events: bool = True
    """Whether pods get Kubernetes Events: AddedInterface for each interface, and warnings."""


class SnapshotSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is put away of the projection, and where."""

    folder: str = ""
    """Empty: ``snapshots`` in ``stateDir``."""
    interval: float = 21600.0
    """Seconds between two of them; 0: none are written. One that is there is used all the same."""
    keep: int = 3

    def __post_init__(self) -> None:
        if self.interval and self.interval < 1:
            raise ValueError(f"snapshots: interval is {self.interval}, neither 0 nor at least 1 second")
        if self.keep < 1:
            raise ValueError(f"snapshots: keep is {self.keep}, not at least 1")
        if self.folder and not self.folder.startswith("/"):
            raise ValueError(f"snapshots: folder is {self.folder!r}, not an absolute path")


class ReconcilerSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The key ``reconciler``."""

    database: str = ""
    """SQLAlchemy URL of the projection. Empty: an SQLite file in ``stateDir``."""
    metrics: MetricsSettings = MetricsSettings()
    verify_interval: float = 21600.0
    """Seconds between two verifications; 0: none."""
    retention_days: float = 30.0
    """How long the database remembers what is over, as a hub's ledger does; 0: for ever."""
    snapshots: SnapshotSettings = SnapshotSettings()
    kubernetes: KubernetesSettings | None = None
    """Where the status of pods is published; None: beside ``manifests``, or nowhere."""

    def __post_init__(self) -> None:
        if self.verify_interval and self.verify_interval < 1:
            raise ValueError(f"verifyInterval is {self.verify_interval}, neither 0 nor at least 1 second")
        if not 0 <= self.retention_days < inf:
            raise ValueError(f"retentionDays is {self.retention_days}, neither 0 nor a number of days")
        dialect = self.database.partition(":")[0].partition("+")[0]
        if self.database and dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"database begins with {dialect!r}, not with sqlite or postgresql")
        if dialect == "sqlite" and self.database.partition("///")[2] in ("", ":memory:"):
            raise ValueError("database names no file: write sqlite:////absolute/path")


class ReconcilerSettings(Settings, frozen=True, kw_only=True):
    """What the reconciler reads of the file; the sections of other processes are theirs to judge."""

    reconciler: ReconcilerSection = ReconcilerSection()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifests and self.reconciler.kubernetes is not None:
            raise ValueError("manifests and reconciler.kubernetes are both set: statuses go to one of them")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the projection."""
        return self.reconciler.database or f"{_SQLITE}{self.state_dir}/reconciler.db"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return Path(self.reconciler.snapshots.folder or f"{self.state_dir}/snapshots")
