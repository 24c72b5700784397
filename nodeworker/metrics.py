"""The worker's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from events.ledger.anomalies import Anomaly, log_anomaly
from events.schema import ErrorClass, Failure, LeakKind, PluginRun

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds."""


class ClusterWatch(Protocol):
    """A watch of the API server, as ``nodeworker.planning.cluster.apiserver.watch`` has it."""

    @property
    def resource(self) -> str:
        """Plural name."""
        ...

    @property
    def connected(self) -> bool:
        """Whether changes come in."""
        ...

    @property
    def relists(self) -> int:
        """Since the start."""
        ...

    @property
    def errors(self) -> int:
        """Since the start."""
        ...

    def __len__(self) -> int: ...


_CLUSTER: tuple[tuple[str, str, Callable[[ClusterWatch], float]], ...] = (
    ("plumbline_cluster_watch_connected", "1 while changes of the resource come in.", lambda w: float(w.connected)),
    ("plumbline_cluster_objects", "Objects of the resource that are at hand.", len),
    ("plumbline_cluster_relists", "How often all objects were listed since the start.", lambda w: float(w.relists)),
    ("plumbline_cluster_watch_errors", "How often the watch failed since the start.", lambda w: float(w.errors)),
)


class WorkerMetrics:
    """The worker's series, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "plumbline_request_seconds",
            "Seconds from the arrival of a CNI request to its answer.",
            ("command", "result"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._plugin_seconds = Histogram(
            "plumbline_plugin_seconds",
            "Seconds that one run of a plugin took.",
            ("command", "plugin", "result"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "plumbline_failures",
            "Requests that failed, by class of failure and phase.",
            ("error_class", "phase"),
            registry=self.registry,
        )
        self._ack_seconds = Histogram(
            "plumbline_ledger_ack_seconds",
            "Seconds until the ledger confirmed an event as durable.",
            buckets=(0.0001, 0.00025, 0.0005, *BUCKETS),
            registry=self.registry,
        )
        self._ledger_anomalies = Counter(
            "plumbline_ledger_anomalies",
            "Messages in the ledger that are no events, and have no effect.",
            registry=self.registry,
        )
        self._status_seconds = Histogram(
            "plumbline_status_wait_seconds",
            "Seconds that the answer to an ADD waited for the pod's network-status.",
            ("result",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._leaks_observed = Counter(
            "plumbline_leaks_observed",
            "Leaks that were seen twice.",
            ("kind",),
            registry=self.registry,
        )
        self._leaks_reclaimed = Counter(
            "plumbline_leaks_reclaimed",
            "Leaks that were freed.",
            ("kind",),
            registry=self.registry,
        )
        self._reclaim_seconds = Histogram(
            "plumbline_reclaim_seconds",
            "Seconds from the first sight of a leak until it was freed.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._reclaims_refused = Counter(
            "plumbline_reclaim_refused",
            "Reclaims that freed nothing, by class of failure.",
            ("error_class",),
            registry=self.registry,
        )
        self._false_frees = Counter(
            "plumbline_false_frees",
            "Sandboxes that were reclaimed and turned out to be alive: anything but 0 is an alarm.",
            registry=self.registry,
        )
        self.leaks_open = Gauge(
            "plumbline_leaks_open", "Leaks that are open, according to the ledger.", registry=self.registry
        )
        self.spooled = Gauge(
            "plumbline_spooled_requests", "DEL requests on disk that wait for the ledger.", registry=self.registry
        )
        self.detach_retries = Gauge(
            "plumbline_detach_retries", "Sandboxes whose DEL failed and is repeated.", registry=self.registry
        )

    def request_done(self, command: str, seconds: float, failure: Failure | None) -> None:
        """Count one answered request."""
        self._seconds.labels(command, "ok" if failure is None else "error").observe(seconds)
        if failure is not None:
            self._failures.labels(failure.error_class.value, failure.phase.value).inc()

    def runs_done(self, command: str, runs: Iterable[PluginRun]) -> None:
        """Count runs of plugins."""
        for run in runs:
            self._plugin_seconds.labels(command, run.type, "error" if run.exit_code else "ok").observe(run.seconds)

    def status_waited(self, result: str, seconds: float) -> None:
        """Count one answer that waited: for the status to be ``published`` or ``failed``, or until ``timeout``."""
        self._status_seconds.labels(result).observe(seconds)

    def leak_observed(self, kind: LeakKind) -> None:
        """Count one leak that was seen twice."""
        self._leaks_observed.labels(kind.value).inc()

    def leak_reclaimed(self, kind: LeakKind, seconds: float) -> None:
        """Count one leak that is freed *seconds* after it was seen first."""
        self._leaks_reclaimed.labels(kind.value).inc()
        self._reclaim_seconds.observe(seconds)

    def reclaim_refused(self, error_class: ErrorClass) -> None:
        """Count one reclaim that freed nothing."""
        self._reclaims_refused.labels(error_class.value).inc()

    def freed_falsely(self) -> None:
        """Count one sandbox that was reclaimed although it was alive."""
        self._false_frees.inc()

    def ledger_acked(self, seconds: float) -> None:
        """Count one confirmed append."""
        self._ack_seconds.observe(seconds)

    def ledger_anomaly(self, anomaly: Anomaly) -> None:
        """Count and log one message that is no event."""
        self._ledger_anomalies.inc()
        log_anomaly(anomaly)

    def watch_cluster(self, watches: Iterable[ClusterWatch]) -> None:
        """Read the state of *watches* at every scrape."""
        for name, text, read in _CLUSTER:
            gauge = Gauge(name, text, ("resource",), registry=self.registry)
            for watch in watches:
                gauge.labels(watch.resource).set_function(partial(read, watch))

    def watch_hub(
        self, *, connected: Callable[[], float], lag_events: Callable[[], float], lag_seconds: Callable[[], float]
    ) -> None:
        """Read these at every scrape, where there is a hub."""
        for name, text, read in (
            ("plumbline_uplink_connected", "1 while the hub is connected.", connected),
            ("plumbline_uplink_lag_events", "Events that the hub has not got, at most.", lag_events),
            ("plumbline_uplink_lag_seconds", "Age of the first event that the hub has not got.", lag_seconds),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def watch(
        self,
        *,
        queue_depth: Callable[[], float],
        in_progress: Callable[[], float],
        oldest_pending: Callable[[], float],
        sandboxes: Callable[[], float],
        ledger_connected: Callable[[], float],
    ) -> None:
        """Read these at every scrape."""
        for name, text, read in (
            ("plumbline_queue_depth", "Requests that wait for their sandbox or for a free place.", queue_depth),
            ("plumbline_requests_in_progress", "Requests that are being worked on.", in_progress),
            ("plumbline_oldest_pending_seconds", "Age of the oldest intent without outcome.", oldest_pending),
            ("plumbline_sandboxes", "Sandboxes that hold something on this node.", sandboxes),
            ("plumbline_ledger_connected", "1 while the ledger is connected.", ledger_connected),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
