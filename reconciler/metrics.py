"""What Prometheus sees of the reconciler: whether it keeps up, and what it has published."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from events.fold import SandboxPhase
from events.schema import TYPES
from reconciler.decisions.drift_metrics import DriftMetrics
from reconciler.verify.report import Kind, Report

_UNKNOWN = "unknown"
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STATUS_BUCKETS = (*_BATCH_BUCKETS[1:], 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The reconciler's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.drift = DriftMetrics(self.registry)
        prefix = "plumbline_reconciler"
        self.applied_sequence = Gauge(
            f"{prefix}_applied_sequence", "Ledger sequence up to which the projection is done", registry=self.registry
        )
        self.lag = Gauge(
            f"{prefix}_lag_events", "Events that the ledger has and the projection has not", registry=self.registry
        )
        self.batch = Histogram(
            f"{prefix}_batch_seconds",
            "Time to project one batch of events",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._events = Counter(f"{prefix}_events", "Events projected", ["type"], registry=self.registry)
        self.status_published = Counter(
            f"{prefix}_status_published", "Network statuses written or withdrawn", registry=self.registry
        )
        self.status_failed = Counter(
            f"{prefix}_status_failed", "Network statuses that could not be told or written", registry=self.registry
        )
        self.pod_events_written = Counter(
            f"{prefix}_pod_events_written", "Kubernetes Events written", registry=self.registry
        )
        self.pod_events_dropped = Counter(
            f"{prefix}_pod_events_dropped", "Kubernetes Events said too often, or refused", registry=self.registry
        )
        self.status_seconds = Histogram(
            f"{prefix}_status_seconds",
            "Time from a pod's attach to its status being published",
            buckets=_STATUS_BUCKETS,
            registry=self.registry,
        )
        self.status_pending = Gauge(
            f"{prefix}_status_pending", "Pods whose status is to be written or withdrawn", registry=self.registry
        )
        self.status_restored = Counter(
            f"{prefix}_status_restored",
            "Network statuses brought back that somebody had changed",
            registry=self.registry,
        )
        self.status_contested = Gauge(
            f"{prefix}_status_contested", "Pods whose network-status somebody keeps changing", registry=self.registry
        )
        self.active = Gauge(
            f"{prefix}_active", "Whether this is the reconciler that acts, of several replicas", registry=self.registry
        )
        self.elections = Counter(
            f"{prefix}_elections", "How often this reconciler came to be the one that acts", registry=self.registry
        )
        self.leaks_open = Gauge(
            f"{prefix}_leaks_open",
            "What nodes hold without an owner, as far as the ledger tells",
            registry=self.registry,
        )
        self.reclaims_asked = Counter(
            f"{prefix}_reclaims_asked", "Commands sent to free what nobody owns", registry=self.registry
        )
        self.anomalies = Counter(
            f"{prefix}_anomalies", "Events that did not fit what came before them", registry=self.registry
        )
        self.forgotten = Counter(
            f"{prefix}_forgotten_rows",
            "Rows of the projection that went because what they tell of has been over for long",
            registry=self.registry,
        )
        self.snapshot_at = Gauge(
            f"{prefix}_snapshot_at", "When the last snapshot was written, in Unix seconds", registry=self.registry
        )
        self.snapshots_failed = Counter(
            f"{prefix}_snapshots_failed", "Snapshots that could not be written", registry=self.registry
        )
        self._differences = Gauge(
            "plumbline_verify_differences",
            "What differed between projection, ledger and reality at the last verification",
            ["kind"],
            registry=self.registry,
        )
        self._unseen = Gauge(
            "plumbline_verify_unseen", "What the last verification could not look at", registry=self.registry
        )
        self._verify_seconds = Gauge(
            "plumbline_verify_last_seconds", "How long the last verification took", registry=self.registry
        )
        self._verified_at = Gauge(
            "plumbline_verified_at", "When the last verification ended, in Unix seconds", registry=self.registry
        )
        self.verify_failed = Counter(
            "plumbline_verify_failed", "Verifications that came to no result", registry=self.registry
        )
        self._sandboxes = Gauge(
            f"{prefix}_sandboxes", "Sandboxes that hold something on a node", ["phase"], registry=self.registry
        )
        for name in (*TYPES, _UNKNOWN):
            self._events.labels(name)
        self.set_sandboxes({})

    def count(self, types: Mapping[str, int]) -> None:
        """Count projected events, so many of each type."""
        for name, events in types.items():
            self._events.labels(name if name in TYPES else _UNKNOWN).inc(events)

    def set_sandboxes(self, phases: Mapping[str, int]) -> None:
        """Set how many sandboxes are in each phase."""
        for phase in SandboxPhase:
            self._sandboxes.labels(phase.value).set(phases.get(phase.value, 0))

    def set_verified(self, report: Report, at: float) -> None:
        """Set what *report*, which was made by *at*, says."""
        for kind in Kind:
            self._differences.labels(kind.value).set(report.counts.get(kind, 0))
        self._unseen.set(len(report.unseen))
        self._verify_seconds.set(report.seconds)
        self._verified_at.set(at)
