"""The reconciler's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from events.fold import SandboxPhase
from events.ledger.anomalies import Anomaly, log_anomaly
from events.schema import TYPES, Drift

_UNKNOWN = "unknown"
_BATCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STATUS_BUCKETS = (*_BATCH_BUCKETS[1:], 30.0, 60.0, 300.0, 1800.0)
_REPAIR_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0)


class DriftMetrics:
    """The metrics of drift and repair, on *registry*."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._observed = Counter("plumbline_drift_observed", "Differences seen on nodes", ["kind"], registry=registry)
        self._repaired = Counter("plumbline_drift_repaired", "Repaired differences", ["kind"], registry=registry)
        self.failed = Counter("plumbline_drift_repair_failed", "Failed repairs", ["error_class"], registry=registry)
        self.given_up = Counter(
            "plumbline_drift_given_up", "Sandboxes without further repairs until they change", registry=registry
        )
        self.open = Gauge("plumbline_drift_open", "Sandboxes that differ from the ledger", registry=registry)
        self._seconds = Histogram(
            "plumbline_drift_repair_seconds",
            "Time from the first observation of drift to its repair",
            buckets=_REPAIR_BUCKETS,
            registry=registry,
        )

    def count_observed(self, drifts: Iterable[Drift]) -> None:
        """Count newly observed differences."""
        for drift in drifts:
            self._observed.labels(drift.kind.value).inc()

    def count_repaired(self, drifts: Iterable[Drift], seconds: float | None) -> None:
        """Count repaired differences; *seconds* have passed since the observation, None: unknown."""
        for drift in drifts:
            self._repaired.labels(drift.kind.value).inc()
        if seconds is not None:
            self._seconds.observe(seconds)


class Metrics:
    """The reconciler's metrics, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.drift = DriftMetrics(self.registry)
        prefix = "plumbline_reconciler"
        self.applied_sequence = Gauge(
            f"{prefix}_applied_sequence", "Sequence of the last projected event", registry=self.registry
        )
        self.lag = Gauge(
            f"{prefix}_lag_events", "Events in the ledger that are not projected yet", registry=self.registry
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
            f"{prefix}_status_failed", "Failed attempts to render or write a network status", registry=self.registry
        )
        self.pod_events_written = Counter(
            f"{prefix}_pod_events_written", "Kubernetes Events written", registry=self.registry
        )
        self.pod_events_dropped = Counter(
            f"{prefix}_pod_events_dropped",
            "Kubernetes Events dropped by the rate limit or refused by the API server",
            registry=self.registry,
        )
        self.status_seconds = Histogram(
            f"{prefix}_status_seconds",
            "Time from a pod's attach to the publication of its status",
            buckets=_STATUS_BUCKETS,
            registry=self.registry,
        )
        self.status_pending = Gauge(
            f"{prefix}_status_pending", "Pods whose status waits to be written or withdrawn", registry=self.registry
        )
        self.status_restored = Counter(
            f"{prefix}_status_restored",
            "Network statuses restored after a foreign change",
            registry=self.registry,
        )
        self.status_contested = Gauge(
            f"{prefix}_status_contested",
            "Pods whose network-status another writer changes repeatedly",
            registry=self.registry,
        )
        self.active = Gauge(f"{prefix}_active", "1 while this replica is the leader, else 0", registry=self.registry)
        self.elections = Counter(f"{prefix}_elections", "Elections that this replica won", registry=self.registry)
        self.leaks_open = Gauge(
            f"{prefix}_leaks_open",
            "Open leaks: resources on nodes without an owner",
            registry=self.registry,
        )
        self.reclaims_asked = Counter(
            f"{prefix}_reclaims_asked", "Commands sent to reclaim leaks", registry=self.registry
        )
        self.anomalies = Counter(f"{prefix}_anomalies", "Events that contradict earlier events", registry=self.registry)
        self._ledger_anomalies = Counter(
            "plumbline_ledger_anomalies",
            "Messages in the ledger that are no events, and have no effect",
            registry=self.registry,
        )
        self.forgotten = Counter(
            f"{prefix}_forgotten_rows",
            "Rows deleted from the projection by retention",
            registry=self.registry,
        )
        self.snapshot_at = Gauge(f"{prefix}_snapshot_at", "Unix time of the last snapshot", registry=self.registry)
        self.snapshots_failed = Counter(f"{prefix}_snapshots_failed", "Failed snapshots", registry=self.registry)
        self._differences = Gauge(
            "plumbline_verify_differences",
            "Differences between projection, ledger and reality in the last verification",
            ["kind"],
            registry=self.registry,
        )
        self._unseen = Gauge(
            "plumbline_verify_unseen", "Parts that the last verification could not check", registry=self.registry
        )
        self._verify_seconds = Gauge(
            "plumbline_verify_last_seconds", "Duration of the last verification", registry=self.registry
        )
        self._verified_at = Gauge("plumbline_verified_at", "Unix time of the last verification", registry=self.registry)
        self.verify_failed = Counter(
            "plumbline_verify_failed", "Verifications without a result", registry=self.registry
        )
        self._sandboxes = Gauge(f"{prefix}_sandboxes", "Live sandboxes", ["phase"], registry=self.registry)
        for name in (*TYPES, _UNKNOWN):
            self._events.labels(name)
        self.set_sandboxes({})

    def ledger_anomaly(self, anomaly: Anomaly) -> None:
        """Count and log one message that is no event."""
        self._ledger_anomalies.inc()
        log_anomaly(anomaly)

    def set_follower(self) -> None:
        """Set what only a leader knows to zero: this replica is no leader any more."""
        self.active.set(0)
        for gauge in (self.drift.open, self.leaks_open, self.status_pending, self.status_contested):
            gauge.set_function(lambda: 0)

    def count(self, types: Mapping[str, int]) -> None:
        """Count projected events by type."""
        for name, events in types.items():
            self._events.labels(name if name in TYPES else _UNKNOWN).inc(events)

    def set_sandboxes(self, phases: Mapping[str, int]) -> None:
        """Set the number of sandboxes in each phase."""
        for phase in SandboxPhase:
            self._sandboxes.labels(phase.value).set(phases.get(phase.value, 0))

    def set_verified(self, differences: Mapping[str, int], *, unseen: int, seconds: float, at: float) -> None:
        """Set the result of a verification that ended at *at*, Unix time. *differences* has the number of each kind."""
        for kind, count in differences.items():
            self._differences.labels(kind).set(count)
        self._unseen.set(unseen)
        self._verify_seconds.set(seconds)
        self._verified_at.set(at)
