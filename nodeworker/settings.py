"""The worker's part of the configuration file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from events.process.settings import MetricsSettings, Settings, SettingsError, load, missing_files
from nodeworker.host.adopt.settings import AdoptSettings
from nodeworker.host.install import InstallError
from nodeworker.host.install.generate import check_keys
from nodeworker.planning.resolve.config_keys import unknown_keys
from nodeworker.planning.resolve.device_assignment import INFO_FOLDER
from nodeworker.planning.resolve.netconf import KEYS, NodeDefaults, parse_defaults
from nodeworker.plugins.native.registry import AUTO, NEVER, TYPES

WARN, REFUSE = "warn", "refuse"


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The API server that pods and networks come from."""

    kubeconfig: str = ""
    """Empty: the service account of the worker's own pod."""
    pod_wait: float = 2.0
    """Seconds to wait until the watch has a pod, before the API server is asked for it."""


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where the kubelet and device plugins publish devices; a worker in a pod needs the folders of all three."""

    pod_resources: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Socket of the kubelet's PodResources API."""
    checkpoint: str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
    """The kubelet's file that is read if there is no such socket."""
    info_folder: str = INFO_FOLDER
    """Its folders ``dp`` and ``cni`` have the files with device information."""

    def __post_init__(self) -> None:
        if not self.info_folder.startswith("/"):
            raise ValueError(f"infoFolder is {self.info_folder!r}, not an absolute path, which plugins need")


class WorkerSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, dict=True):
    """Limits of the worker, and defaults for the CNI configuration."""

    delegate_timeout: float = 20.0
    """Seconds for ADD, CHECK or DEL of one attachment, all plugins of its chain together.

    Then an executed plugin is killed, and no other plugin starts. A native plugin that runs is not ended.
    """
    concurrency: int = max(8, 2 * (os.cpu_count() or 1))
    """Sandboxes that are worked on in parallel; the others wait in their queues."""
    native: str | tuple[str, ...] = AUTO
    """Plugins that run natively: ``auto`` (all that can), ``never``, or a list of their types."""
    status_wait: float = 2.0
    """Seconds that the answer to an ADD waits at most for the pod's network-status to be published; 0: not at all."""
    unrequested_default_route: str = WARN
    """What follows where a network takes the pod's default route that no ``default-route`` gives it."""
    metrics: MetricsSettings = MetricsSettings()
    kubernetes: KubernetesSettings | None = None
    """Where pods and networks come from; None: the folder ``manifests``, or nowhere."""
    devices: DeviceSettings = DeviceSettings()
    network_keys: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict[str, msgspec.Raw], name="network")
    """Multus' configuration keys: defaults for what the CNI configuration on standard input leaves out."""

    def __post_init__(self) -> None:
        if self.delegate_timeout <= 0:
            raise ValueError(f"delegateTimeout is {self.delegate_timeout}, not a positive number of seconds")
        if self.status_wait < 0:
            raise ValueError(f"statusWait is {self.status_wait}, a negative number of seconds")
        if self.concurrency < 2:  # a GC waits for the detaches that it requests
            raise ValueError(f"concurrency is {self.concurrency}, not at least 2")
        if self.unrequested_default_route not in (WARN, REFUSE):
            raise ValueError(f"unrequestedDefaultRoute is {self.unrequested_default_route!r}, not {WARN} or {REFUSE}")
        _check_native(self.native)
        try:
            parse_defaults(self.network_keys)
        except ValueError as error:
            raise ValueError(f"network can't be used: {error}") from error

    @cached_property
    def network(self) -> NodeDefaults:
        """``network_keys``, decoded."""
        return parse_defaults(self.network_keys)

    @property
    def unknown_network_keys(self) -> tuple[str, ...]:
        """The keys of ``network_keys`` that are unknown."""
        return unknown_keys(self.network_keys, KEYS)


def _check_native(switch: str | tuple[str, ...]) -> None:
    if isinstance(switch, str):
        if switch not in (AUTO, NEVER):
            raise ValueError(f"native is {switch!r}, not auto, never or a list of plugin types")
    elif unknown := set(switch) - TYPES:
        raise ValueError(f"native names {', '.join(sorted(unknown))}: use {', '.join(sorted(TYPES))}")


class WorkerSettings(Settings, frozen=True, kw_only=True, rename="camel"):
    """What the worker reads from the configuration file."""

    worker: WorkerSection = WorkerSection()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifests and self.worker.kubernetes is not None:
            raise ValueError(
                "manifests and worker.kubernetes are both set: remove one, because pods come from one source"
            )

    def files(self) -> dict[str, str]:
        """Return what ``Settings.files`` does, and the worker's kubeconfig."""
        kubernetes = self.worker.kubernetes
        own = {"worker.kubernetes.kubeconfig": kubernetes.kubeconfig} if kubernetes and kubernetes.kubeconfig else {}
        return super().files() | own


class Checked(msgspec.Struct, frozen=True):
    """What the worker says of a configuration file, as JSON, for ``plumbline check-config``."""

    sections: dict[str, Any]
    """The sections of processes of this package, with their defaults."""
    missing: list[str]
    """Sentences about files that do not exist."""
    notes: list[str]
    """Sentences about keys that change nothing."""


def check(path: Path) -> Checked:
    """Check the file at *path*. Raises SettingsError."""
    settings, adoption = load(path, WorkerSettings), load(path, AdoptSettings)
    missing = [*missing_files(settings), *_foreign_paths("worker.network", settings.worker.network)]
    notes = [_unknown("worker.network", key) for key in settings.worker.unknown_network_keys]
    if settings.install is not None:
        try:
            network = check_keys(settings.install)
        except InstallError as error:
            raise SettingsError(f"{path}: install.network can't be used: {error}") from error
        missing += _foreign_paths("install.network", network)
        notes += [_unknown("install.network", key) for key in unknown_keys(settings.install.network, KEYS)]
    return Checked({"worker": settings.worker, "adopt": adoption.adopt}, missing, notes)


def _unknown(where: str, key: str) -> str:
    return f"{where}: nothing knows the key {key}"


def _foreign_paths(where: str, defaults: NodeDefaults) -> Iterator[str]:
    """Yield a sentence about each path of Multus' containers, which have the node's files in /host."""
    for key, path in (("confDir", defaults.conf_dir), ("binDir", defaults.bin_dir)):
        if path.startswith("/host/") and not Path(path).exists():
            yield f"{where}.{key}: {path} does not exist: it is a path in Multus' container; write {path[5:]}"
