"""The reconciler's section of the configuration file."""

from __future__ import annotations

from math import inf
from pathlib import Path

import msgspec

from events.process.settings import MetricsSettings, Settings

_SQLITE = "sqlite:///"


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The API server to which statuses are published."""

    kubeconfig: str = ""
    """Empty: the service account of the reconciler's own pod."""
    events: bool = True
    """Whether pods get Kubernetes Events: AddedInterface for each interface, and warnings."""


class SnapshotSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Snapshots of the projection."""

    folder: str = ""
    """Empty: ``snapshots`` in ``stateDir``."""
    interval: float = 21600.0
    """Seconds between two snapshots; 0: no new ones. Existing ones are still used."""
    keep: int = 3

    def __post_init__(self) -> None:
        if self.interval and self.interval < 1:
            raise ValueError(f"snapshots: interval is {self.interval}, but must be 0 or at least 1 second")
        if self.keep < 1:
            raise ValueError(f"snapshots: keep is {self.keep}, but must be at least 1")
        if self.folder and not self.folder.startswith("/"):
            raise ValueError(f"snapshots: folder is {self.folder!r}, but must be an absolute path")


class ReconcilerSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The key ``reconciler``."""

    database: str = ""
    """SQLAlchemy URL of the projection. Empty: an SQLite file in ``stateDir``."""
    metrics: MetricsSettings = MetricsSettings()
    verify_interval: float = 21600.0
    """Seconds between two verifications; 0: none."""
    retention_days: float = 30.0
    """Days for which the database keeps rows about what ended; 0: forever."""
    snapshots: SnapshotSettings = SnapshotSettings()
    kubernetes: KubernetesSettings | None = None
    """Where statuses are published; None: beside ``manifests`` if that is set, else nowhere."""

    def __post_init__(self) -> None:
        if self.verify_interval and self.verify_interval < 1:
            raise ValueError(f"verifyInterval is {self.verify_interval}, but must be 0 or at least 1 second")
        if not 0 <= self.retention_days < inf:
            raise ValueError(f"retentionDays is {self.retention_days}, but must be 0 or a number of days")
        dialect = self.database.partition(":")[0].partition("+")[0]
        if self.database and dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"database begins with {dialect!r}, but must begin with sqlite or postgresql")
        if dialect == "sqlite" and self.database.partition("///")[2] in ("", ":memory:"):
            raise ValueError("database names no file: write sqlite:////absolute/path")


class ReconcilerSettings(Settings, frozen=True, kw_only=True):
    """The reconciler's settings. It ignores the sections of other processes."""

    reconciler: ReconcilerSection = ReconcilerSection()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifests and self.reconciler.kubernetes is not None:
            raise ValueError("manifests and reconciler.kubernetes are both set: choose one place for statuses")

    def files(self) -> dict[str, str]:
        """Return what ``Settings.files`` does, and the reconciler's kubeconfig."""
        kubernetes = self.reconciler.kubernetes
        own = (
            {"reconciler.kubernetes.kubeconfig": kubernetes.kubeconfig} if kubernetes and kubernetes.kubeconfig else {}
        )
        return super().files() | own

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the projection."""
        return self.reconciler.database or f"{_SQLITE}{self.state_dir}/reconciler.db"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return Path(self.reconciler.snapshots.folder or f"{self.state_dir}/snapshots")
