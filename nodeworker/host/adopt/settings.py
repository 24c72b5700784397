"""Where the state to take over is, in the configuration file."""

from __future__ import annotations

import msgspec

from nodeworker.settings import WorkerSettings


class AdoptSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The folders of those who attached pods before."""

    cni_dir: str = "/var/lib/cni/multus"
    """Multus' own ``cniDir``."""
    cache_dirs: tuple[str, ...] = ("/var/lib/cni",)
    """The runtimes': each has a folder ``results`` that libcni keeps."""

    def __post_init__(self) -> None:
        for folder in (self.cni_dir, *self.cache_dirs):
            if not folder.startswith("/"):
                raise ValueError(f"cniDir or cacheDirs names {folder!r}, which is not an absolute path")


class AdoptSettings(WorkerSettings, frozen=True, kw_only=True, rename="camel"):
    """What an adoption reads from the file: all that the worker does, and its own section."""

    adopt: AdoptSection = AdoptSection()
