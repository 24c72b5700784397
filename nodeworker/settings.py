"""The worker's part of the configuration file."""

from __future__ import annotations

import os

import msgspec

from events.settings import MetricsSettings, Settings
from nodeworker.resolve.netconf import NodeDefaults


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The API server that pods and networks come from."""

    kubeconfig: str = ""
    """Empty: the service account of the worker's own pod."""
    pod_wait: float = 2.0
    """Seconds to wait for the watch to tell of a pod before it is asked for."""


class WorkerSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Limits of the worker, and what it assumes where the CNI configuration is silent."""

    delegate_timeout: float = 20.0
    """Seconds that one delegate's ADD, CHECK or DEL may take."""
    concurrency: int = max(8, 2 * (os.cpu_count() or 1))
    """Sandboxes that are worked on at the same time; the others wait in their queues."""
    metrics: MetricsSettings = MetricsSettings()
    kubernetes: KubernetesSettings | None = None
    """Where pods and networks come from; None: the folder ``manifests``, or nowhere."""
    network: NodeDefaults = NodeDefaults()
    """Multus' configuration keys, for whatever the CNI configuration on standard input leaves out."""

    def __post_init__(self) -> None:
        if self.delegate_timeout <= 0:
            raise ValueError(f"delegateTimeout is {self.delegate_timeout}, not a positive number of seconds")
        if self.concurrency < 2:  # GC waits for the detaches that it asks for
            raise ValueError(f"concurrency is {self.concurrency}, not at least 2")


class WorkerSettings(Settings, frozen=True, kw_only=True, rename="camel"):
    """All that the worker reads from the file."""

    worker: WorkerSection = WorkerSection()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifests and self.worker.kubernetes is not None:
            raise ValueError("manifests and worker.kubernetes are both set: pods come from one of them")
