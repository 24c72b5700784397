"""The configuration of an adoption: where the files of Multus and the runtime are."""

from __future__ import annotations

from typing import Any

import msgspec

from events.process.settings import Settings
from nodeworker.planning.resolve.netconf import parse_defaults


class AdoptSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The folders of Multus and of the container runtimes."""

    cni_dir: str = "/var/lib/cni/multus"
    """Multus' own ``cniDir``."""
    cache_dirs: tuple[str, ...] = ("/var/lib/cni",)
    """The runtimes' folders; each has libcni's cache in its folder ``results``."""

    def __post_init__(self) -> None:
        for folder in (self.cni_dir, *self.cache_dirs):
            if not folder.startswith("/"):
                raise ValueError(f"cniDir or cacheDirs names {folder!r}, which is not an absolute path")


class WorkerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of the section ``worker`` that an adoption uses; the worker checks the others."""

    network: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        try:
            parse_defaults(self.network)
        except ValueError as error:
            raise ValueError(f"network can't be used: {error}") from error

    @property
    def bin_dir(self) -> str:
        """The folders with the CNI plugins."""
        return parse_defaults(self.network).bin_dir

    @property
    def system_namespaces(self) -> tuple[str, ...]:
        """The namespaces whose pods get no network-status."""
        return parse_defaults(self.network).system_namespaces


class AdoptSettings(Settings, frozen=True, kw_only=True, rename="camel"):
    """The shared settings, and the sections that an adoption uses."""

    worker: WorkerKeys = WorkerKeys()
    adopt: AdoptSection = AdoptSection()
