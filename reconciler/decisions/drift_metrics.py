"""What Prometheus sees of drift."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from events.schema import Drift

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0)


class DriftMetrics:
    """The series of drift, on *registry*."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._observed = Counter(
            "plumbline_drift_observed", "Ways in which a node was seen to differ", ["kind"], registry=registry
        )
        self._repaired = Counter("plumbline_drift_repaired", "Drift that was put right", ["kind"], registry=registry)
        self.failed = Counter(
            "plumbline_drift_repair_failed", "Repairs that failed", ["error_class"], registry=registry
        )
        self.given_up = Counter(
            "plumbline_drift_given_up", "Sandboxes whose repair was given up until they change", registry=registry
        )
        self.open = Gauge("plumbline_drift_open", "Sandboxes that differ from the ledger", registry=registry)
        self._seconds = Histogram(
            "plumbline_drift_repair_seconds",
            "Time from drift being observed to its being put right",
            buckets=_BUCKETS,
            registry=registry,
        )

    def seen(self, drifts: Iterable[Drift]) -> None:
        """Count what an observation tells of that was not so before."""
        for drift in drifts:
            self._observed.labels(drift.kind.value).inc()

    def put_right(self, drifts: Iterable[Drift], seconds: float | None) -> None:
        """Count a repair, which took *seconds* since the drift was observed, if that is known."""
        for drift in drifts:
            self._repaired.labels(drift.kind.value).inc()
        if seconds is not None:
            self._seconds.observe(seconds)
