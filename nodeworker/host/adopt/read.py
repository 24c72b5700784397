"""Read the files about each sandbox that Multus attached. Nothing is changed.

Three programs write such files: Multus (its scratch files, and libcni's cache under them), the container runtime
(libcni's cache: its own request to Multus, and the result) and host-local (its address reservations).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from events.schema import ContainerId, IfName
from nodeworker.errors import usable_container_id
from nodeworker.host.adopt.records import Entry, RecordError, Scratch, read_entry, read_scratch
from nodeworker.host.install.primary import MULTUS_TYPES
from nodeworker.plugins.spec.names import decode_json

HOST_LOCAL_DIR = "/var/lib/cni/networks"
"""The folder of host-local's reservations, unless its configuration has ``dataDir``."""

_RESULTS = "results"
_MAX_BYTES = 8 * 1024 * 1024


class Unreadable(msgspec.Struct, frozen=True):
    """A file that should describe an attachment and does not."""

    path: str
    problem: str
    """The end of a sentence that begins with the path."""

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


class SandboxFiles(msgspec.Struct, frozen=True, kw_only=True):
    """All files about one sandbox."""

    container_id: ContainerId
    scratch: Scratch | Unreadable | None = None
    entries: tuple[Entry, ...] = ()
    """libcni's entries of Multus' attachments."""
    unreadable: tuple[Unreadable, ...] = ()
    """Entries that can't be read."""
    request: Entry | None = None
    """The runtime's call of Multus."""
    reserved: dict[IfName, str] = {}
    """The interfaces that host-local has reserved an address for, with the file."""
    written: int = 0
    """When the newest of Multus' files was written, in nanoseconds since 1970."""


class DiskState(msgspec.Struct, frozen=True, kw_only=True):
    """All files about sandboxes."""

    sandboxes: tuple[SandboxFiles, ...]
    """Ordered by container ID."""
    orphans: tuple[Unreadable, ...] = ()
    """Files that can't be read, and whose name belongs to no known sandbox."""


class _Collected:
    """The files of all sandboxes, filled while reading."""

    def __init__(self) -> None:
        self.scratches: dict[ContainerId, Scratch | Unreadable] = {}
        self.entries: dict[ContainerId, list[Entry]] = {}
        self.requests: dict[ContainerId, Entry] = {}
        self.unreadable: list[Unreadable] = []
        self.written: dict[str, int] = {}

    def files(self, container_id: ContainerId, reserved: Mapping[IfName, str]) -> SandboxFiles:
        """Return the files about one sandbox."""
        entries = tuple(self.entries.get(container_id, ()))
        unreadable = tuple(each for each in self.unreadable if f"-{container_id}-" in Path(each.path).name)
        scratch = self.scratches.get(container_id)
        paths = [each.path for each in (*entries, *unreadable)] + ([scratch.path] if scratch else [])
        return SandboxFiles(
            container_id=container_id,
            scratch=scratch,
            entries=entries,
            unreadable=unreadable,
            request=self.requests.get(container_id),
            reserved=dict(reserved),
            written=max((self.written[path] for path in paths), default=0),
        )


def read_state(cni_dir: Path, cache_dirs: Iterable[Path], host_local_dir: Path = Path(HOST_LOCAL_DIR)) -> DiskState:
    """Return the files in Multus' *cni_dir*, in the runtimes' *cache_dirs*, and in the folders of host-local.

    Raises OSError for a folder that exists and can't be listed.
    """
    collected = _Collected()
    _read_scratches(cni_dir, collected)
    _read_entries(cni_dir, collected)
    for folder in cache_dirs:
        _read_requests(folder, collected)
    reserved = _reservations({host_local_dir, *_data_dirs(collected)})
    known = sorted({*collected.scratches, *collected.entries, *collected.requests})
    sandboxes = tuple(collected.files(container_id, reserved.get(container_id, {})) for container_id in known)
    assigned = {each.path for sandbox in sandboxes for each in sandbox.unreadable}
    orphans = tuple(each for each in collected.unreadable if each.path not in assigned)
    return DiskState(sandboxes=sandboxes, orphans=orphans)


def multus_plugin(config: str) -> dict[str, Any] | None:
    """Return the plugin of the runtime's *config* that is Multus; None: there is none."""
    try:
        decoded: Any = decode_json(config)
    except ValueError:
        return None
    plugins: Any = [decoded] if isinstance(decoded, dict) and "type" in decoded else _member(decoded, "plugins")
    if not isinstance(plugins, list):
        return None
    return next((each for each in cast("list[Any]", plugins) if _member(each, "type") in MULTUS_TYPES), None)


def _read_scratches(folder: Path, collected: _Collected) -> None:
    for path in _listed(folder):
        if not usable_container_id(path.name) or path.name == _RESULTS:
            continue
        container_id = ContainerId(path.name)
        try:
            collected.scratches[container_id] = read_scratch(str(path), _read(path, collected))
        except (RecordError, OSError) as error:
            collected.scratches[container_id] = _unreadable(path, error)


def _read_entries(folder: Path, collected: _Collected) -> None:
    for path in _listed(folder / _RESULTS):
        try:
            entry = read_entry(str(path), path.name, _read(path, collected))
            collected.entries.setdefault(entry.container_id, []).append(entry)
        except (RecordError, OSError) as error:
            collected.unreadable.append(_unreadable(path, error))


def _read_requests(folder: Path, collected: _Collected) -> None:
    """Read the runtime's cache. Requests to other plugins and torn files are no evidence, and are skipped."""
    for path in _listed(folder / _RESULTS):
        try:
            entry = read_entry(str(path), path.name, _read(path, collected))
        except (RecordError, OSError):
            continue
        if multus_plugin(entry.config) is not None:
            collected.requests[entry.container_id] = entry


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, collected: _Collected) -> bytes:
    with path.open("rb") as file:
        collected.written[str(path)] = path.stat().st_mtime_ns
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise RecordError(f"is larger than {_MAX_BYTES} bytes")
    return text


def _unreadable(path: Path, error: Exception) -> Unreadable:
    return Unreadable(str(path), f"can't be read ({error.strerror})" if isinstance(error, OSError) else str(error))


def _data_dirs(collected: _Collected) -> Iterator[Path]:
    configs = [entry.config for entries in collected.entries.values() for entry in entries]
    for scratch in collected.scratches.values():
        if isinstance(scratch, Scratch):
            configs += [delegate.config for delegate in scratch.delegates]
    for config in set(configs):
        try:
            decoded: Any = decode_json(config)
        except ValueError:
            continue
        plugins: Any = _member(decoded, "plugins")
        for plugin in (decoded, *(cast("list[Any]", plugins) if isinstance(plugins, list) else ())):
            folder = _member(_member(plugin, "ipam"), "dataDir")
            if isinstance(folder, str) and folder.startswith("/") and "\0" not in folder:
                yield Path(folder)


def _member(value: object, key: str) -> Any:
    return cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None


def _reservations(folders: Iterable[Path]) -> dict[ContainerId, dict[IfName, str]]:
    """Return host-local's reservations: a file has the container ID on its first line, the interface on its second."""
    reserved: dict[ContainerId, dict[IfName, str]] = {}
    for folder in folders:
        for path in (path for network in _folders(folder) for path in _listed(network)):
            try:
                container_id, ifname = path.read_text().splitlines()
            except (OSError, ValueError):
                continue  # the lock, the last reserved address, or a reservation without owner
            reserved.setdefault(ContainerId(container_id.strip()), {})[IfName(ifname.strip())] = str(path)
    return reserved


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
